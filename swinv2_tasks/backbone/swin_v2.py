"""Swin Transformer V2 over images or clips.

https://arxiv.org/abs/2111.09883. Parameter names are those of the official classification code, without its buffers.
Departures, each for any input size: padding before the shift, a −inf mask, normalization and head left to the heads.

Shapes: B batch, C channels, S… sides of a map in tokens (H, W or T, H, W). Between stages maps are channels last.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from swinv2_tasks.backbone.attention import PositionBias, WindowAttention
from swinv2_tasks.backbone.position_bias import BiasTable, LinearCPB, LogCPB
from swinv2_tasks.backbone.window import Size, WindowGrid, effective_window, partition, reverse
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import shorten

WindowSize = int | Sequence[int] | Sequence[Sequence[int]]
"""A window for all stages, one per stage, or one per stage and axis; three flat numbers are a clip's (T, H, W)."""


class Mlp(nn.Module):
    """Two linear layers with a GELU between, on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each token by itself: x (…, C) → (…, C)."""
        return self.fc2(self.act(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normalized before it joins the main branch (res-post-norm)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Size,
        *,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
        position_bias: PositionBias,
        extra_norm: bool,
        attention_chunk_size: int,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.attention_chunk_size = attention_chunk_size
        self.attn = WindowAttention(dim, num_heads, window, position_bias)
        self.norm1 = nn.LayerNorm(dim)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None

    def forward(self, x: Tensor, window: Size, pretrained_window: Size) -> Tensor:
        """Attends within ``window`` and maps each token: x (B, S…, C) → the same shape."""
        x = x + self.drop_path(self.norm1(self.attend(x, window, pretrained_window)))
        x = x + self.drop_path(self.norm2(self.mlp(x)))
        return x if self.norm3 is None else self.norm3(x)

    def reset_parameters(self) -> None:
        """Draws the initial weights, where the block was built on the meta device."""
        for module in list(self.modules())[1:]:
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        initialize(self)

    def attend(self, x: Tensor, window: Size, pretrained_window: Size) -> Tensor:
        """Attends within windows of x (B, S…, C), shifted in every other block; the residual is not added."""
        grid = WindowGrid.fit(tuple(x.shape[1:-1]), window, shifted=self.shifted)
        if not torch.compiler.is_compiling():
            x = to_autocast_type(x)  # what the first linear layer would do, before the copies
        windows = partition(x, grid)
        bias = self.attn.bias(grid, pretrained_window)
        size = self.attention_chunk_size
        if 0 < size < windows.shape[1]:
            biases = bias.split(size) if len(bias) > 1 else [bias] * -(-windows.shape[1] // size)
            parts = [self.attn(w, b) for w, b in zip(windows.split(size, dim=1), biases, strict=True)]
            return reverse(torch.cat(parts, dim=1), grid)
        return reverse(self.attn(windows, bias), grid)


_on_meta_device = ContextVar("blocks_on_meta_device", default=False)


@contextmanager
def blocks_on_meta_device() -> Iterator[None]:
    """Backbones built inside have their blocks on the meta device: shapes without numbers, which take no memory.

    Each block is then given weights by ``to_empty`` and ``reset_parameters``, or by ``load_weights``.
    """
    token = _on_meta_device.set(True)
    try:
        yield
    finally:
        _on_meta_device.reset(token)


class PatchMerging(nn.Module):
    """Joins 2×2 neighbors in space into one token of twice the width; time, when there is any, is kept."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, H, W, C) → (B, …, ⌈H/2⌉, ⌈W/2⌉, 2C); odd sides are padded with zeros."""
        *_, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2))  # (B, …, H/2, 2, W/2, 2, C)
        # The official order is (0,0), (1,0), (0,1), (1,1): the row changes fastest.
        x = x.movedim((-2, -4), (-3, -2)).flatten(-3)
        return self.norm(self.reduction(x))


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one shifted, and the downsample to the next stage.

    Attributes:
        window_size: window sides wanted; a map that is smaller shrinks them (``WindowGrid.fit``).
        pretrained_window_size: window sides whose range the position bias was trained on; None: the window in effect.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Size,
        pretrained_window: Size | None,
        drop_path: Sequence[float],
        *,
        downsample: bool,
        use_checkpoint: bool,
        extra_norm_every: int,
        **block: Any,
    ) -> None:
        super().__init__()
        self.window_size = window
        self.pretrained_window_size = pretrained_window
        self.use_checkpoint = use_checkpoint
        with torch.device("meta") if _on_meta_device.get() else nullcontext():
            self.blocks = nn.ModuleList(
                SwinBlock(
                    dim,
                    num_heads,
                    window,
                    shifted=index % 2 == 1,
                    drop_path=rate,
                    extra_norm=extra_norm_every > 0 and (index + 1) % extra_norm_every == 0,
                    **block,
                )
                for index, rate in enumerate(drop_path)
            )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map before the downsample, (B, S…, C), of x (B, S…, C)."""
        pretrained = self.pretrained_window_size or effective_window(tuple(x.shape[1:-1]), self.window_size)
        for block in self.blocks:
            if self.use_checkpoint and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, self.window_size, pretrained, use_reentrant=False)
            else:
                x = block(x, self.window_size, pretrained)
        return x


class PatchEmbed(nn.Module):
    """Non-overlapping patches → tokens, normalized."""

    def __init__(self, patch_size: Size, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        convolution: Any = nn.Conv2d if len(patch_size) == 2 else nn.Conv3d
        self.proj = convolution(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, pixels…) → (B, S…, C); a last, partial patch is filled up with zeros."""
        padding = [-side % patch for side, patch in zip(x.shape[2:], self.patch_size, strict=True)]
        if any(padding):
            x = F.pad(x, [side for p in reversed(padding) for side in (0, p)])
        return self.norm(self.proj(x).movedim(1, -1))


def initialize(module: nn.Module) -> None:
    """Draws the published initial weights of linear layers, and makes each block the identity at the start."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, SwinBlock):
            for norm in (part.norm1, part.norm2):
                nn.init.zeros_(norm.weight)
                nn.init.zeros_(norm.bias)


class SwinTransformerV2(nn.Module):
    """Swin Transformer V2: pixels in, one feature map per stage out.

    Args:
        embed_dim: channels C of the first stage; each later stage has twice its predecessor's.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: window sides in tokens: one number, one per stage, one per stage and axis, or for a backbone over
            clips the three sides (T, H, W) for all stages. A window longer than its map shrinks to the map.
        pretrained_window_size: windows that the position bias was trained with, in the same forms; None (or 0 for a
            stage) when there were none, so that the window in effect counts. Loading weights sets it.
        patch_size: pixels per token: one number for images, or (H, W), or (T, H, W) for clips.
        in_channels: channels of the input.
        mlp_ratio: hidden width of an MLP as a multiple of its channels.
        drop_path_rate: probability of dropping the last block's branches; the first has 0, between them it is linear.
        position_bias: ``LogCPB`` (Swin V2), ``LinearCPB`` or ``BiasTable`` (Swin V1).
        extra_norm_every: one more LayerNorm on the main branch after so many blocks of a stage, 0: none (H and G: 6).
        checkpoint_stages: stages, counted from 0, with activation checkpointing: their blocks are recomputed in the
            backward pass; True for all.
        attention_chunk_size: windows attended to at once, for all stages or per stage, to cap memory; 0: all.
        frozen_stages: leading stages that are not trained, the patch embedding with the first; 0: none.

    Attributes:
        channels: channels of each map.

    Raises:
        UserError: for settings that cannot be built, naming the argument.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
        *,
        pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
        patch_size: int | Sequence[int] = 4,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        position_bias: type[nn.Module] = LogCPB,
        extra_norm_every: int = 0,
        checkpoint_stages: bool | Sequence[int] = False,
        attention_chunk_size: int | Sequence[int] = 0,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        check_size(embed_dim, depths, in_channels, mlp_ratio)
        stages = len(depths)
        if len(num_heads) != stages:
            raise UserError(f"num_heads {tuple(num_heads)} must have one entry per stage, as depths {tuple(depths)}")
        self.embed_dim, self.depths, self.num_heads = embed_dim, tuple(depths), tuple(num_heads)
        self.channels = tuple(embed_dim * 2**i for i in range(stages))
        for dim, heads in zip(self.channels, num_heads, strict=True):
            if heads < 1 or dim % heads:
                raise UserError(f"num_heads: {dim} channels cannot be divided among {heads} heads")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"drop_path_rate must be in [0, 1), not {drop_path_rate}")
        if not 0 <= frozen_stages <= stages:
            raise UserError(f"frozen_stages must be between 0 and {stages}, not {frozen_stages}")
        self.patch_size: Size = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 1 or max(self.patch_size) > MOST_PATCH:
            raise UserError(
                f"patch_size must be a number, (H, W) or (T, H, W), each from 1 to {MOST_PATCH}, not {patch_size}"
            )
        self.axes = len(self.patch_size)
        self.in_channels, self.mlp_ratio, self.extra_norm_every = in_channels, mlp_ratio, extra_norm_every
        self.drop_path_rate = drop_path_rate
        self.position_bias, self.frozen_stages = position_bias, frozen_stages
        windows = expand_window(window_size, stages, self.axes)
        pretrained = expand_pretrained_window(pretrained_window_size, stages, self.axes)
        if isinstance(checkpoint_stages, bool):
            checkpoint_stages = range(stages) if checkpoint_stages else ()
        if isinstance(attention_chunk_size, int):
            attention_chunk_size = (attention_chunk_size,) * stages
        if len(attention_chunk_size) != stages or min(attention_chunk_size) < 0:
            raise UserError(f"attention_chunk_size must be 0 or more, one or {stages} numbers")
        if not set(checkpoint_stages) <= set(range(stages)):
            raise UserError(f"checkpoint_stages {tuple(checkpoint_stages)} must be among stages 0 to {stages - 1}")

        rates = torch.linspace(0, drop_path_rate, sum(depths), dtype=torch.float64, device="cpu").tolist()
        self.patch_embed = PatchEmbed(self.patch_size, in_channels, embed_dim)
        self.layers = nn.ModuleList(
            SwinStage(
                dim,
                num_heads[i],
                windows[i],
                pretrained[i],
                rates[sum(depths[:i]) : sum(depths[: i + 1])],
                downsample=i < stages - 1,
                use_checkpoint=i in checkpoint_stages,
                extra_norm_every=extra_norm_every,
                mlp_ratio=mlp_ratio,
                position_bias=position_bias,
                attention_chunk_size=attention_chunk_size[i],
            )
            for i, dim in enumerate(self.channels)
        )
        initialize(self)
        for module in self._frozen():
            module.requires_grad_(False)

    @property
    def config(self) -> dict[str, Any]:
        """What ``from_config`` needs to build this architecture again at its present windows: plain values only."""
        return {
            "embed_dim": self.embed_dim,
            "depths": list(self.depths),
            "num_heads": list(self.num_heads),
            "window_size": [list(window) for window in self.window_size],
            "pretrained_window_size": [list(w) if w else 0 for w in self.pretrained_window_size],
            "patch_size": list(self.patch_size),
            "in_channels": self.in_channels,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
            "position_bias": self.position_bias.__name__,
            "extra_norm_every": self.extra_norm_every,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SwinTransformerV2:
        """Builds the architecture that ``config`` describes; of position biases, only this package's are known."""
        biases = {bias.__name__: bias for bias in (LogCPB, LinearCPB, BiasTable)}
        name = config["position_bias"]
        if name not in biases:
            raise UserError(f"position bias {name!r} is not one of {', '.join(biases)}; build the backbone in Python")
        known = inspect.signature(cls).parameters
        if odd := [key for key in config if key not in known]:
            raise UserError(
                f"{str(odd[0])[:60]!r} is no setting of a backbone; take another checkpoint, or copy it again"
            )
        return cls(**{**config, "position_bias": biases[name]})

    @property
    def window_size(self) -> tuple[Size, ...]:
        """Window sides per stage and axis."""
        return tuple(stage.window_size for stage in self.stages)

    @property
    def pretrained_window_size(self) -> tuple[Size | None, ...]:
        """Window sides per stage and axis that the position bias was trained with; None where there were none."""
        return tuple(stage.pretrained_window_size for stage in self.stages)

    @property
    def strides(self) -> tuple[int | Size, ...]:
        """Input pixels per cell of each map, from the largest map to the smallest; a tuple where axes differ."""
        space = [tuple(p * 2**i for p in self.patch_size[-2:]) for i in range(len(self.depths))]
        if self.axes == 3:
            return tuple((self.patch_size[0], *stride) for stride in space)
        return tuple(stride[0] if stride[0] == stride[1] else stride for stride in space)

    def set_window(self, window_size: WindowSize) -> None:
        """Changes the windows of a live model, as if it had been built so; pre-training windows stay.

        A model that knows no pre-training windows takes its new window in effect as the range of its position bias;
        to transfer a model trained here, first fix them with ``set_pretrained_window(effective_windows(size))``.
        """
        windows = expand_window(window_size, len(self.depths), self.axes)
        for stage, window in zip(self.stages, windows, strict=True):
            for block in cast(list[SwinBlock], stage.blocks):
                cast(BiasTable, block.attn.cpb_mlp).set_window(window)  # the first to refuse leaves all unchanged
        for stage, window in zip(self.stages, windows, strict=True):
            stage.window_size = window

    def set_pretrained_window(self, pretrained_window_size: WindowSize | Sequence[Size | None] | None) -> None:
        """Fixes the windows that the position bias was trained with; None where there were none."""
        windows = expand_pretrained_window(pretrained_window_size, len(self.depths), self.axes)
        for stage, window in zip(self.stages, windows, strict=True):
            stage.pretrained_window_size = window

    def effective_windows(self, image_size: int | Sequence[int]) -> tuple[Size, ...]:
        """Window sides per stage and axis at an input of ``image_size`` pixels (a number or one per axis)."""
        pixels = (image_size,) * self.axes if isinstance(image_size, int) else tuple(image_size)
        size = [-(-side // patch) for side, patch in zip(pixels, self.patch_size, strict=True)]
        windows = []
        for stage in self.stages:
            windows.append(effective_window(tuple(size), stage.window_size))
            size[-2:] = [-(-side // 2) for side in size[-2:]]
        return tuple(windows)

    @property
    def stages(self) -> list[SwinStage]:
        """The stages, from the finest map to the coarsest: ``layers`` by its type."""
        return cast(list[SwinStage], list(self.layers))

    def _frozen(self) -> list[nn.Module]:
        return [self.patch_embed, *self.layers[: self.frozen_stages]] if self.frozen_stages else []

    def train(self, mode: bool = True) -> SwinTransformerV2:
        """Switches between training and evaluation; frozen stages stay in evaluation."""
        super().train(mode)
        for module in self._frozen():
            module.eval()  # no drop path in stages that do not learn
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> list[Tensor]:
        """Feature maps of all stages.

        Args:
            x: images (B, channels, H, W) or clips (B, channels, T, H, W), normalized; any size of at least one patch.
            mask: bool (B, S…), True for each token of the patch embedding that ``mask_token`` takes the place of
                (SimMIM, https://arxiv.org/abs/2111.09886); None: all stay.
            mask_token: (1, 1, C), what is put there.

        Returns:
            One map per stage (B, C·2ⁱ, ⌈side/stride⌉…), before the stage's downsample and without a norm.

        Raises:
            UserError: when the number of axes is wrong or a side is shorter than a patch.
        """
        if x.dim() != self.axes + 2:
            raise UserError(f"expected {self.axes + 2} axes (batch, channels, {self.axes} sides), got {tuple(x.shape)}")
        if any(side < patch for side, patch in zip(x.shape[2:], self.patch_size, strict=True)):
            raise UserError(
                f"input of {tuple(x.shape[2:])} pixels is smaller than one patch of {self.patch_size}; "
                "give larger images (data.image_size)"
            )
        maps = []
        x = self.patch_embed(x)
        if mask is not None and mask_token is not None:
            x = torch.where(mask[..., None], mask_token.view(-1).to(x.dtype), x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x.movedim(-1, 1))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


def to_autocast_type(x: Tensor) -> Tensor:
    """The tensor in the type that autocast, where it is on, gives to linear layers."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


MOST_BLOCKS = 1000
"""Of a network; the largest that is published, SwinV2-G, has 50."""

MOST_STAGES = 16
"""Of a network; each halves the map and doubles its channels."""

MOST_WEIGHTS = 10**10
"""Of a network, 40 GB; SwinV2-G has 3 · 10⁹."""

MOST_IN_CHANNELS = 4096
"""Of images; those of hyperspectral cameras have hundreds."""

MOST_PATCH = 256
"""Pixels of a side of a patch."""


def check_size(embed_dim: int, depths: Sequence[int], in_channels: int, mlp_ratio: float) -> None:
    """Refuses a network that nothing could be computed with, before its blocks are made.

    Raises:
        UserError: it has no block or no channel, or more blocks or weights than any.
    """
    has_blocks = 0 < len(depths) <= MOST_STAGES and min(depths) >= 0 and sum(depths) <= MOST_BLOCKS
    if not has_blocks or embed_dim < 1 or not 1 <= in_channels <= MOST_IN_CHANNELS:
        raise UserError(
            f"depths {shorten(depths)}, embed_dim {shorten(embed_dim)}, in_channels {shorten(in_channels)}: expected "
            f"up to {MOST_BLOCKS} blocks in up to {MOST_STAGES} stages, and 1 to {MOST_IN_CHANNELS} input channels"
        )
    # Of a block with C channels, attention has 4 C² weights and the MLP twice its ratio.
    widths = [embed_dim * 2**stage for stage in range(len(depths))]
    weights = sum(depth * width**2 * (4 + 2 * mlp_ratio) for depth, width in zip(depths, widths, strict=True))
    if weights > MOST_WEIGHTS:
        raise UserError(
            f"depths {shorten(depths)}, embed_dim {shorten(embed_dim)}, mlp_ratio {mlp_ratio:g}: the network would "
            f"have more than {MOST_WEIGHTS:,} weights"
        )


def expand_window(window_size: WindowSize, stages: int, axes: int, argument: str = "") -> tuple[Size, ...]:
    """Window sides per stage and axis from any of the forms of ``WindowSize``.

    Args:
        window_size: one of the forms.
        stages: number of stages.
        axes: number of axes.
        argument: the argument and its value as a message is to call them, when they are not ``window_size``'s.

    Raises:
        UserError: for a side below 1, a wrong number of entries, or a list that could mean stages as well as axes.
    """
    argument = argument or f"window_size {window_size}"
    if not isinstance(window_size, int | list | tuple):
        raise UserError(f"{argument} must be one number, one entry per stage ({stages}) or per axis ({axes})")
    entries: list[Any] = [window_size] * stages if isinstance(window_size, int) else list(window_size)
    if len(entries) == axes and all(isinstance(entry, int) for entry in entries):
        if axes == stages and len(set(entries)) > 1:
            raise UserError(f"{argument} could mean stages or axes here; give one list per stage")
        entries = [entries] * stages
    if len(entries) != stages:
        raise UserError(f"{argument} must be one number, one entry per stage ({stages}) or per axis ({axes})")
    windows = tuple(tuple(entry) if isinstance(entry, list | tuple) else (entry,) * axes for entry in entries)
    for window in windows:
        if len(window) != axes or not all(type(side) is int and side >= 1 for side in window):
            raise UserError(f"{argument}: every side must be a whole number of at least 1 token")
    return windows


def expand_pretrained_window(
    pretrained: WindowSize | Sequence[Size | None] | None, stages: int, axes: int
) -> tuple[Size | None, ...]:
    """As ``expand_window``, with None or 0 where a stage has no pre-training window."""
    if pretrained is None or pretrained == 0:
        return (None,) * stages
    argument = f"pretrained_window_size {pretrained}"
    if isinstance(pretrained, int):
        return expand_window(pretrained, stages, axes, argument)
    entries: list[Any] = [entry or 1 for entry in pretrained]  # 1 stands in where there was none
    windows = expand_window(entries, stages, axes, argument)
    if len(pretrained) != stages:
        return windows
    return tuple(window if entry else None for window, entry in zip(windows, pretrained, strict=True))

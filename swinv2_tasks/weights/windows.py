"""The windows that a checkpoint was trained with: read from it, and written into it.

https://arxiv.org/abs/2111.09883, section 3.3: the position bias is a function of offsets divided by (W − 1), where W is
the window of pre-training, per stage and axis. A model that is fine-tuned at a larger window keeps its W, so W can
differ from the window M last trained with; files without a statement of their own must be told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_tasks.backbone.position_bias import LogCPB, relative_position_index
from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2, WindowSize
from swinv2_tasks.backbone.window import Size, WindowGrid, attention_mask
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights.files import Checkpoint
from swinv2_tasks.weights.formats import State, Variant

ImageSize = int | Sequence[int]
"""Pixels: one number, or one per axis (H, W) or (T, H, W)."""


@dataclass(frozen=True)
class Windows:
    """Windows per stage and axis, in tokens.

    Attributes:
        effective: M, in effect at the size that the checkpoint was last trained at.
        pretrained: W, whose range its position bias was trained on.
    """

    effective: tuple[Size, ...]
    pretrained: tuple[Size, ...]

    def record(self) -> dict[str, list[list[int]]]:
        """What a checkpoint of this package keeps under ["swinv2_tasks"]["windows"]."""
        return {"effective": [list(w) for w in self.effective], "pretrained": [list(w) for w in self.pretrained]}


def windows_of(backbone: SwinTransformerV2, image_size: ImageSize | None = None) -> Windows:
    """The windows of a live backbone, at an input size; without one, its windows as set."""
    effective = backbone.window_size if image_size is None else backbone.effective_windows(image_size)
    pairs = zip(backbone.pretrained_window_size, effective, strict=True)
    return Windows(effective, tuple(pretrained or window for pretrained, window in pairs))


def windows_at(
    variant: Variant, window_size: WindowSize, image_size: ImageSize, pretrained: Sequence[Any] = ()
) -> Windows:
    """A variant's windows, with ``window_size`` set, at ``image_size``; ``pretrained`` 0 means those in effect."""
    try:
        backbone = backbone_on_meta_device(variant, window_size)
        backbone.set_pretrained_window(tuple(pretrained) or None)
        return windows_of(backbone, image_size)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"window_size {window_size} and image_size {image_size} do not go together: {error}") from error


def backbone_on_meta_device(
    variant: Variant, window_size: WindowSize, position_bias: type[nn.Module] = LogCPB
) -> SwinTransformerV2:
    """The variant's backbone on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        return SwinTransformerV2(
            variant.embed_dim,
            variant.depths,
            variant.num_heads,
            window_size,
            patch_size=variant.patch_size,
            in_channels=variant.in_channels,
            mlp_ratio=variant.mlp_ratio,
            extra_norm_every=variant.extra_norm_every,
            position_bias=position_bias,
        )


def find_windows(checkpoint: Checkpoint, state: Mapping[str, Tensor], variant: Variant) -> tuple[Windows, str] | None:
    """The windows that a checkpoint states, and where; None when it states none.

    Args:
        checkpoint: as read.
        state: its tensors under official names, buffers included.
        variant: what ``state`` is.

    Raises:
        UserError: when a statement cannot be made sense of.
    """
    try:
        return (
            _from_record(checkpoint, variant)
            or _from_coordinate_tables(state, variant)
            or _from_bias_tables(state, variant)
            or _from_huggingface_config(checkpoint.config, variant)
            or _from_timm_config(checkpoint.config, variant)
            or _from_yacs_config(checkpoint.contents, variant)
        )
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise UserError(f"{checkpoint.source}: its windows cannot be read: {error}") from error


def _from_record(checkpoint: Checkpoint, variant: Variant) -> tuple[Windows, str] | None:
    record = checkpoint.record.get("windows")
    if record is None:
        return None
    sizes = [tuple(tuple(map(int, window)) for window in record[key]) for key in ("effective", "pretrained")]
    for windows in sizes:
        backbone_on_meta_device(variant, windows)  # refuses wrong counts
    return Windows(*sizes), "the checkpoint's own record"


def _from_coordinate_tables(state: Mapping[str, Tensor], variant: Variant) -> tuple[Windows, str] | None:
    tables = [state.get(f"layers.{i}.blocks.0.attn.relative_coords_table") for i in range(len(variant.depths))]
    effective, pretrained = [], []
    for table in tables:
        if table is None:
            return None
        window = tuple((side + 1) // 2 for side in table.shape[1:-1])  # table: (1, 2M−1…, axes)
        largest = table.double().flatten(0, -2).amax(0).tolist()
        effective.append(window)
        pretrained.append(tuple(_pretraining_side(*pair) for pair in zip(window, largest, strict=True)))
    return Windows(tuple(effective), tuple(pretrained)), "its coordinate tables"


def _pretraining_side(side: int, largest: float) -> int:
    """W from the largest coordinate v = log₂(8·(M−1)/(W−1) + 1)/log₂ 8 of one axis of a table for windows of M."""
    if side == 1:
        return 1  # the only offset is 0, whatever W was
    exact = 1 + 8 * (side - 1) / (2 ** (3 * largest) - 1) if largest > 0 else math.nan
    # Half-precision tables carry a relative error of about 0.5 %.
    if not abs(exact - round(exact) if math.isfinite(exact) else math.nan) < 0.25:
        raise ValueError(f"a coordinate table for window {side} reaches {largest:.4f}, which no whole window explains")
    return round(exact)


def _from_bias_tables(state: Mapping[str, Tensor], variant: Variant) -> tuple[Windows, str] | None:
    tables = [state.get(f"layers.{i}.blocks.0.attn.relative_position_bias_table") for i in range(len(variant.depths))]
    if any(table is None for table in tables):
        return None
    if len(variant.patch_size) > 2:  # of a clip's table nobody can say which side is time
        return None
    windows = tuple(square_table_window(len(table)) for table in tables if table is not None)
    return Windows(windows, windows), "its bias tables"


def square_table_window(rows: int) -> Size:
    """The square window (M, M) of a bias table with (2M−1)² rows.

    Raises:
        ValueError: when no square window has that many.
    """
    side = math.isqrt(rows)
    if side**2 != rows or side % 2 == 0:
        raise ValueError(f"a bias table of {rows} rows fits no square window")
    return ((side + 1) // 2,) * 2


def _from_huggingface_config(config: Mapping[str, Any], variant: Variant) -> tuple[Windows, str] | None:
    # UPerNet's config, like that of other models on a backbone, holds the backbone's.
    config = config.get("backbone_config") or config
    if config.get("model_type") != "swinv2":
        return None
    pretrained = config.get("pretrained_window_sizes") or ()
    return windows_at(variant, config["window_size"], config["image_size"], pretrained), "config.json"


_TIMM_NAME = re.compile(r"swinv2_[a-z]+_window(?P<first>\d+)(?:to(?P<last>\d+))?_(?P<from>\d+)(?:to(?P<to>\d+))?")


def _from_timm_config(config: Mapping[str, Any], variant: Variant) -> tuple[Windows, str] | None:
    """From a timm name: window8_256, or window12to16_192to256 for a model fine-tuned at a larger window."""
    match = _TIMM_NAME.match(str(config.get("architecture", "")))
    if not match:
        return None
    first = windows_at(variant, int(match["first"]), int(match["from"]))
    model_args = config.get("model_args") or {}
    window = model_args.get("window_size", int(match["last"] or match["first"]))
    image = model_args.get("img_size", int(match["to"] or match["from"]))
    pretrained = model_args.get("pretrained_window_sizes", first.effective if match["last"] else ())
    return windows_at(variant, window, image, pretrained), f"its config.json ({match[0]})"


def _from_yacs_config(contents: Mapping[str, Any], variant: Variant) -> tuple[Windows, str] | None:
    config = contents.get("config")
    if not isinstance(config, Mapping) or "SWINV2" not in config.get("MODEL", {}):
        return None
    model = config["MODEL"]["SWINV2"]
    pretrained = model.get("PRETRAINED_WINDOW_SIZES", ())
    return windows_at(variant, model["WINDOW_SIZE"], config["DATA"]["IMG_SIZE"], pretrained), "its pickled config"


def position_buffers(windows: Windows, variant: Variant, image_size: ImageSize | None) -> State:
    """The buffers that the official code keeps beside the weights, under official names.

    Per block ``attn.relative_coords_table`` (1, 2M−1…, axes) float32 and ``attn.relative_position_index`` (N, N) int64
    with N = ∏M tokens; with an image size also, in shifted blocks, ``attn_mask`` (nW, N, N) float32 of 0 and −100.
    """
    cpu = torch.device("cpu")
    buffers: State = {}
    for stage, (window, pretrained) in enumerate(zip(windows.effective, windows.pretrained, strict=True)):
        coordinates = official_coordinates(window, pretrained)
        index = relative_position_index(window, cpu).view(math.prod(window), -1)
        mask = _official_mask(window, _map_sides(image_size, variant.patch_size, stage)) if image_size else None
        for block in range(variant.depths[stage]):
            prefix = f"layers.{stage}.blocks.{block}"
            buffers[f"{prefix}.attn.relative_coords_table"] = coordinates.clone()
            buffers[f"{prefix}.attn.relative_position_index"] = index.clone()
            if mask is not None and block % 2 == 1:
                buffers[f"{prefix}.attn_mask"] = mask.clone()
    return buffers


def official_coordinates(window: Size, pretrained: Size) -> Tensor:
    """Log-spaced offsets (1, 2M−1…, axes), float32 in the published order of operations, so that every bit agrees."""
    axes = [
        torch.arange(-(m - 1), m, dtype=torch.float32) / max(w - 1, 1) for m, w in zip(window, pretrained, strict=True)
    ]
    table = 8 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None]
    return table.sign() * torch.log2(table.abs() + 1) / math.log2(8)


def _map_sides(image_size: ImageSize, patch_size: Size, stage: int) -> Size:
    pixels = (image_size,) * len(patch_size) if isinstance(image_size, int) else tuple(image_size)
    size = [-(-side // patch) for side, patch in zip(pixels, patch_size, strict=True)]
    return (*size[:-2], *(-(-side // 2**stage) for side in size[-2:]))


def _official_mask(window: Size, size: Size) -> Tensor | None:
    grid = WindowGrid.fit(size, window, shifted=True)
    # The official code makes none without a shift, and cannot be built at all where windows do not fit the map.
    if not any(grid.shift) or grid.padded != grid.size:
        return None
    return torch.where(attention_mask(grid, torch.device("cpu")), 0.0, -100.0)


def huggingface_config(
    windows: Windows, variant: Variant, state: Mapping[str, Tensor], image_size: ImageSize | None
) -> dict[str, Any]:
    """config.json of a Hugging Face model that computes what ``state`` (official names) at ``windows`` does.

    Raises:
        UserError: where its one square window and image size cannot say the same.
    """
    image = _square_image(windows, variant) if image_size is None else image_size
    window = max(map(max, windows.effective))
    expected = windows_at(variant, window, image).effective
    if expected != windows.effective or any(len(set(w)) > 1 for w in (*windows.effective, *windows.pretrained)):
        raise UserError(
            "the huggingface format holds one square window for all stages and an image size; it cannot say "
            f"{json.dumps(windows.record())}. Set one square window, or name the image size."
        )
    pairs = zip(windows.effective, windows.pretrained, strict=True)
    config = {
        "model_type": "swinv2",
        "architectures": ["Swinv2Model"],
        "image_size": image if isinstance(image, int) else list(image),
        "patch_size": variant.patch_size[0] if len(set(variant.patch_size)) == 1 else list(variant.patch_size),
        "num_channels": variant.in_channels,
        "embed_dim": variant.embed_dim,
        "depths": list(variant.depths),
        "num_heads": list(variant.num_heads),
        "num_layers": len(variant.depths),
        "hidden_size": variant.embed_dim * 2 ** (len(variant.depths) - 1),
        "window_size": window,
        "pretrained_window_sizes": [0 if now == before else before[0] for now, before in pairs],
        "mlp_ratio": variant.mlp_ratio,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    if "decoder.0.weight" in state:
        config["architectures"] = ["Swinv2ForMaskedImageModeling"]
        config["encoder_stride"] = math.isqrt(len(state["decoder.0.weight"]) // variant.in_channels)
    elif "head.weight" in state:
        labels = range(len(state["head.weight"]))
        config["architectures"] = ["Swinv2ForImageClassification"]
        config["id2label"] = {str(label): f"LABEL_{label}" for label in labels}
        config["label2id"] = {f"LABEL_{label}": label for label in labels}
    return config


def _square_image(windows: Windows, variant: Variant) -> int:
    """The smallest image at which a square window gives ``windows``: 256 for 16,16,16,8."""
    window = max(map(max, windows.effective))
    clamped = [max(side) * 2**stage for stage, side in enumerate(windows.effective) if max(side) < window]
    return max(variant.patch_size) * (clamped[0] if clamped else window * 2 ** (len(windows.effective) - 1))


def show_window(window: Size) -> str:
    """A window in text: 8×8."""
    return "×".join(map(str, window))


def show_windows(windows: Iterable[Size]) -> str:
    """The windows of several stages in text."""
    return ", ".join(map(show_window, windows))

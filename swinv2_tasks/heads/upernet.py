"""UPerNet and the auxiliary FCN head, from four feature maps to class logits.

UPerNet: https://arxiv.org/abs/1807.10221, section 3.1; pyramid pooling: https://arxiv.org/abs/1612.01105, section 3.2;
FCN: https://arxiv.org/abs/1411.4038.

Departure from the published code, with equal results: a convolution over maps that are first enlarged to one size is
computed mostly at their own sizes (``conv_over_enlarged``), which saves half of the decoder's operations.

Shapes: B batch, C channels, O output channels, K classes, h, w height and width of a map, H, W of the largest map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.backbone.plain_modules import is_plain
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.batch_norm import BatchNorm2d
from swinv2_tasks.heads.decoder import Decoder
from swinv2_tasks.heads.fpn import MapNorms
from swinv2_tasks.outside_files import shorten


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """A map (B, C, h, w), or several that are enlarged to the first one's size and concatenated → (B, O, H, W)."""
        conv, norm, relu = self
        if isinstance(x, Tensor):
            return relu(norm(conv(x)))
        if is_plain(conv):
            return relu(norm(conv_over_enlarged(x, conv.get_parameter("weight"))))
        # Hooks and adapters of the convolution are to see its input: the enlarged maps themselves.
        largest = x[0].shape[2:]
        enlarged = [x[0], *(enlarge(smaller, largest) for smaller in x[1:])]
        return relu(norm(conv(torch.cat(enlarged, dim=1))))


class UPerNetHead(nn.Module):
    """Pyramid pooling of the last map, a feature pyramid over all, and a classifier on the pyramid's levels together.

    Args:
        in_channels: channels of each map, from the largest map to the smallest.
        num_classes: number of classes K.
        channels: channels of every level.
        pool_scales: sides of the pooled maps, in cells.
        dropout: probability of dropping a channel before the classifier, in training.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise UserError(f"UPerNet needs at least two feature maps, this backbone gives {len(in_channels)}")
        self.pool_scales = tuple(pool_scales)
        self.pools = nn.ModuleList(ConvNormReLU(in_channels[-1], channels, 1) for _ in pool_scales)
        self.pyramid = ConvNormReLU(in_channels[-1] + len(self.pool_scales) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvNormReLU(width, channels, 1) for width in in_channels[:-1])
        self.smooths = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in in_channels[:-1])
        self.fuse = ConvNormReLU(len(in_channels) * channels, channels, 3)
        self.classifier = _classifier(channels, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) from the largest to the smallest → logits (B, K, H, W) at the size of the largest."""
        pooled = [pool(average_pool(maps[-1], side)) for pool, side in zip(self.pools, self.pool_scales, strict=True)]
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pyramid([maps[-1], *pooled]))
        for k in range(len(levels) - 2, -1, -1):
            levels[k] = levels[k] + enlarge(levels[k + 1], levels[k].shape[2:])
        smooth = [conv(x) for conv, x in zip(self.smooths, levels[:-1], strict=True)]
        return self.classifier(self.fuse([*smooth, levels[-1]]))


class UPerNet(Decoder):
    """The settings of ``UPerNetHead``.

    Args:
        channels: channels of every level.
        pool_scales: sides of the pooled maps, in cells.
    """

    def __init__(self, channels: int = 512, pool_scales: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        if channels < 1 or not 1 <= len(pool_scales) <= 32 or min(pool_scales) < 1:
            raise UserError(
                f"UPerNet: channels is {channels}, pool_scales {shorten([*pool_scales])}; expected numbers of at least "
                "1, and of pool_scales at most 32"
            )
        self.channels, self.pool_scales = channels, tuple(pool_scales)

    def build(self, in_channels: Sequence[int], num_classes: int, dropout: float) -> UPerNetHead:
        """The UPerNet on maps of these channels."""
        return UPerNetHead(in_channels, num_classes, self.channels, self.pool_scales, dropout)


class FCNHead(nn.Module):
    """One convolution and a classifier on a single map: the auxiliary loss of training.

    Args:
        in_channels: channels of the map.
        num_classes: number of classes K.
        channels: channels of the convolution.
        dropout: probability of dropping a channel before the classifier, in training.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = ConvNormReLU(in_channels, channels, 3)
        self.classifier = _classifier(channels, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, C, h, w) → logits (B, K, h, w)."""
        return self.classifier(self.conv(x))


class SegmentationHead(nn.Module):
    """Norms of a backbone's maps, if any, a decoder on them, and in training an FCN on the last map but one.

    Args:
        in_channels: channels of each map, ``backbone.channels``.
        num_classes: number of classes K.
        decoder: what builds the decoder.
        dropout: probability of dropping a channel before the classifiers, in training.
        auxiliary_channels: channels of the FCN; 0 leaves it out.
        map_norms: whether a LayerNorm of its own comes before each map; transformers' UPerNet has none on Swin V2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        decoder: Decoder,
        dropout: float,
        auxiliary_channels: int,
        map_norms: bool = True,
    ) -> None:
        super().__init__()
        self.norms = MapNorms(in_channels) if map_norms else None
        self.decoder = decoder.build(in_channels, num_classes, dropout)
        self.auxiliary = (
            FCNHead(in_channels[-2], num_classes, auxiliary_channels, dropout) if auxiliary_channels else None
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) from the largest to the smallest → logits (B, K, H, W) at the size of the largest."""
        return self.decoder(self._normalize(maps))

    def with_auxiliary(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The same, and the FCN's logits (B, K, h, w) of the last map but one."""
        maps = self._normalize(maps)
        return self.decoder(maps), None if self.auxiliary is None else self.auxiliary(maps[-2])

    def _normalize(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        return maps if self.norms is None else self.norms(maps)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to a size (H, W), with pixels as areas (``align_corners=False``)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def average_pool(x: Tensor, side: int) -> Tensor:
    """Means over a grid of side × side cells that cover a map (B, C, h, w) → (B, C, side, side).

    ``F.adaptive_avg_pool2d`` by matrices: its gradient on a GPU is not deterministic, and so refused where
    ``trainer.deterministic`` asks for what is.
    """
    rows, columns = (F.adaptive_avg_pool1d(torch.eye(n, device=x.device), side).to(x.dtype) for n in x.shape[2:])
    return rows.T @ x @ columns


def conv_over_enlarged(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """A 3×3 convolution, zero-padded by 1, of maps enlarged to the first one's size and concatenated.

    Enlarging and convolving are linear, so their order can be exchanged. A map is first multiplied with the kernel's
    nine parts at its own size; then each axis is enlarged, shifted by the part's offset and summed over the parts, by
    one small matrix. Of an enlarged map's pixels most are computed from the same few products, which saves the more the
    smaller the map is.

    Args:
        maps: (B, C, h, w) each, the first one (B, C, H, W).
        weight: (O, ΣC, 3, 3).

    Returns:
        (B, O, H, W).
    """
    size = maps[0].shape[2:]
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    out = F.conv2d(maps[0], weights[0], padding=1)
    for x, map_weight in zip(maps[1:], weights[1:], strict=True):
        out = out + _convolve_enlarged(x, map_weight, size)
    return out


def _convolve_enlarged(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """A 3×3 convolution (O, C, 3, 3) of one map (B, C, h, w), as if it were enlarged to a size (H, W): (B, O, H, W)."""
    batch, _, height, width = x.shape
    large_height, large_width = size

    # At the map's own size: of each position the products with all nine parts, (B, 3, h·w, 3·O). The part's row comes
    # before the position, the part's column after it, so that each axis below is one matrix product.
    kernel = weight.permute(2, 1, 3, 0).flatten(2)  # (3, C, 3·O)
    positions = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, h·w, C)
    products = positions @ kernel

    # Down: every output row is a sum over the three parts and the map's rows.
    down = _enlarge_and_shift(height, large_height, x).transpose(0, 1).flatten(1)  # (H, 3·h)
    tall = down @ products.view(batch, 3 * height, -1)  # (B, H, w·3·O)

    # Across: every output column is a sum over the map's columns and the three parts.
    across = _enlarge_and_shift(width, large_width, x).permute(1, 2, 0).flatten(1)  # (W, w·3)
    wide = across @ tall.view(batch, large_height, 3 * width, -1)  # (B, H, W, O)
    return wide.permute(0, 3, 1, 2)


def _enlarge_and_shift(small: int, large: int, like: Tensor) -> Tensor:
    """Matrices (3, large, small) that enlarge an axis linearly and shift the result by −1, 0 and 1, zeros beyond."""
    unit = torch.eye(small, device=like.device)
    matrix = F.interpolate(unit[None], size=large, mode="linear", align_corners=False)[0].T
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.stack([padded[k : k + large] for k in range(3)]).to(like.dtype)


def _classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return nn.Sequential(nn.Dropout2d(dropout), conv)

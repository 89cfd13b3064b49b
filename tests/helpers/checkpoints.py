"""Small models and checkpoints for the tests of weights: random parameters, files as the authors write them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2


class Classifier(nn.Module):
    """A backbone and a head with the attribute names of the classification task."""

    def __init__(self, backbone: SwinTransformerV2, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(backbone.channels[-1])
        self.head.fc = nn.Linear(backbone.channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        last = self.backbone(x)[-1]
        return self.head.fc(self.head.norm(last.flatten(2).mT).mean(1))


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every parameter: zero-initialized norms would hide the blocks that they close.

    Logit scales go to both sides of the limit log 100; position networks are steep, so that each offset differs.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if name.endswith("logit_scale"):
            p.copy_(math.log(20) + noise)
        elif "cpb_mlp" in name or "position_bias_mlp" in name:
            p.copy_(noise if p.dim() == 1 or p.shape[1] <= 3 else noise / 8)
        elif p.dim() == 1:
            p.copy_((1 if name.endswith("weight") else 0) + 0.3 * noise)
        else:
            p.copy_(noise / math.sqrt(p[0].numel()))
    return module


def coordinate_table(
    window: tuple[int, int], pretrained: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Paper, section 3.3: offsets relative to the pre-training window's edge, ×8, log-spaced; (1, 2M−1, 2M−1, 2)."""
    axes = [torch.arange(-(m - 1), m, dtype=dtype) / (w - 1) * 8 for m, w in zip(window, pretrained, strict=True)]
    logs = [torch.sign(axis) * torch.log2(axis.abs() + 1) / math.log2(8) for axis in axes]
    return torch.stack(torch.meshgrid(*logs, indexing="ij"), dim=-1)[None]


DEPTHS, HEADS, CHANNELS = (2, 1, 1, 1), (1, 2, 4, 8), 8
"""A Swin V2 small enough to be written by hand."""


def tiny_backbone(window: object = 4, **kwargs: object) -> SwinTransformerV2:
    return SwinTransformerV2(CHANNELS, DEPTHS, HEADS, window, **kwargs)


def official_state(
    windows: tuple[int, ...] = (4, 4, 4, 4), pretrained: tuple[int, ...] | None = None, classes: int = 5
) -> dict[str, Tensor]:
    """What the authors' code saves for the tiny model, names and shapes written out from their published layout."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (CHANNELS, 3, 4, 4),
        "patch_embed.proj.bias": (CHANNELS,),
        "patch_embed.norm.weight": (CHANNELS,),
        "patch_embed.norm.bias": (CHANNELS,),
    }
    buffers = {}
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        d = CHANNELS * 2**i
        for j in range(depth):
            block = {
                "norm1.weight": (d,),
                "norm1.bias": (d,),
                "attn.logit_scale": (heads, 1, 1),
                "attn.q_bias": (d,),
                "attn.v_bias": (d,),
                "attn.cpb_mlp.0.weight": (512, 2),
                "attn.cpb_mlp.0.bias": (512,),
                "attn.cpb_mlp.2.weight": (heads, 512),
                "attn.qkv.weight": (3 * d, d),
                "attn.proj.weight": (d, d),
                "attn.proj.bias": (d,),
                "norm2.weight": (d,),
                "norm2.bias": (d,),
                "mlp.fc1.weight": (4 * d, d),
                "mlp.fc1.bias": (4 * d,),
                "mlp.fc2.weight": (d, 4 * d),
                "mlp.fc2.bias": (d,),
            }
            shapes |= {f"layers.{i}.blocks.{j}.{name}": shape for name, shape in block.items()}
            m = windows[i]
            prefix = f"layers.{i}.blocks.{j}.attn"
            buffers[f"{prefix}.relative_coords_table"] = coordinate_table((m, m), ((pretrained or windows)[i],) * 2)
            buffers[f"{prefix}.relative_position_index"] = _position_index(m)
        if i < 3:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * d, 4 * d)
            shapes[f"layers.{i}.downsample.norm.weight"] = (2 * d,)
            shapes[f"layers.{i}.downsample.norm.bias"] = (2 * d,)
    last = CHANNELS * 8
    shapes |= {"norm.weight": (last,), "norm.bias": (last,)}
    shapes |= {"head.weight": (classes, last), "head.bias": (classes,)}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | buffers


def _position_index(m: int) -> Tensor:
    """For tokens a and b of an M×M window the row of their offset among (2M−1)² in reading order."""
    row, column = torch.arange(m * m) // m, torch.arange(m * m) % m
    rows, columns = row[:, None] - row + m - 1, column[:, None] - column + m - 1
    return rows * (2 * m - 1) + columns


def simmim_state(windows: tuple[int, ...] = (4, 4, 4, 4)) -> dict[str, Tensor]:
    """What the authors' masked pre-training saves: an encoder without a head, a mask token and a decoder."""
    own = {name: value for name, value in official_state(windows).items() if not name.startswith("head.")}
    renamed = {f"encoder.{name.replace('cpb_mlp', 'rpe_mlp')}": value for name, value in own.items()}
    generator = torch.Generator().manual_seed(2)
    extra = {
        "encoder.mask_token": (1, 1, CHANNELS),
        "decoder.0.weight": (3072, CHANNELS * 8, 1, 1),
        "decoder.0.bias": (3072,),
    }
    return renamed | {name: torch.randn(shape, generator=generator) for name, shape in extra.items()}


def write_randomized(path: Path, run: Path, task: nn.Module) -> Path:
    """A run's last checkpoint with random weights, which are wrong about many samples."""
    contents = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    contents["state_dict"] = randomize(task).state_dict()
    torch.save(contents, path)
    return path

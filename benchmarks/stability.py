"""Do res-post-norm and cosine attention keep activations small and training steady as a Swin Transformer grows?

    python -m benchmarks.stability [--data FOLDER] [--seeds 3] [--output runs/stability] [--reduced]

https://arxiv.org/abs/2111.09883, section 3.2, figure 2 and table 6, at the smallest scale: three types of blocks at
several depths, widths and learning rates, from scratch on small images. They differ in what the section changes and in
nothing else; position bias (log-spaced), downsampling and the order of batches are the same, and so are, by seed, the
values that the linear layers start from.

* pre-norm: x + f(norm(x)), dot-product attention, norms that start at 1, as in Swin V1.
* res-post-norm: x + norm(f(x)), dot-product attention, norms that start at 0, as published for V2.
* res-post-norm + cosine: the package's own blocks.

Training is AdamW at a constant learning rate without warmup and clipping, which would hide what is looked for. Measured
of each run, into files that a later start does not make again:

* amplitude: standard deviation, over images, tokens and channels, of the main branch after each block, at the start and
  at the end, on held-out images in eval mode. The downsample between stages ends in a norm, which resets all to 1.
* spikes: losses that the package's SpikeDetector calls out of the ordinary, which it can from the 33rd step on.
* whether a loss was not finite, which ends the run; the mean loss of the last steps; top-1 on the held-out images.

The folder given by --data is laid out like ImageNet; without it the classification part of the sample data is drawn.
Written are runs.csv, amplitudes.csv, table.md and stability.png; in the table stand means ± standard deviations over
seeds.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.measuring import parse_settings
from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.attention import WindowAttention
from swinv2_tasks.backbone.swin_v2 import SwinBlock
from swinv2_tasks.backbone.window import Size
from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.sample_data.writer import write_sample_data
from swinv2_tasks.training.guard import SpikeDetector
from swinv2_tasks.training.optim import NO_WEIGHT_DECAY, parameter_groups

PRE_NORM, RES_POST_NORM, COSINE = BLOCK_TYPES = ("pre-norm", "res-post-norm", "res-post-norm + cosine")
COLORS = dict(zip(BLOCK_TYPES, ("tab:red", "tab:orange", "tab:blue"), strict=True))
STYLES = ("-", "--", ":", "-.")
LAST_STEPS = 20
"""Steps at the end whose mean loss is the final loss."""
HEAD_WIDTH, WINDOW, WEIGHT_DECAY, LABEL_SMOOTHING = 16, 4, 0.05, 0.1


class DotProductAttention(WindowAttention):
    """softmax(q·k/√D + bias)·v within windows, over the parts of a cosine attention but for its temperature.

    Keys have no bias here either: it would add the same to all logits of a query.
    """

    def __init__(self, attention: WindowAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads = attention.num_heads
        self.cpb_mlp, self.qkv, self.proj = attention.cpb_mlp, attention.qkv, attention.proj
        self.q_bias, self.v_bias = attention.q_bias, attention.v_bias
        self._cached_bias = None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, W, H, N, D) each
        return self.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(2, 3).flatten(3))


class PreNormBlock(nn.Module):
    """A block whose branches are normalized on their way in, and join the main branch as they come out."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        self.block = block
        for norm in (block.norm1, block.norm2):
            nn.init.ones_(norm.weight)

    def forward(self, x: Tensor, window: Size, pretrained_window: Size) -> Tensor:
        block = self.block
        x = x + block.drop_path(block.attend(block.norm1(x), window, pretrained_window))
        return x + block.drop_path(block.mlp(block.norm2(x)))


def change_blocks(backbone: SwinTransformerV2, block_type: str) -> SwinTransformerV2:
    """Makes the blocks of a live backbone those of a type."""
    for stage in backbone.layers:
        for index, block in enumerate(stage.blocks):
            if block_type != COSINE:
                block.attn = DotProductAttention(block.attn)
            if block_type == PRE_NORM:
                stage.blocks[index] = PreNormBlock(block)
    return backbone


@dataclass(frozen=True)
class Run:
    """The settings of one training.

    Attributes:
        block_type: one of ``BLOCK_TYPES``.
        embed_dim: channels of the first stage.
        depths: blocks per stage.
        lr: learning rate.
        seed: of weights and order.
        steps: optimizer steps.
        batch_size: images per step.
        image_size: side in pixels.
        data: where the images come from.
    """

    block_type: str
    embed_dim: int
    depths: tuple[int, ...]
    lr: float
    seed: int
    steps: int
    batch_size: int
    image_size: int
    data: str

    @property
    def file(self) -> str:
        block_type = self.block_type.replace(" ", "")
        return f"{block_type}_C{self.embed_dim}_{'-'.join(map(str, self.depths))}_lr{self.lr:g}_seed{self.seed}.json"


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Args:
        data: folder of the layout of ImageNet; the default is sample data.
        seeds: trainings of each block type.
        rates: learning rates.
        steps: steps of each training.
        batch_size: images of a batch.
        image_size: sides of the images in pixels.
        output: folder of the runs and their tables.
        reduced: a minute's worth: tiny models, few steps, one seed.
    """

    data: str | None = None
    seeds: int = 3
    rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    steps: int = 120
    batch_size: int = 24
    image_size: int = 32
    output: Path = Path("runs/stability")
    reduced: bool = False


def plan_runs(settings: Settings) -> list[Run]:
    """All runs; those of a seed together, so that an interrupted study has whole seeds."""
    sizes = [(16, (2, 2, depth, 2)) for depth in (6, 18, 42)] + [(dim, (2, 2, 6, 2)) for dim in (32, 64)]
    if settings.reduced:
        sizes = [(16, (1, 1)), (16, (1, 3)), (32, (1, 1))]
    data = settings.data or "sample data"
    return [
        Run(block_type, dim, depths, lr, seed, settings.steps, settings.batch_size, settings.image_size, data)
        for seed in range(settings.seeds)
        for dim, depths in sizes
        for lr in settings.rates
        for block_type in BLOCK_TYPES
    ]


# ---- one run


Images = dict[str, tuple[Tensor, Tensor]]
"""For train and val the images (n, 3, H, W), normalized, and their labels (n,)."""


def read_images(root: str, size: int) -> Images:
    """Whole images, stretched to squares, without augmentation."""
    images = {}
    for split in ("train", "val"):
        data = ImageNetDataModule(root, size, num_workers=0, val_dir=split, crop_pct=1.0)
        data.setup("validate")
        inputs, labels = zip(*((sample["image"], sample["label"]) for sample in data.val_dataset), strict=True)
        images[split] = torch.stack(inputs), torch.tensor(labels)
    return images


def build_model(run: Run, classes: int) -> nn.ModuleDict:
    torch.manual_seed(run.seed)
    heads = [max(1, run.embed_dim * 2**i // HEAD_WIDTH) for i in range(len(run.depths))]
    backbone = SwinTransformerV2(run.embed_dim, run.depths, heads, WINDOW)
    head = ClassificationHead(backbone.channels[-1], classes)
    return nn.ModuleDict({"backbone": change_blocks(backbone, run.block_type), "head": head})


def train(run: Run, images: Images) -> dict[str, Any]:
    """One training and what is measured of it, plain values only."""
    start = time.process_time()
    inputs, labels = images["train"]
    model = build_model(run, int(labels.max()) + 1)
    names = [name for name, _ in model.named_parameters()]
    no_decay = [part for part in NO_WEIGHT_DECAY if any(part in name for name in names)]
    groups = parameter_groups(model.named_parameters(), run.depths, WEIGHT_DECAY, no_weight_decay=no_decay)
    optimizer = AdamW(groups, lr=run.lr)
    held_out, labels_held_out = (tensor[:256] for tensor in images["val"])
    initial, _ = evaluate(model, held_out, labels_held_out)

    detector, spikes, losses = SpikeDetector(), 0, []
    model.train()
    for indices in draw_batches(len(inputs), run):
        logits = model["head"](model["backbone"](inputs[indices]))
        loss = F.cross_entropy(logits, labels[indices], label_smoothing=LABEL_SMOOTHING)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        spikes += detector.is_spike(losses[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained, top1 = evaluate(model, held_out, labels_held_out)
    return {
        **dataclasses.asdict(run),
        "seconds": time.process_time() - start,
        "initial": initial,
        "trained": trained,
        "spikes": spikes,
        "non_finite": int(not math.isfinite(losses[-1])),
        "final_loss": statistics.mean(losses[-LAST_STEPS:]),
        "top1": top1,
        "losses": losses,
    }


def draw_batches(samples: int, run: Run) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(run.seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(run.steps):
        while len(order) < run.batch_size:
            order = torch.cat((order, torch.randperm(samples, generator=generator)))
        yield order[: run.batch_size]
        order = order[run.batch_size :]


@torch.no_grad()
def evaluate(model: nn.ModuleDict, images: Tensor, labels: Tensor) -> tuple[list[float], float]:
    """Amplitude after each block, and top-1."""
    amplitudes: list[float] = []
    blocks = [block for stage in model["backbone"].layers for block in stage.blocks]
    hooks = [block.register_forward_hook(lambda _, __, x: amplitudes.append(x.std().item())) for block in blocks]
    logits = model.eval()["head"](model["backbone"](images))
    for hook in hooks:
        hook.remove()
    return amplitudes, (logits.argmax(1) == labels).double().mean().item()


def run_all(runs: Sequence[Run], images: Images, folder: Path) -> list[dict[str, Any]]:
    """What is measured of each run; those whose file is there, made with the same settings, are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for number, run in enumerate(runs, start=1):
        file = folder / run.file
        settings = json.loads(json.dumps(dataclasses.asdict(run)))
        result = json.loads(file.read_text()) if file.is_file() else {}
        if settings.items() <= result.items():
            results.append(result)
            continue
        result = train(run, images)
        results.append(result)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(result))
        partial.replace(file)
        size = format_size((run.embed_dim, run.depths))
        print(
            f"{number}/{len(runs)} {run.block_type}, {size}, lr {run.lr:g}, seed {run.seed}: "
            f"loss {result['final_loss']:.3f}, spikes {result['spikes']}, {result['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return results


# ---- what came out


Results = list[dict[str, Any]]


def list_sizes(results: Results) -> list[tuple[int, tuple[int, ...]]]:
    return list(dict.fromkeys((result["embed_dim"], tuple(result["depths"])) for result in results))


def select_runs(
    results: Results, size: tuple[int, tuple[int, ...]], block_type: str, lr: float | None = None
) -> Results:
    """The runs of a size and block type, of all learning rates or one; they differ in their seeds."""
    matches = [r for r in results if (r["embed_dim"], tuple(r["depths"])) == size and r["block_type"] == block_type]
    return [r for r in matches if lr in (None, r["lr"])]


def format_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation, where there are several."""
    if not all(map(math.isfinite, values)):
        return "not finite"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def format_size(size: tuple[int, tuple[int, ...]]) -> str:
    return f"C {size[0]}, depths {','.join(map(str, size[1]))}"


def format_tables(results: Results) -> str:
    """Amplitudes at the start; amplitudes and losses after training; counts over all runs."""
    lines = format_head(["largest amplitude at the start", *BLOCK_TYPES])
    for size in list_sizes(results):
        cells = [
            format_spread([max(r["initial"]) for r in select_runs(results, size, block_type)])
            for block_type in BLOCK_TYPES
        ]
        lines.append(f"| {format_size(size)} | {' | '.join(cells)} |")
    measured = [f"{what}, {block_type}" for what in ("amplitude", "loss") for block_type in BLOCK_TYPES]
    lines += ["", *format_head(["after training", "learning rate", *measured])]
    for size in list_sizes(results):
        for lr in sorted({r["lr"] for r in results}):
            runs = [select_runs(results, size, block_type, lr) for block_type in BLOCK_TYPES]
            amplitudes = [format_spread([max(r["trained"]) for r in seeds], 1) for seeds in runs]
            losses = [format_spread([r["final_loss"] for r in seeds]) for seeds in runs]
            lines.append(f"| {format_size(size)} | {lr:g} | {' | '.join(amplitudes + losses)} |")
    lines += ["", *format_head(["over all runs", "runs", "loss spikes", "losses not finite"])]
    for block_type in BLOCK_TYPES:
        runs = [r for r in results if r["block_type"] == block_type]
        counts = [len(runs), *(sum(r[name] for r in runs) for name in ("spikes", "non_finite"))]
        lines.append(f"| {block_type} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def format_head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def write_tables(results: Results, folder: Path) -> None:
    """runs.csv with a row per run, amplitudes.csv with a row per run and block, table.md."""
    setting_names = ("block_type", "embed_dim", "depths", "lr", "seed")
    result_names = ("steps", "final_loss", "top1", "spikes", "non_finite", "seconds")
    with (
        (folder / "runs.csv").open("w", newline="") as runs,
        (folder / "amplitudes.csv").open("w", newline="") as blocks,
    ):
        run_rows, block_rows = csv.writer(runs), csv.writer(blocks)
        run_rows.writerow([*setting_names, *result_names])
        block_rows.writerow([*setting_names, "block", "initial", "trained"])
        for result in results:
            names = [result[name] for name in setting_names]
            names[2] = "-".join(map(str, result["depths"]))
            run_rows.writerow([*names, *(result[name] for name in result_names)])
            for block, pair in enumerate(zip(result["initial"], result["trained"], strict=True)):
                block_rows.writerow([*names, block, *pair])
    (folder / "table.md").write_text(format_tables(results))


def draw_figure(results: Results, path: Path) -> None:
    """A column per size: above, amplitude after each block; below, final loss over the learning rate."""
    from matplotlib.figure import Figure

    sizes, rates = list_sizes(results), sorted({r["lr"] for r in results})
    figure = Figure(figsize=(3.2 * len(sizes), 6), layout="constrained")
    above, below = figure.subplots(2, len(sizes), squeeze=False, sharey="row")
    for size, upper, lower in zip(sizes, above, below, strict=True):
        for block_type, color in COLORS.items():
            runs = [select_runs(results, size, block_type, lr) for lr in rates]
            for seeds, style in zip(runs, itertools.cycle(STYLES), strict=False):
                means = [statistics.mean(values) for values in zip(*(r["trained"] for r in seeds), strict=True)]
                upper.plot(range(1, len(means) + 1), means, style, color=color)
            losses = [[r["final_loss"] for r in seeds] for seeds in runs]
            means = [statistics.mean(values) for values in losses]
            down = [mean - min(values) for mean, values in zip(means, losses, strict=True)]
            up = [max(values) - mean for mean, values in zip(means, losses, strict=True)]
            lower.errorbar(rates, means, (down, up), color=color, marker="o", capsize=3, label=block_type)
        upper.set(title=format_size(size), xlabel="block", yscale="log")
        upper.xaxis.get_major_locator().set_params(integer=True)
        lower.set(xlabel="learning rate", xscale="log")
        lower.set_xticks(rates, [f"{lr:g}" for lr in rates])
        lower.minorticks_off()
        upper.grid(alpha=0.3)
        lower.grid(alpha=0.3)
    above[0].set_ylabel("amplitude after training")
    below[0].set_ylabel("final loss")
    for lr, style in zip(rates, itertools.cycle(STYLES), strict=False):
        above[0].plot([], [], style, color="black", label=f"learning rate {lr:g}")
    above[0].legend(fontsize="small")
    below[0].legend(fontsize="small")
    figure.savefig(path, dpi=80)


def main(settings: Settings) -> None:
    if settings.reduced:
        settings = replace(settings, seeds=1, steps=40, batch_size=8, image_size=16, rates=[1e-3, 3e-2])

    root = settings.data
    if root is None:
        write_sample_data(settings.output / "data", scale=0.1 if settings.reduced else 1.0)
        root = str(settings.output / "data" / "imagenet")
    results = run_all(plan_runs(settings), read_images(root, settings.image_size), settings.output / "runs")
    write_tables(results, settings.output)
    draw_figure(results, settings.output / "stability.png")
    print((settings.output / "table.md").read_text())


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))

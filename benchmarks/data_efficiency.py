"""Does pre-training without labels pay where labels are few? SimMIM then fine-tuning, beside training from scratch.

    python -m benchmarks.data_efficiency --data FOLDER [--seeds 3] [--shares 0.1 1] [--output FOLDER] [--reduced]

FOLDER is laid out like ImageNet: train/CLASS/*, val/CLASS/*. For each seed a small Swin V2 learns by SimMIM on all
training images, without their labels. Then classifiers are trained on a share of the training images with labels, from
these weights and from scratch, with the same settings, images and number of steps. Which images a share holds depends
on the seed. Written are runs.csv, a row per classifier with its top-1 after the last epoch, a table
(data_efficiency.md) and a figure (data_efficiency.png). What has a row is not run again. The paper's own claim, of 40
times less labeled data for a model of 3 billion parameters, is of another order: this shows whether the parts work
together and in which direction it goes.
"""

from __future__ import annotations

import csv
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import parse_settings
from swinv2_tasks.cli.tasks_cli import run

COLUMNS = ("start", "share", "seed", "images", "top1", "seconds")
STARTS = ("scratch", "SimMIM")
BACKBONE = [
    f"--model.backbone.init_args.{name}={value}"
    for name, value in (("embed_dim", 32), ("depths", "[2,2,2]"), ("num_heads", "[2,4,8]"), ("window_size", 4))
]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def run_study(data: Path, output: Path, seeds: int, shares: list[float], pretrain_epochs: int, steps: int) -> Path:
    """Trains what has no row in runs.csv yet, and draws the results.

    Args:
        data: folder laid out like ImageNet.
        output: where runs, table and figure go.
        seeds: how many.
        shares: of the labels, in (0, 1].
        pretrain_epochs: epochs of SimMIM.
        steps: optimizer steps of a classifier.
    """
    table = output / "runs.csv"
    output.mkdir(parents=True, exist_ok=True)
    finished = {(row["start"], row["share"], row["seed"]) for row in read_rows(table)}
    for seed in range(seeds):
        missing = [
            (start, share) for share in shares for start in STARTS if (start, str(share), str(seed)) not in finished
        ]
        weights = (
            pretrain(data, output, seed, pretrain_epochs) if any(start == "SimMIM" for start, _ in missing) else ""
        )
        for start, share in missing:
            start_time = time.perf_counter()
            root, images = link_labeled_share(data, output / f"labels_{share:g}_{seed}", share, seed)
            top1 = train(root, output, seed, images, steps, weights if start == "SimMIM" else None)
            append_row(table, [start, share, seed, images, f"{top1:.4f}", f"{time.perf_counter() - start_time:.0f}"])
            print(f"{start}, {share:.0%} of the labels, seed {seed}: top-1 {top1:.3f}", flush=True)
    rows = read_rows(table)
    (output / "data_efficiency.md").write_text(format_table(rows))
    draw_figure(rows, output / "data_efficiency.png")
    return table


def pretrain(data: Path, output: Path, seed: int, epochs: int) -> str:
    """SimMIM on the training images; returns the weights."""
    folder = output / "runs" / f"simmim_{seed}"
    finished = sorted(folder.glob("*/weights.safetensors"))
    if finished:
        return str(finished[-1])
    overlays = ["--config=simmim.yaml", "--config=overlays/small_simmim.yaml"]
    paths = [f"--data.root={data / 'train'}", f"--runs={output / 'runs'}", f"--name=simmim_{seed}"]
    length = [f"--trainer.max_epochs={epochs}", f"--model.schedule.milestones=[{round(0.9 * epochs)}]"]
    images = sum(1 for path in (data / "train").rglob("*") if path.is_file())
    length.append(f"--data.batch_size={min(32, images // 2)}")
    length.append(f"--trainer.check_val_every_n_epoch={max(1, epochs // 4)}")
    cli = run("fit", [*overlays, *paths, *length, *BACKBONE, *QUIET, f"--seed_everything={seed}"])
    return str(cli.folder / "weights.safetensors")


def link_labeled_share(data: Path, root: Path, share: float, seed: int) -> tuple[Path, int]:
    """A folder of links to a share of each class's training images, at least one, and to all validation images."""
    generator = np.random.default_rng(seed)
    images = 0
    for folder in sorted((data / "train").iterdir()):
        files = sorted(folder.iterdir())
        labeled = [files[k] for k in generator.permutation(len(files))[: max(1, round(share * len(files)))]]
        images += len(labeled)
        for file in labeled:
            link = root / "train" / folder.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(file.absolute())
    if not (root / "val").is_symlink():
        (root / "val").symlink_to((data / "val").absolute())
    return root, images


def train(root: Path, output: Path, seed: int, images: int, steps: int, weights: str | None) -> float:
    """Trains a classifier; returns its top-1 after the last epoch."""
    batch_size = min(32, max(1, images // 4))
    epochs = max(1, round(steps / (images // batch_size)))
    arguments = [
        "--config=imagenet.yaml", "--config=overlays/small.yaml", *BACKBONE, *QUIET,
        f"--data.root={root}", f"--data.batch_size={batch_size}", f"--runs={output / 'runs'}", "--name=classifier",
        f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={epochs}", f"--seed_everything={seed}",
        f"--model.schedule.warmup_epochs={epochs / 20}", "--trainer.num_sanity_val_steps=0",
        "--model.optimizer.init_args.lr=2e-3", "--data.augmentation.crop_scale=[0.7,1.0]",
        "--data.augmentation.horizontal_flip=0.0", "--data.augmentation.color_jitter=0.2",
    ]  # fmt: skip
    cli = run("fit", [*arguments, *([f"--model.weights={weights}"] if weights else [])])
    return float(cli.trainer.callback_metrics["val/top1"])


def read_rows(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(table: Path, row: list[Any]) -> None:
    is_new = not table.is_file()
    with table.open("a", newline="") as file:
        csv.writer(file).writerows([COLUMNS, row] if is_new else [row])


def group_top1(rows: list[dict[str, str]]) -> dict[tuple[float, str], list[float]]:
    """Top-1 of the seeds by share and start."""
    shares = sorted({float(row["share"]) for row in rows})
    return {
        (share, start): [float(row["top1"]) for row in rows if (float(row["share"]), row["start"]) == (share, start)]
        for share in shares
        for start in STARTS
    }


def compute_deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def format_table(rows: list[dict[str, str]]) -> str:
    """A table: mean ± standard deviation over the seeds."""
    top1 = group_top1(rows)
    lines = ["| labels | from scratch | SimMIM, then fine-tuned | seeds |", "|---|---|---|---|"]
    for share in sorted({share for share, _ in top1}):
        cells = [f"{statistics.mean(top1[share, s]):.3f} ± {compute_deviation(top1[share, s]):.3f}" for s in STARTS]
        lines.append(f"| {share:.0%} | {' | '.join(cells)} | {len(top1[share, STARTS[0]])} |")
    return "\n".join(lines) + "\n"


def draw_figure(rows: list[dict[str, str]], path: Path) -> None:
    """Bars of the means, dots of the seeds."""
    top1 = group_top1(rows)
    shares = sorted({share for share, _ in top1})
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, (start, color) in enumerate(zip(STARTS, ("tab:gray", "tab:blue"), strict=True)):
        positions = [n + (k - 0.5) * 0.36 for n in range(len(shares))]
        means = [statistics.mean(top1[share, start]) for share in shares]
        axes.bar(positions, means, 0.34, color=color, alpha=0.6, label=start)
        for position, share in zip(positions, shares, strict=True):
            axes.plot([position] * len(top1[share, start]), top1[share, start], "k.", markersize=5)
    axes.set_xticks(range(len(shares)), [f"{share:.0%} of the labels" for share in shares])
    axes.set(ylabel="top-1", ylim=(0, 1), title="From scratch and after SimMIM")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Args:
        data: folder laid out like ImageNet.
        output: folder of the runs and their tables.
        seeds: trainings of each start and share.
        shares: shares of the labels.
        pretrain_epochs: epochs of SimMIM.
        steps: steps of each training.
        reduced: one seed and few steps: whether it runs at all.
    """

    data: Path
    output: Path = Path("runs/data_efficiency")
    seeds: int = 3
    shares: list[float] = field(default_factory=lambda: [0.1, 1.0])
    pretrain_epochs: int = 60
    steps: int = 1000
    reduced: bool = False


def main(settings: Settings) -> None:
    if settings.reduced:
        settings = replace(settings, seeds=1, pretrain_epochs=2, steps=12)
    run_study(settings.data, settings.output, settings.seeds, settings.shares, settings.pretrain_epochs, settings.steps)
    print((settings.output / "data_efficiency.md").read_text())


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))

"""``swinv2-tasks demo``: every task, on synthetic data, in minutes on a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swinv2_tasks.cli.tasks_cli import run
from swinv2_tasks.commands.sample_data import sample_data

SHORT = (
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=3",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
)
"""What makes a training one of six steps: all that happens in a longer one happens in it, but nothing is learned."""


def demo(data: str = "data/sample", runs: str = "runs", short: bool = False) -> None:
    """Writes the sample data, trains a very small Swin V2 on each task, evaluates it and draws its predictions.

    Args:
        data: folder of the sample data; made when it is missing.
        runs: folder for the runs and their pictures.
        short: take six steps of each training, to see whether everything works; nothing is learned.
    """
    sample_data(data)
    steps = SHORT if short else ()
    title = "six steps of each training, nothing learned" if short else "trained from scratch, scored on other samples"
    table = Table(title=f"swinv2-tasks demo: {title}")
    for column in ("task", "metric", "value", "seconds", "pictures"):
        table.add_column(column, justify="right" if column in ("value", "seconds") else "left", overflow="fold")

    folder = Path(data) / "imagenet"
    classes = f"--data.class_names={folder / 'class_names.csv'}"
    place, source = [f"--data.root={folder}", classes], folder / "val" / "*" / "*[05].jpg"
    cells = _run("demo_imagenet.yaml", runs, place, source, "val/top1", "contact_sheet.png", steps)
    table.add_row("classification", *cells)

    start = time.perf_counter()
    images = f"--data.root={folder / 'train'}"
    pretraining = run("fit", ["--config=demo_simmim.yaml", f"--runs={runs}", images, *steps])
    tuning = [f"--model.weights={pretraining.folder / 'weights.safetensors'}", "--name=demo_simmim_imagenet"]
    tuning += ["--trainer.max_epochs=16", *steps]
    metric, value, *_ = _run("demo_imagenet.yaml", runs, place, source, "val/top1", "contact_sheet.png", tuning)
    seconds = f"{time.perf_counter() - start:.0f}"
    table.add_row("SimMIM, then classification", metric, value, seconds, escape(str(pretraining.folder / "pictures")))

    folder = Path(data) / "coco"
    place, source = [f"--data.root={folder}"], folder / "val2017"
    cells = _run("demo_coco.yaml", runs, place, source, "val/box_ap50", "pictures", steps)
    table.add_row("detection", *cells)

    folder = Path(data) / "ade20k"
    place = [f"--data.root={folder}", f"--data.class_names={folder / 'objectInfo.txt'}"]
    source = folder / "images" / "validation"
    cells = _run("demo_ade20k.yaml", runs, place, source, "val/miou", "overlays", steps)
    table.add_row("segmentation", *cells)

    folder = Path(data) / "kinetics"
    place = [f"--data.root={folder}", f"--data.class_names={folder / 'label_map.txt'}"]
    cells = _run("demo_kinetics.yaml", runs, place, folder / "val", "val/top1", "contact_sheet.png", steps)
    table.add_row("video", *cells)

    Console().print(table)


def _run(
    config: str, runs: str, place: list[str], source: Path, metric: str, pictures: str, training: Sequence[str]
) -> tuple[str, ...]:
    """Trains, evaluates and predicts; returns the cells metric, value, seconds and pictures."""
    start = time.perf_counter()
    fit = run("fit", [f"--config={config}", f"--runs={runs}", *place, *training])
    callback: Any = fit.trainer.checkpoint_callback
    checkpoint = f"--ckpt_path={callback.best_model_path}"
    best = run("validate", [checkpoint, f"--runs={runs}", *place])
    predict = run("predict", [checkpoint, f"--runs={runs}", f"--data.source={source}"])
    value = float(best.trainer.callback_metrics[metric])
    cells = (metric.removeprefix("val/"), f"{value:.3f}", f"{time.perf_counter() - start:.0f}")
    return *cells, escape(str(predict.folder / "predictions" / pictures))

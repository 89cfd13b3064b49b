"""``swinv2-tasks demo``: every task, on made-up data, in minutes on a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swinv2_tasks.cli import run
from swinv2_tasks.commands.sample_data import sample_data


def demo(data: str = "data/sample", runs: str = "runs") -> None:
    """Writes the sample data, trains a very small Swin V2 on each task, evaluates it and draws its predictions.

    Args:
        data: folder of the sample data; made when it is missing.
        runs: folder for the runs and their pictures.
    """
    sample_data(data)
    table = Table(title="swinv2-tasks demo: trained from scratch, evaluated on held-out samples")
    for column in ("task", "metric", "value", "seconds", "pictures"):
        table.add_column(column, justify="right" if column in ("value", "seconds") else "left", overflow="fold")

    folder = Path(data) / "imagenet"
    classes = f"--data.class_names={folder / 'class_names.csv'}"
    place, source = [f"--data.root={folder}", classes], folder / "val" / "*" / "*[05].jpg"
    table.add_row("classification", *_run("demo_imagenet.yaml", runs, place, source, "val/top1", "contact_sheet.png"))

    start = time.perf_counter()
    pretraining = run("fit", ["--config=demo_simmim.yaml", f"--runs={runs}", f"--data.root={folder / 'train'}"])
    tuning = [f"--model.weights={pretraining.folder / 'weights.safetensors'}", "--name=demo_simmim_imagenet"]
    tuning.append("--trainer.max_epochs=16")
    metric, value, *_ = _run("demo_imagenet.yaml", runs, place, source, "val/top1", "contact_sheet.png", tuning)
    seconds = f"{time.perf_counter() - start:.0f}"
    table.add_row("SimMIM, then classification", metric, value, seconds, str(pretraining.folder / "pictures"))

    folder = Path(data) / "coco"
    cells = _run("demo_coco.yaml", runs, [f"--data.root={folder}"], folder / "val2017", "val/box_ap50", "pictures")
    table.add_row("detection", *cells)

    folder = Path(data) / "ade20k"
    place = [f"--data.root={folder}", f"--data.class_names={folder / 'objectInfo.txt'}"]
    source = folder / "images" / "validation"
    table.add_row("segmentation", *_run("demo_ade20k.yaml", runs, place, source, "val/miou", "overlays"))

    folder = Path(data) / "kinetics"
    place = [f"--data.root={folder}", f"--data.class_names={folder / 'label_map.txt'}"]
    cells = _run("demo_kinetics.yaml", runs, place, folder / "val", "val/top1", "contact_sheet.png")
    table.add_row("video", *cells)

    Console().print(table)


def _run(
    config: str, runs: str, place: list[str], source: Path, metric: str, pictures: str, training: Sequence[str] = ()
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
    return *cells, str(predict.folder / "predictions" / pictures)

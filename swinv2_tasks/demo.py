"""``swinv2-tasks demo``: every task, on made-up data, in minutes on a CPU."""

from __future__ import annotations

import time
from pathlib import Path

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

    start = time.perf_counter()
    folder = Path(data) / "imagenet"
    place = [f"--runs={runs}", f"--data.root={folder}", f"--data.class_names={folder / 'class_names.csv'}"]
    fit = run("fit", ["--config=demo_imagenet.yaml", *place])
    checkpoint = f"--ckpt_path={fit.trainer.checkpoint_callback.best_model_path}"  # type: ignore[union-attr]
    best = run("validate", [checkpoint, *place])
    predict = run("predict", [checkpoint, f"--runs={runs}", f"--data.source={folder / 'val' / '*' / '*[05].jpg'}"])
    value = float(best.trainer.callback_metrics["val/top1"])
    pictures = predict.folder / "predictions" / "contact_sheet.png"
    table.add_row("classification", "top-1", f"{value:.3f}", f"{time.perf_counter() - start:.0f}", str(pictures))

    Console().print(table)

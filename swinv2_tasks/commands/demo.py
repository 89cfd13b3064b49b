"""``swinv2-tasks demo``: every task, on synthetic data, in minutes on a CPU."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from swinv2_tasks.callbacks.figures import save_figure
from swinv2_tasks.callbacks.video import draw_frames
from swinv2_tasks.cli.tasks_cli import run
from swinv2_tasks.commands.report.command import write_run_report
from swinv2_tasks.commands.sample_data import sample_data
from swinv2_tasks.datamodules.readers.images import read_image
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import TerminalTable, read_table
from swinv2_tasks.text import label, printable, say

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

    Some predictions of all tasks are drawn side by side in ``predictions.png``, in the folder of the runs.

    Args:
        data: folder of the sample data; made when it is missing.
        runs: folder for the runs and their figures.
        short: take six steps of each training, to see whether everything works; nothing is learned.
    """
    sample_data(data)
    steps = SHORT if short else ()
    title = "six steps of each training, nothing learned" if short else "trained from scratch, scored on other samples"
    table = TerminalTable(title=f"swinv2-tasks demo: {title}")
    folders: dict[str, Path] = {}
    for column in ("task", "metric", "value", "seconds"):
        table.add_column(column, justify="right" if column in ("value", "seconds") else "left")

    folder = Path(data) / "imagenet"
    dataset, source = [f"--data.root={folder}"], folder / "val" / "*" / "*[05].jpg"
    cells, folders["classification"] = _run("demo_imagenet.yaml", runs, dataset, source, "val/top1", steps)
    table.add_row("classification", *cells)

    start = time.perf_counter()
    images = f"--data.root={folder / 'train'}"
    pretraining = run("fit", ["--config=demo_simmim.yaml", f"--runs={runs}", images, *steps], write_run_report)
    tuning = [f"--model.weights={pretraining.folder / 'weights.safetensors'}", "--name=demo_simmim_imagenet"]
    tuning += steps or ["--trainer.max_epochs=16"]
    (metric, value, _), _ = _run("demo_imagenet.yaml", runs, dataset, source, "val/top1", tuning)
    seconds = f"{time.perf_counter() - start:.0f}"
    table.add_row("SimMIM, then classification", metric, value, seconds)

    folder = Path(data) / "coco"
    dataset, source = [f"--data.root={folder}"], folder / "val2017"
    cells, folders["detection"] = _run("demo_coco.yaml", runs, dataset, source, "val/box_ap50", steps)
    table.add_row("detection", *cells)

    folder = Path(data) / "ade20k"
    dataset, source = [f"--data.root={folder}"], folder / "images" / "validation"
    cells, folders["segmentation"] = _run("demo_ade20k.yaml", runs, dataset, source, "val/miou", steps)
    table.add_row("segmentation", *cells)

    folder = Path(data) / "kinetics"
    dataset, source = [f"--data.root={folder}"], folder / "val"
    cells, folders["video"] = _run("demo_kinetics.yaml", runs, dataset, source, "val/top1", steps)
    table.add_row("video", *cells)

    table.print()
    figure = Path(runs) / "predictions.png"
    draw_predictions(folders, figure)
    # Below the table, where a narrow terminal does not break them: they are there to be copied.
    for name, path in (*folders.items(), ("SimMIM", pretraining.folder / "visualizations"), ("all tasks", figure)):
        say(f"predictions, {name}: {printable(path)}")


def _run(
    config: str, runs: str, dataset: list[str], source: Path, metric: str, training: Sequence[str]
) -> tuple[tuple[str, ...], Path]:
    """Trains, evaluates and predicts; returns the cells metric, value and seconds, and the predictions' folder."""
    start = time.perf_counter()
    fit = run("fit", [f"--config={config}", f"--runs={runs}", *dataset, *training], write_run_report)
    callback: Any = fit.trainer.checkpoint_callback
    checkpoint = f"--ckpt_path={callback.best_model_path}"
    best = run("validate", [checkpoint, f"--runs={runs}", *dataset], write_run_report)
    predict = run("predict", [checkpoint, f"--runs={runs}", f"--data.source={source}"])
    value = float(best.trainer.callback_metrics[metric])
    folder = predict.folder / "predictions"
    cells = (metric.removeprefix("val/"), f"{value:.3f}", f"{time.perf_counter() - start:.0f}")
    return cells, folder


def draw_predictions(folders: Mapping[str, Path], figure: Path, number: int = 3) -> None:
    """Draws some predictions of each task below each other, the tasks side by side.

    Args:
        folders: what ``predict`` wrote for each task, by its name.
        figure: PNG file to write, of few colors so that it stays small.
        number: predictions of each task.
    """
    from matplotlib.figure import Figure  # slow to import, needed once

    drawing = Figure(figsize=(2.4 * len(folders), 2.45 * number), layout="constrained")
    grid = drawing.subplots(number, len(folders), squeeze=False)
    for column, (task, folder) in zip(grid.T, folders.items(), strict=True):
        rows = read_table(folder / "predictions.csv")
        for k, axes in enumerate(column):
            row = rows[k * len(rows) // number]
            axes.imshow(ImageOps.pad(_visualization(row, folder), (400, 400), color="white"))
            axes.set_xlabel(f"{label(row['name1'], 30)} {float(row['score1']):.0%}" if "name1" in row else "")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        column[0].set_title(task)
    content = io.BytesIO()
    save_figure(drawing, content)
    image = Image.open(content).convert("RGB").quantize()
    replace_file(figure, lambda file: image.save(file, format="PNG", optimize=True))


def _visualization(row: Mapping[str, str], folder: Path) -> Image.Image:
    """What was drawn of a prediction; of one that is a class, the image or frames of the video."""
    name = row.get("visualization") or row.get("overlay")
    if name:
        return read_image(folder / name)
    path = row["path"]
    return draw_frames(path) if path.endswith(".mp4") else read_image(path)

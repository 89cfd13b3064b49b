"""What a run shows and draws."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from swinv2_tasks.callbacks import ClassificationPredictions
from swinv2_tasks.callbacks.figures import LearningCurve, draw_contact_sheet, draw_learning_curve
from swinv2_tasks.errors import UserError
from tests.helpers.runs import read_table
from tests.helpers.tiny import new_data, new_task, new_trainer

# ---- learning curve


def write_metrics(path: Path, columns: dict[str, list[float | None]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", "step", *columns])
        for step, values in enumerate(zip(*columns.values(), strict=True)):
            table.writerow([0, step, *("" if value is None else value for value in values)])
    return path


def test_curve_has_a_panel_per_kind_of_column(tmp_path: Path) -> None:
    metrics = write_metrics(
        tmp_path / "metrics.csv",
        {"train/loss": [1.0, 0.5], "val/loss": [None, 0.6], "val/top1": [None, 0.5], "lr": [0.1, 0.2], "img/s": [1, 2]},
    )
    draw_learning_curve(metrics, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as figure:
        assert figure.format == "PNG"
        assert figure.size == (3 * 500, 400)  # metric, losses, lr; the speed is no panel


def test_curve_follows_the_values(tmp_path: Path) -> None:
    figures = []
    for name, values in (("falling", [3.0, 2.0, 1.0]), ("rising", [1.0, 2.0, 3.0])):
        metrics = write_metrics(tmp_path / f"{name}.csv", {"train/loss": list(values)})
        draw_learning_curve(metrics, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as figure:
            figures.append(np.asarray(figure.convert("L"), dtype=float))
    assert figures[0].shape == figures[1].shape
    assert np.abs(figures[0] - figures[1]).max() > 100


def test_empty_cells_are_no_points(tmp_path: Path) -> None:
    write_metrics(tmp_path / "with.csv", {"val/loss": [None, 2.0, None, 1.0]})
    (tmp_path / "without.csv").write_text("epoch,step,val/loss\n0,1,2.0\n0,3,1.0\n")
    for name in ("with", "without"):
        draw_learning_curve(tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
    with Image.open(tmp_path / "with.png") as first, Image.open(tmp_path / "without.png") as second:
        assert np.array_equal(np.asarray(first), np.asarray(second))


def test_nothing_logged_gives_no_figure(tmp_path: Path) -> None:
    draw_learning_curve(write_metrics(tmp_path / "metrics.csv", {}), tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_the_monitored_metric_comes_first_with_its_best_value_in_a_ring(tmp_path: Path) -> None:
    values = {"train/loss": [3.0, 2.0, 1.0, 0.5], "val/top1": [0.1, 0.9, 0.2, 0.3], "lr": [0.1] * 4}
    metrics = write_metrics(tmp_path / "metrics.csv", {name: [*column] for name, column in values.items()})
    shown = {}
    for monitor in (None, "val/top1"):
        draw_learning_curve(metrics, tmp_path / "curve.png", monitor)
        with Image.open(tmp_path / "curve.png") as figure:
            shown[monitor] = np.asarray(figure.convert("L")).astype(int)
    changed = np.argwhere(np.abs(shown[None] - shown["val/top1"]) > 100)
    assert (changed[:, 1] < 500).all()  # the first panel alone
    below_title = changed[changed[:, 0] > 40]
    middle = below_title.mean(axis=0)
    assert np.abs(below_title - middle).max() < 12  # the ring
    assert middle[0] < 90 and 150 < middle[1] < 350  # at the peak, the second of four points


class NotesCurves(Callback):
    """Notes which validations had been drawn when the next epoch began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_there: list[bool] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.is_there.append((self.folder / "learning_curve.png").is_file())


def test_curve_is_drawn_after_a_validation(images: Path, tmp_path: Path) -> None:
    logger, notes = CSVLogger(tmp_path, name="", version=""), NotesCurves(tmp_path)
    trainer = new_trainer(tmp_path, LearningCurve(), notes, logger=logger, max_epochs=2, log_every_n_steps=1)
    trainer.fit(new_task(), new_data(images))
    assert notes.is_there == [False, True]


class Interrupts(Callback):
    """Presses Ctrl+C in the second epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_curve_is_drawn_when_training_is_interrupted(images: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = new_trainer(tmp_path, LearningCurve(), Interrupts(), logger=logger, max_epochs=3, log_every_n_steps=1)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(new_task(), new_data(images))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further interrupts while it ends
    assert {row["epoch"] for row in read_table(tmp_path / "metrics.csv")} == {"0"}
    with Image.open(tmp_path / "learning_curve.png") as figure:
        assert figure.size[0] >= 500


# ---- contact sheet and table of predictions


def squares(folder: Path, number: int) -> list[tuple[str, list[str]]]:
    folder.mkdir()
    for k in range(number):
        Image.new("RGB", (30, 20), (255, 0, 255)).save(folder / f"{k}.png")
    return [
        (str(folder / f"{k}.png"), [f"class {k} 90%", "a class with quite a long name indeed 5%"])
        for k in range(number)
    ]


def magenta(figure: Path) -> np.ndarray:
    with Image.open(figure) as image:
        pixels = np.asarray(image.convert("RGB"))
    return (pixels == (255, 0, 255)).all(-1)


@pytest.mark.parametrize(("number", "columns", "rows"), [(1, 1, 1), (4, 4, 1), (6, 6, 1), (7, 6, 2)])
def test_contact_sheet_has_a_cell_per_image(number: int, columns: int, rows: int, tmp_path: Path) -> None:
    draw_contact_sheet(squares(tmp_path / "in", number), tmp_path / "sheet.png")
    mask = magenta(tmp_path / "sheet.png")
    assert mask.shape == (310 * rows, 220 * columns)
    cells = mask.reshape(rows, 310, columns, 220).any((1, 3))
    assert cells.sum() == number


def test_frames_say_what_is_right(tmp_path: Path) -> None:
    draw_contact_sheet(squares(tmp_path / "in", 3), tmp_path / "sheet.png", are_right=[True, False, None])
    with Image.open(tmp_path / "sheet.png") as image:
        cells = np.asarray(image.convert("RGB")).reshape(310, 3, 220, 3)
    for number, (red, green) in enumerate([(0, 158), (213, 60), (None, None)]):
        framed = (cells[:, number, :, 0] == red) & (cells[:, number, :, 1] == green)
        assert (framed.sum() > 2000) == (red is not None)


def test_nothing_to_draw_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image"):
        draw_contact_sheet([], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def predict(images: Path, folder: Path, classes: int, figures: int = 48) -> None:
    task = new_task(classes)
    task.class_ids = [f"id{k}" for k in range(classes)]
    task.class_names = [f"name, {k}" for k in range(classes)]
    data = new_data(images, source=str(images / "val"))
    new_trainer(folder, ClassificationPredictions(str(folder / "out"), figures)).predict(
        task, data, return_predictions=False
    )


@pytest.mark.parametrize(("classes", "columns"), [(3, 3), (7, 5)])
def test_table_holds_the_best_classes_of_each_image(classes: int, columns: int, images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path, classes)
    table = read_table(tmp_path / "out" / "predictions.csv")
    assert {row["path"] for row in table} == {str(path) for path in (images / "val").rglob("*.jpg")}
    best = [f"{what}{k}" for k in range(1, columns + 1) for what in ("id", "name", "score")]
    assert list(table[0]) == ["path", *best, "error"]
    for row in table:
        scores = [float(row[f"score{k}"]) for k in range(1, columns + 1)]
        assert scores == sorted(scores, reverse=True)
        assert all(row[f"name{k}"] == f"name, {row[f'id{k}'].removeprefix('id')}" for k in range(1, columns + 1))
        assert len({row[f"id{k}"] for k in range(1, columns + 1)}) == columns


def test_contact_sheet_shows_no_more_images_than_asked_for(images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path, 3, figures=2)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as figure:
        assert figure.size == (440, 310)
    assert len(read_table(tmp_path / "out" / "predictions.csv")) == 12


def test_a_file_in_the_place_of_the_folder_is_reported_before_the_work(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is a file"):
        predict(images, tmp_path, 3)
    assert (tmp_path / "out").read_text() == "mine"

"""Files that a prediction writes for each file it was made of, named alike, and the table that says which is which."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule

from swinv2_tasks.callbacks.pictures import check_folder, of_all_processes


class PredictionFiles(Callback):
    """Writes files for each predicted one, and predictions.csv; a subclass adds ``on_predict_batch_end`` and ``write``.

    Args:
        folder: where to write; made when it is missing. None: ``predictions`` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.place = Path()
        self.paths: list[str] = []
        self._names: dict[str, str] = {}
        self.rows: list[Any] = []

    def on_predict_start(self, trainer: Any, pl_module: LightningModule) -> None:
        check_folder(self.folder)
        log_dir = trainer.log_dir  # asks all processes
        self.place = Path(self.folder or Path(log_dir or ".") / "predictions")
        self.paths = [str(path) for path in trainer.datamodule.predict_dataset.paths]
        self._names = file_names(self.paths)
        self.rows = []

    def file(self, kind: str, path: str) -> Path:
        """The place of a file's PNG of a kind, below ``place``; its folder is made."""
        file = Path(kind) / self._names[path]
        (self.place / file).parent.mkdir(parents=True, exist_ok=True)
        return file

    def on_predict_end(self, trainer: Any, pl_module: LightningModule) -> None:
        rows, self.rows = self.rows, []
        rows = of_all_processes(rows, trainer)
        if trainer.is_global_zero:
            self.place.mkdir(parents=True, exist_ok=True)
            self.write(rows)

    def write(self, rows: list[Any]) -> None:
        """Writes what the batches of all processes have put into ``rows``."""
        raise NotImplementedError

    def write_table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
        """Writes predictions.csv; returns its path."""
        table = self.place / "predictions.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return table


def file_names(paths: Sequence[str]) -> dict[str, str]:
    """A PNG file's name for each image: its place below the folder that all have in common.

    Images whose names differ only in their endings keep them: a.jpg.png, a.png.png.
    """
    absolute = [Path(path).absolute() for path in paths]
    common = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    places = [path.relative_to(common) for path in absolute]
    stems = [str(place.with_suffix("")).lower() for place in places]
    return {
        path: str(place.with_suffix(".png")) if stems.count(stem) == 1 else f"{place}.png"
        for path, place, stem in zip(paths, places, stems, strict=True)
    }

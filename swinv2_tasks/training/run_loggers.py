"""The loggers of a run: metrics.csv, which a kill at any moment leaves whole, and TensorBoard's events."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import TensorBoardLogger as EventFiles
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.errors import UserError
from swinv2_tasks.files import append, replace_file

METRICS = "metrics.csv"

LOGGED_ROWS = 50
"""Steps whose rows wait in memory at most, where nothing is saved in between."""


class MetricsLogger(CSVLogger):
    """Writes metrics.csv as Lightning's logger does, but replaces it atomically where a column is added.

    Args:
        folder: the run's folder, which has two above it.
        resumed_step: of a run that is resumed, the optimizer steps done then: later rows, which come again, are left
            out of the table that is there. None: a table that is there is replaced.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__(**_arguments(folder), flush_logs_every_n_steps=LOGGED_ROWS)
        self._folder, self._resumed_step = folder, resumed_step
        self._table: Table | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The table; nothing in processes other than the first."""
        if self._table is None:
            self._table = Table(self._folder / METRICS, self._resumed_step)
        return self._table

    def finalize(self, status: str) -> None:
        """Writes the rows that are still in memory."""
        if self._table is not None:
            self.save()


class EventsLogger(TensorBoardLogger):
    """Writes TensorBoard's events, and no hyperparameters beside them: config.yaml has these.

    Args:
        folder: the run's folder, which has two above it.
        resumed_step: of a run that is resumed, the optimizer steps done then: later events, which come again, are
            hidden.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        arguments = _arguments(folder)
        if resumed_step is not None:
            arguments["purge_step"] = resumed_step
        super().__init__(**arguments)

        self._last = ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes values, but not those of before once more: see ``log_step``."""
        row = repr((metrics, step))  # NaN is equal to itself in no other way
        if row != self._last:
            super().log_metrics(metrics, step)
        self._last = row

    @rank_zero_only
    def save(self) -> None:
        """Writes the events that are still in memory."""
        EventFiles.save(self)


def _arguments(folder: Path) -> dict[str, Any]:
    return {"save_dir": folder.parent.parent, "name": folder.parent.name, "version": folder.name}


class Table:
    """A CSV file that rows are appended to; a row with a new column replaces it atomically.

    Args:
        path: the file.
        resumed_step: see ``MetricsLogger``.
    """

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = []
        self._last = ""
        if resumed_step is not None and path.is_file():
            self.columns, rows = read_numbers(path)
            kept = [row for row in rows if row["step"] and int(row["step"]) < resumed_step]
            self._replace(kept)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Adds a row, which ``save`` writes, unless it is the one before once more: see ``log_step``."""
        values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        row = values | {"step": step}
        if repr(row) != self._last:  # NaN is equal to itself in no other way
            self.rows.append(row)
        self._last = repr(row)

    def log_hparams(self, hparams: dict[str, Any]) -> None:
        """Writes the hyperparameters that a task of one's own saves, to hparams.yaml."""
        replace_file(self.path.with_name("hparams.yaml"), lambda file: save_hparams_to_yaml(file, hparams))

    def save(self) -> None:
        """Writes the rows since the last time."""
        if not self.rows:
            return
        before, is_new = self.columns, not self.columns
        self.columns = sorted({*before, *(name for row in self.rows for name in row)})
        if self.columns == before and self.path.is_file():
            append(self.path, self._text(self.rows))
        else:
            self._replace([*(() if is_new or not self.path.is_file() else read_numbers(self.path)[1]), *self.rows])
        self.rows = []

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        header = dict(zip(self.columns, self.columns, strict=True))
        text = self._text([header, *rows])
        replace_file(self.path, lambda file: file.write_text(text, newline=""))

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns).writerows(rows)
        return text.getvalue()


def read_numbers(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a metrics.csv and its rows, with a number in each cell that is not empty.

    A last row that a kill has cut off is left out.

    Raises:
        UserError: it is no such table.
    """
    remedy = "Copy it again, or move it away: the run then begins a new one."
    try:
        text = path.read_bytes().decode("utf-8")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}). {remedy}") from error

    for line, row in enumerate(rows, start=2):
        cells = [cell for cell in row.values() if cell]
        if None in row or not all(map(_is_number, cells)):
            raise UserError(f"{path} is corrupt: line {line} holds no numbers as a run writes them. {remedy}")
        if not (row.get("step") or "0").isdecimal():
            raise UserError(f"{path} is corrupt: the step in line {line} is no whole number. {remedy}")
    if rows and "step" not in columns:
        raise UserError(f"{path} is corrupt: it has no column step. {remedy}")
    return columns, rows


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True

"""What all tasks' predictions share: results are written as they come, bad files are listed, a rerun goes on.

A file that cannot be read, that the model refuses or that cannot be drawn is a bad file: the others are predicted, and
the table says why it was not. What is done is noted in a journal (``.progress`` in the folder of the predictions), from
which a rerun with the same model, settings and folder goes on, and from which the table is written in the order of the
files in the end.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from torch import Tensor

from swinv2_tasks.batches import task_data
from swinv2_tasks.callbacks.output_names import OutputNames
from swinv2_tasks.callbacks.prediction_journal import Journal, Record, append_line, cannot_write, is_about_the_name
from swinv2_tasks.datamodules.loader import BatchLoader, Fault, FileOrder
from swinv2_tasks.errors import CollectiveError, Interrupted, UserError, printable
from swinv2_tasks.files import replace_file
from swinv2_tasks.training.run_folder import lock, unlock

TABLE = "predictions.csv"

PROGRESS = ".progress"
"""The folder of the journal, in that of the predictions."""

AcceleratorError: Any = getattr(torch, "AcceleratorError", ())
"""What torch raises once a device is lost; older versions have no word for it."""

LISTED = 50
"""Bad files that are listed in the end; the table has them all."""

_LOADING = ("num_workers", "batch_size", "root", "source", "augmentation", "faulty_samples", "faulty_budget", "stream")
"""Settings of the data that change no prediction. (The batches that predictions are made in count by themselves.)"""

_TOLD: Any = ()
"""What a prediction step returns when its results have been taken already, image by image."""


class Result(NamedTuple):
    """What was made of a file."""

    row: list[str]
    """Cells of the table, between the file's path and the reason why there is no prediction."""
    files: list[str]
    """What was written for it, as seen from the folder of the predictions."""
    details: Any = None
    """What ``finish`` needs to know of it, as JSON takes it."""


class Predictions(Callback):
    """Writes what is predicted of each file, and predictions.csv; a subclass says what.

    Args:
        folder: where to write; made when it is missing. None: ``predictions`` in the run's folder.

    Attributes:
        place: where results are written.
        bad: how many files could not be predicted; known in the end, in the first process.
    """

    folders: tuple[str, ...] = ()
    """Folders, below ``place``, of files that are written for each predicted one."""
    products: tuple[str, ...] = ()
    """Files that are made of all predictions in the end."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.place = Path()
        self.paths: list[str] = []
        self.bad = 0
        self.journal: Journal
        self._began = False
        self._explained = False
        self._made: list[Path] = []

    # ---- what subclasses say

    def columns(self, task: Any) -> list[str]:
        """The table's columns, but the path and the error."""
        raise NotImplementedError

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """What a batch's outputs say of each of its samples, with the sample's file."""
        raise NotImplementedError

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """What the samples of a file say of it; files for it are written here, by ``save``."""
        raise NotImplementedError

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Writes the ``products``.

        Args:
            records: the records of the predicted files, in order, as often as asked for.
            task: the task.

        Returns:
            Where they are, in words that go on after "12 predictions: predictions.csv, ".
        """
        raise NotImplementedError

    def place_of(self, index: int) -> Any:
        """What results say of a file's place among all: its prediction holds only as long as that is the same."""
        return None

    def settings(self) -> dict[str, Any]:
        """The subclass's own settings, on which results depend."""
        return {}

    # ---- before the work

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        log_dir = trainer.log_dir  # asks all processes
        self.place = Path(self.folder or Path(log_dir or ".") / "predictions")
        self.journal = Journal(self.place / PROGRESS, trainer.global_rank)
        self._made = prove_writable([self.place, self.journal.folder, *(self.place / name for name in self.folders)])

    def on_predict_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        task: Any = pl_module
        loader: BatchLoader = trainer.predict_dataloaders
        order: Any = loader.batch_sampler
        assert isinstance(order, FileOrder)
        self._trainer, self._task, self._order = trainer, task, order
        self.paths = [str(path) for path in trainer.datamodule.predict_dataset.paths]
        self.names = OutputNames(self.paths)
        self.prepare(trainer, task)
        self._index_of = {path: index for index, path in enumerate(self.paths)}
        self._started_ns = time.time_ns()
        self._parts: dict[int, list[Any]] = {}
        self._left: dict[int, int] = {}
        self._errors: dict[int, str] = {}
        self._records: dict[int, Record] = {}

        if trainer.is_global_zero:
            self._open(_plain(self._all_settings(loader)))
        trainer.strategy.barrier("predictions")
        for record in self.journal.kept():
            order.done[self._index_of[record["path"]]] = True
        self._began = True
        if trainer.is_global_zero and order.done.any():
            print(f"{printable(self.place)}: {int(order.done.sum())} of {len(self.paths)} files are predicted already")

        batches = trainer.predict_loop.max_batches
        order.limit = batches[0]  # all, or as many as trainer.limit_predict_batches says
        batches[0] = len(order)
        loader.faults.report = self._on_fault
        self._step = task.predict_step
        task.predict_step = self._guarded_step

    def prepare(self, trainer: Any, task: Any) -> None:
        """What a subclass looks up before the first batch; ``paths`` and ``names`` are known."""

    def _all_settings(self, loader: BatchLoader) -> dict[str, Any]:
        task, data = self._task, self._trainer.datamodule
        record = task_data(self._trainer).record or {"class": type(data).__name__, "init_args": {}}
        arguments = {name: value for name, value in record["init_args"].items() if name not in _LOADING}
        return {
            "weights": checksum_of_weights(task),
            "model": {"class": type(task).__name__, **getattr(task, "init_args", {}), "weights": None},
            "backbone": getattr(getattr(task, "backbone", None), "config", None),
            "classes": [getattr(task, "class_ids", None), getattr(task, "class_names", None)],
            "data": {"class": record["class"], **arguments},
            "trainer": {"precision": str(self._trainer.precision)},
            "batches": [loader.batch_size, self._order.parts],
            "results": {"class": type(self).__name__, **self.settings()},
        }

    def _open(self, settings: dict[str, Any]) -> None:
        """Leaves of an earlier attempt in the same folder what still holds, and says what does not."""
        lock(self.journal.folder)
        before = self.journal.settings()
        for name in self.products:  # made anew in the end
            (self.place / name).unlink(missing_ok=True)

        if before is not None and before != settings:
            what = "of another model" if before.get("weights") != settings["weights"] else ""
            what = what or f"made with other settings ({', '.join(differing(before, settings)[:3])})"
            print(f"{printable(self.place)} holds predictions {what}: they are replaced")
            for record in self.journal.records():
                for name in record["files"]:
                    (self.place / name).unlink(missing_ok=True)
            before = None

        others = 0

        def kept() -> Iterator[Record]:
            nonlocal others
            for record in self.journal.records() if before is not None else ():
                if self._holds(record):
                    yield record
                elif not record["error"]:
                    others += 1

        self.journal.begin(settings, kept())
        if others:
            print(
                f"{printable(self.place)} also holds predictions of {others} files that are not among these, or were "
                f"changed since: {TABLE} does not list them any more"
            )
        if any(True for _ in self.journal.kept()):
            self._write_table(lambda record: None)
        else:
            (self.place / TABLE).unlink(missing_ok=True)

    def _holds(self, record: Record) -> bool:
        index = self._index_of.get(record["path"])
        return (
            index is not None
            and not record["error"]
            and record["stat"] is not None
            and record["stat"] == stat_of(record["path"])
            and record["place"] == self.place_of(index)
            and record["files"] == [f"{folder}/{self.names[record['path']]}" for folder in self.folders]
            and all((self.place / name).is_file() for name in record["files"])
        )

    # ---- the work

    def _guarded_step(self, batch: Any, batch_idx: int) -> Any:
        """The task's prediction step; what it refuses is tried image by image, so that one spoils no other."""
        try:
            return self._step(batch, batch_idx)
        except Exception as error:
            reason = self._reason(error)
        paths = paths_of(batch)
        if len(paths) == 1:
            self._on_error(paths[0], reason)
            return _TOLD
        for k in range(len(paths)):
            single = {name: value[k : k + 1] for name, value in batch.items()}
            try:
                outputs = self._step(single, batch_idx)
            except Exception as error:
                self._on_error(paths[k], self._reason(error))
                continue
            self._take(outputs, single)
        return _TOLD

    def on_predict_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not _TOLD:
            self._take(outputs, batch)
        if trainer.received_sigterm:  # which Lightning heeds in training alone
            raise SIGTERMException

    def _take(self, outputs: Any, batch: Any) -> None:
        for path, part in self.parts(outputs, batch):
            index = self._index_of[path]
            self._parts.setdefault(index, []).append(part)
            self._count(index)

    def _on_fault(self, fault: Fault) -> None:
        """A sample could not be read."""
        if fault.traceback:
            self._explain(fault.traceback)
        index = fault.place // self._order.parts
        self._errors.setdefault(index, fault.reason)
        self._count(index)

    def _reason(self, error: Exception) -> str:
        """Why a file was refused, in one line.

        Raises:
            Exception: the error itself, where it is none of the file: the device is lost, say.
        """
        lost = isinstance(error, AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
        if lost or isinstance(error, CollectiveError):
            raise error
        if isinstance(error, UserError):
            return str(error)
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return f"it takes more memory than there is ({text or type(error).__name__})"
        self._explain("".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {text}"

    def _explain(self, text: str) -> None:
        """Shows where the first unexpected error came from: it may be a bug rather than a bad file."""
        if not self._explained:
            print(text, file=sys.stderr)
        self._explained = True

    def _on_error(self, path: str, reason: str) -> None:
        """The model refused a sample."""
        index = self._index_of[path]
        self._errors.setdefault(index, reason)
        self._count(index)

    def _count(self, index: int) -> None:
        """One more sample of a file is done; after its last one the file is, after a group's last file the group."""
        self._left[index] = self._left.get(index, self._order.parts) - 1
        if self._left[index]:
            return
        del self._left[index]
        self._records[index] = self._record(index, self._parts.pop(index, []))

        group = self._order.group(index)
        if all(file in self._records for file in group if not self._order.done[file]):
            records = [self._records.pop(file) for file in group if file in self._records]
            self.journal.append(records)
            self._append_to_table(records)

    def _record(self, index: int, parts: list[Any]) -> Record:
        path, error = self.paths[index], self._errors.pop(index, "")
        result = None
        if not error:
            try:
                result = self.result(path, parts, self._task)
            except UserError as problem:
                if isinstance(problem.__cause__, OSError) and not is_about_the_name(problem.__cause__):
                    raise
                error = str(problem)
            except Exception as problem:
                error = self._reason(problem)
        stat = stat_of(path)
        if stat is not None and stat[1] >= self._started_ns:
            stat = None  # what was read may be something else
        if result is None:
            blank = [""] * len(self.columns(self._task))
            return Record(path=path, stat=stat, files=[], place=None, row=blank, details=None, error=error)
        return Record(
            path=path,
            stat=stat,
            files=result.files,
            place=self.place_of(index),
            row=result.row,
            details=result.details,
            error="",
        )

    def save(self, image: Image.Image, folder: str, path: str) -> str:
        """Writes a PNG for a file atomically; returns its name as seen from ``place``.

        Raises:
            UserError: it cannot be written; after an OSError.
        """
        content = io.BytesIO()
        image.save(content, "PNG", compress_level=1)
        name = f"{folder}/{self.names[path]}"
        unfinished = self.journal.own.with_suffix(".png")
        try:
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content.getbuffer())
            os.replace(unfinished, self.place / name)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            raise cannot_write(self.place / name, error) from error
        return name

    def _append_to_table(self, records: Iterable[Record]) -> None:
        append_line(self.place / TABLE, "".join(map(_table_line, records)), self._header())

    def _header(self) -> str:
        return csv_line(["path", *self.columns(self._task), "error"])

    # ---- after the work

    def on_predict_end(self, trainer: Any, pl_module: LightningModule) -> None:
        self._stop_guarding()
        if self._records:  # of groups that a limit on the batches cuts through
            self.journal.append([*self._records.values()])
        trainer.strategy.barrier("predicted")
        if not trainer.is_global_zero:
            return
        done, where = self._conclude()
        unlock(self.journal.folder)
        print(f"{done} predictions: {printable(self.place / TABLE)}{where}")
        left = len(self.paths) - done - self.bad
        if left:
            print(f"{left} more files were not looked at (trainer.limit_predict_batches)")

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != "predict":
            return
        if not self._began:
            if self._made:
                unlock(self.journal.folder)
            self._remove_empty()
            return
        self._stop_guarding()
        if not trainer.is_global_zero:
            return
        self._began = False
        if not any(True for _ in self.journal.records()):
            self._remove_empty()
            return
        try:
            done, where = self._conclude()
        except (OSError, UserError):  # the disk is full, say: the table is there, in the order of the work
            done, where = sum(not record["error"] for record in self.journal.records()), ""
        unlock(self.journal.folder)
        go_on = "the same command goes on" if self.folder else f"to go on, add --output={self.place} to the command"
        print(
            f"{done} of {len(self.paths)} files are predicted: {printable(self.place / TABLE)}{where}; "
            f"{printable(go_on)}"
        )
        if isinstance(exception, KeyboardInterrupt):
            raise Interrupted("predict was interrupted; what it predicted is kept", 2) from exception

    def _stop_guarding(self) -> None:
        if self._began and "predict_step" in self._task.__dict__:
            del self._task.predict_step

    def _conclude(self) -> tuple[int, str]:
        """Writes the table in the order of the files, and what is made of all; lists the bad files.

        Returns:
            How many files are predicted, and where what was made of them is.
        """
        bad: list[Record] = []
        number = done = 0

        def count(record: Record) -> None:
            nonlocal number, done
            done += not record["error"]
            number += bool(record["error"])
            if record["error"] and number <= LISTED:
                bad.append(record)

        self._write_table(count)
        self.bad = number
        self.journal.end(number)
        where = self.finish(self._predicted, self._task) if done else ""
        if bad:
            lines = [f"{number} of {len(self.paths)} files could not be predicted:"]
            lines += [f"  {_named(record)}" for record in bad]
            if number > LISTED:
                lines.append(f"  and {number - LISTED} more: see the column error of {printable(self.place / TABLE)}")
            print("\n".join(lines), file=sys.stderr)
        return done, where and f", {where}"

    def _write_table(self, seen: Callable[[Record], None]) -> None:
        """Writes the table in the order of the files; each record is shown to ``seen``."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(self._header().encode())
                for _, record in self.journal.in_order(self._index_of):
                    if record is not None:
                        file.write(_table_line(record).encode())
                        seen(record)

        replace_file(self.place / TABLE, write)

    def _predicted(self) -> Iterator[Record]:
        for _, record in self.journal.in_order(self._index_of):
            if record is not None and not record["error"]:
                yield record

    def _remove_empty(self) -> None:
        """Removes what was made for a prediction that has not begun."""
        if self._made and self.journal.folder in self._made:
            self.journal.remove()
        for folder in sorted(self._made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # something is in it, or it is gone
                folder.rmdir()


def bad_files(place: Path) -> int:
    """How many files the last prediction in a folder could not predict; 0 where none has ended there."""
    return Journal(place / PROGRESS, 0).bad()


def prove_writable(folders: Sequence[Path]) -> list[Path]:
    """Makes folders and makes sure that files can be written there.

    Returns:
        Those that were not there before, and the parents that were made for them.

    Raises:
        UserError: they cannot.
    """
    place = folders[0]
    made: list[Path] = []
    try:
        for folder in folders:
            made += [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
            folder.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            probe = folder / f".{os.getpid()}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)
    except OSError as error:
        for folder in dict.fromkeys(made):
            with suppress(OSError):
                folder.rmdir()
        in_the_way = [path for one in folders for path in (one, *one.parents) if _is_in_the_way(path)]
        reason = f"{in_the_way[0]} is a file" if in_the_way else f"{error.filename or place}: {error.strerror}"
        raise CollectiveError(
            f"predictions cannot go to {printable(place)}: {printable(reason)}; name another folder with --output"
        ) from error
    return list(dict.fromkeys(made))


def _is_in_the_way(path: Path) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)


def checksum_of_weights(task: Any) -> str:
    """A checksum of a task's weights and buffers; what it measures is none of them."""
    checksum = hashlib.sha256()
    tensors: list[tuple[str, Tensor]] = [*task.named_parameters(), *task.named_buffers()]
    for name, tensor in tensors:
        checksum.update(name.encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        checksum.update(content.view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The settings in which two mappings of mappings differ: ``data.image_size``, say."""
    found = []
    for name in {**one, **other}:
        before, after = one.get(name), other.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{name}.{key}" for key in {**before, **after} if before.get(key) != after.get(key)]
        elif before != after:
            found.append(name)
    return found


def paths_of(batch: Any) -> list[str]:
    """The files of a batch's samples."""
    return list(batch["paths"] if "paths" in batch else batch["path"])


def stat_of(path: str) -> list[int] | None:
    """What tells a file from a later one of its name: size and time of modification. None: it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def write_json_list(path: Path, entries: Iterable[Any], indent: int | None = None) -> None:
    """Writes a JSON list, as ``json.dump`` would, one entry after the other."""
    line = ",\n" if indent else ", "
    with path.open("w") as file:
        file.write("[\n" if indent else "[")
        for number, entry in enumerate(entries):
            text = json.dumps(entry, indent=indent)
            file.write((line if number else "") + (textwrap.indent(text, " " * indent) if indent else text))
        file.write("\n]\n" if indent else "]")


def csv_line(cells: Sequence[object]) -> str:
    """A line of a table. Bytes of a name that are no UTF-8 become escapes, such as \\xe9."""
    line = io.StringIO()
    csv.writer(line).writerow([escaped(str(cell)) for cell in cells])
    return line.getvalue()


def escaped(text: str) -> str:
    """Text in UTF-8; other bytes as escapes."""
    return "".join(printable(one) if "\ud800" <= one <= "\udfff" else one for one in text)


def _table_line(record: Record) -> str:
    return csv_line([record["path"], *record["row"], record["error"]])


def _named(record: Record) -> str:
    """A bad file and the reason, in one line."""
    name, reason = printable(record["path"]), printable(record["error"])
    return reason if name in reason else f"{name}: {reason}"


def _plain(settings: Any) -> Any:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings, default=str))

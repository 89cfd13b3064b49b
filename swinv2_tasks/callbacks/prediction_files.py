"""What all tasks' predictions share: results are written as they come, bad files are listed, a rerun resumes.

A file that cannot be read, that the model refuses or that cannot be drawn is a bad file: the others are predicted, and
the table says why it was not. Where results are written, and what a rerun finds there, is in ``prediction_folder``.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from PIL import Image
from torch import Tensor

from swinv2_tasks.batches import task_data
from swinv2_tasks.callbacks.gallery import GALLERY, GallerySample, choose_samples, write_gallery
from swinv2_tasks.callbacks.prediction_folder import TABLE, PredictionFolder, stat_of
from swinv2_tasks.callbacks.prediction_journal import Record, is_about_the_name
from swinv2_tasks.datamodules.loader import BatchLoader, Fault, FileOrder
from swinv2_tasks.datamodules.readers.channels import ImageReader
from swinv2_tasks.datamodules.readers.images import read_image
from swinv2_tasks.errors import CollectiveError, Interrupted, UserError, name_signal
from swinv2_tasks.stopping import stops
from swinv2_tasks.text import command_word, printable, say

AcceleratorError: Any = getattr(torch, "AcceleratorError", ())
"""What torch raises once a device is lost; older versions have no word for it."""

MAX_LISTED = 50
"""Bad files that are listed in the end; the table has them all."""

_LOADING = ("num_workers", "batch_size", "root", "source", "augmentation", "faulty_samples", "faulty_budget", "stream")
"""Settings of the data that change no prediction. (The batches that predictions are made in count by themselves.)"""

_ALREADY_TAKEN: Any = ()
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
        results_folder: where results are written.
        reader: reads what figures show of images: that of the data, if they have one.
        bad: how many files could not be predicted; known in the end, in the first process.
    """

    folders: tuple[str, ...] = ()
    """Folders, below ``results_folder``, of files that are written for each predicted one."""
    products: tuple[str, ...] = ()
    """Files that are made of all predictions in the end, beside the gallery."""
    score_name = "confidence"
    """What the scores of labels in the gallery are."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.results_folder = Path()
        self.paths: list[str] = []
        self.bad = 0
        self.reader = ImageReader()
        self._results: PredictionFolder
        self._is_set_up = False
        self._has_begun = False
        self._has_explained = False

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
        """Writes the ``products``; the gallery is there by then.

        Args:
            records: the records of the predicted files, in order, as often as asked for.
            task: the task.

        Returns:
            Where they are, a line each, to be printed below "12 predictions: predictions.csv".
        """
        raise NotImplementedError

    def position_of(self, index: int) -> Any:
        """What results say of a file's position among all: its prediction holds only as long as that is the same."""
        return None

    def are_details(self, details: Any, task: Any) -> bool:
        """Whether the details in the record of an earlier attempt are such as ``result`` makes."""
        return details is None

    def settings(self) -> dict[str, Any]:
        """The subclass's own settings, on which results depend."""
        return {}

    def gallery_sample(self, record: Record, task: Any) -> GallerySample:
        """What the gallery shows of a predicted file, which is here a picture without labels."""
        return GallerySample(record["path"], self.picture_of(record))

    def picture_of(self, record: Record) -> Callable[[], Image.Image]:
        """What draws a predicted file in the gallery: of those written for it the last one, or else itself."""
        if record["files"]:
            return partial(read_image, self.results_folder / record["files"][-1])
        return partial(self.reader.picture, record["path"])

    def prepare(self, trainer: Any, task: Any) -> None:
        """What a subclass looks up before the first batch; ``paths`` are known."""

    def save(self, image: Image.Image, folder: str, path: str) -> str:
        """Writes a PNG for a file into one of the ``folders``; returns its name as seen from ``results_folder``.

        Raises:
            UserError: it cannot be written; after an OSError.
        """
        return self._results.save_image(image, folder, path)

    # ---- before the work

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Opens the folder of the predictions."""
        if stage != "predict":
            return
        self.reader = getattr(trainer.datamodule, "reader", self.reader)
        log_dir = trainer.log_dir  # asks all processes
        self.results_folder = Path(self.folder or Path(log_dir or ".") / "predictions")
        self._results = PredictionFolder(self.results_folder, trainer.global_rank, self.folders)
        self._is_set_up = True

    def on_predict_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Skips the files that an earlier run of the same settings has predicted, and guards the steps."""
        task: Any = pl_module
        loader: BatchLoader = trainer.predict_dataloaders
        order: Any = loader.batch_sampler
        assert isinstance(order, FileOrder)
        self._trainer, self._task, self._order = trainer, task, order
        self.paths = [str(path) for path in trainer.datamodule.predict_dataset.paths]
        self.prepare(trainer, task)
        self._results.begin(self.paths, self.columns(task))

        self._started_ns = time.time_ns()
        self._parts: dict[int, list[Any]] = {}
        self._samples_left: dict[int, int] = {}
        self._errors: dict[int, str] = {}
        self._records: dict[int, Record] = {}

        if trainer.is_global_zero:
            products = (*self.products, GALLERY)
            are_details = partial(self.are_details, task=task)
            self._results.resume(self._all_settings(loader), products, self.position_of, are_details)
        trainer.strategy.barrier("predictions")
        for record in self._results.journal.kept():
            order.done[self._results.index_of[record["path"]]] = True
        self._has_begun = True
        if trainer.is_global_zero and order.done.any():
            number = int(order.done.sum())
            say(f"{printable(self.results_folder)}: {number} of {len(self.paths)} files are predicted already")

        batches = trainer.predict_loop.max_batches
        order.limit = batches[0]  # all, or as many as trainer.limit_predict_batches says
        batches[0] = len(order)
        loader.faults.report = self._on_fault
        self._step = task.predict_step
        task.predict_step = self._guarded_step

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

    # ---- the work: samples become parts of a file's result

    def _guarded_step(self, batch: Any, batch_idx: int) -> Any:
        """The task's prediction step; what it refuses is tried image by image, so that one spoils no other."""
        try:
            return self._step(batch, batch_idx)
        except Exception as error:
            reason = self._describe(error)
        paths = paths_of(batch)
        if len(paths) == 1:
            self._on_error(paths[0], reason)
            return _ALREADY_TAKEN

        for k in range(len(paths)):
            single = {name: value[k : k + 1] for name, value in batch.items()}
            try:
                outputs = self._step(single, batch_idx)
            except Exception as error:
                self._on_error(paths[k], self._describe(error))
                continue
            self._take(outputs, single)
        return _ALREADY_TAKEN

    def on_predict_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes the batch's results."""
        if outputs is not _ALREADY_TAKEN:
            self._take(outputs, batch)
        stops.obey()  # where the exception that a signal raised got lost in a library

    def _take(self, outputs: Any, batch: Any) -> None:
        for path, part in self.parts(outputs, batch):
            index = self._results.index_of[path]
            self._parts.setdefault(index, []).append(part)
            self._count(index)

    def _on_fault(self, fault: Fault) -> None:
        """A sample could not be read."""
        if fault.traceback:
            self._explain(fault.traceback)
        index = fault.sample_index // self._order.parts
        self._errors.setdefault(index, fault.reason)
        self._count(index)

    def _on_error(self, path: str, reason: str) -> None:
        """The model refused a sample."""
        index = self._results.index_of[path]
        self._errors.setdefault(index, reason)
        self._count(index)

    def _describe(self, error: Exception) -> str:
        """Why a file was refused, in one line.

        Raises:
            Exception: the error itself, where it is none of the file: the device is lost, say.
        """
        is_lost_device = isinstance(error, AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
        if is_lost_device or isinstance(error, CollectiveError):
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
        if not self._has_explained:
            say(text, file=sys.stderr)
        self._has_explained = True

    # ---- the work: parts become records

    def _count(self, index: int) -> None:
        """One more sample of a file is done; after its last one the file is, after a group's last file the group."""
        self._samples_left[index] = self._samples_left.get(index, self._order.parts) - 1
        if self._samples_left[index]:
            return
        del self._samples_left[index]
        self._records[index] = self._record(index, self._parts.pop(index, []))

        group = self._order.group(index)
        if all(file in self._records for file in group if not self._order.done[file]):
            self._results.append([self._records.pop(file) for file in group if file in self._records])

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
                error = self._describe(problem)

        stat = stat_of(path)
        if stat is not None and stat[1] >= self._started_ns:
            stat = None  # what was read may be something else
        if result is None:
            blank = [""] * len(self._results.columns)
            return Record(path=path, stat=stat, files=[], position=None, row=blank, details=None, error=error)
        return Record(
            path=path,
            stat=stat,
            files=result.files,
            position=self.position_of(index),
            row=result.row,
            details=result.details,
            error="",
        )

    # ---- after the work

    def on_predict_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Writes the products and prints where they are; the first process does, once all are done."""
        self._stop_guarding()
        if self._records:  # of groups that a limit on the batches cuts through
            self._results.journal.append([*self._records.values()])
        trainer.strategy.barrier("predicted")
        if not trainer.is_global_zero:
            return
        number, description = self._conclude()
        self._results.release()
        say(f"{number} predictions: {printable(self.results_folder / TABLE)}{description}")
        skipped = len(self.paths) - number - self.bad
        if skipped:
            say(f"{skipped} more files were not looked at (trainer.limit_predict_batches)")

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves what was predicted so far in a state that a rerun can resume."""
        if trainer.state.fn != "predict" or not self._is_set_up:
            return
        if not self._has_begun:
            self._results.release()
            self._results.remove_empty()
            return
        self._stop_guarding()
        if not trainer.is_global_zero:
            return
        self._has_begun = False
        if not any(True for _ in self._results.journal.records()):
            self._results.remove_empty()
            return
        self._report_interruption()
        if isinstance(exception, KeyboardInterrupt | Interrupted):
            number = exception.signal if isinstance(exception, Interrupted) else signal.SIGINT
            message = f"stopped by {name_signal(number)}; what it predicted is kept. {self._advice()}"
            raise Interrupted(printable(message), number) from exception

    def _report_interruption(self) -> None:
        try:
            number, description = self._conclude()
        except (OSError, UserError):  # the disk is full, say: the table is there, in the order of the work
            number, description = sum(not record["error"] for record in self._results.journal.records()), ""
        self._results.release()
        table = printable(self.results_folder / TABLE)
        say(f"{number} of {len(self.paths)} files are predicted: {table}{description}\n{self._advice()}")

    def _advice(self) -> str:
        """What to do after an interruption."""
        if self.folder:
            return "The same command resumes"
        return f"To resume, add --output={command_word(self.results_folder)} to the command"

    def _stop_guarding(self) -> None:
        if self._has_begun and "predict_step" in self._task.__dict__:
            del self._task.predict_step

    def _conclude(self) -> tuple[int, str]:
        """Writes the table in the order of the files, and what is made of all; lists the bad files.

        Returns:
            How many files are predicted, and where what was made of them is.
        """
        tally = _Tally()
        self._results.write_table(tally.add)
        self.bad = tally.bad
        self._results.journal.end(tally.bad)

        description = ""
        if tally.predicted:
            gallery = self._write_gallery(tally.predicted)
            description = f"{self.finish(self._results.predicted, self._task)}\ngallery: {printable(gallery)}"
        if tally.bad:
            self._list_bad_files(tally)
        return tally.predicted, description and f"\n{description}"

    def _write_gallery(self, total: int) -> Path:
        """Writes the gallery of so many predicted files; returns where it is."""
        chosen = set(choose_samples(total))
        records = (record for index, record in enumerate(self._results.predicted()) if index in chosen)
        samples = [self.gallery_sample(record, self._task) for record in records]
        path = self.results_folder / GALLERY
        write_gallery(path, samples, total, f"Predictions: {self.results_folder}", self.score_name)
        return path

    def _list_bad_files(self, tally: _Tally) -> None:
        lines = [f"{tally.bad} of {len(self.paths)} files could not be predicted:"]
        lines += [f"  {_describe_bad_file(record)}" for record in tally.first_bad]
        if tally.bad > MAX_LISTED:
            table = printable(self.results_folder / TABLE)
            lines.append(f"  and {tally.bad - MAX_LISTED} more: see the column error of {table}")
        say("\n".join(lines), file=sys.stderr)


@dataclass
class _Tally:
    """How many files are predicted and how many could not be, with the first of these."""

    predicted: int = 0
    bad: int = 0
    first_bad: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if not record["error"]:
            self.predicted += 1
            return
        self.bad += 1
        if self.bad <= MAX_LISTED:
            self.first_bad.append(record)


def checksum_of_weights(task: Any) -> str:
    """A checksum of a task's weights and buffers; its metrics are left out."""
    checksum = hashlib.sha256()
    tensors: list[tuple[str, Tensor]] = [*task.named_parameters(), *task.named_buffers()]
    for name, tensor in tensors:
        checksum.update(name.encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        checksum.update(content.view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def paths_of(batch: Any) -> list[str]:
    """The files of a batch's samples."""
    return list(batch["paths"] if "paths" in batch else batch["path"])


def _describe_bad_file(record: Record) -> str:
    """A bad file and the reason, in one line."""
    name, reason = printable(record["path"]), printable(record["error"])
    return reason if name in reason else f"{name}: {reason}"

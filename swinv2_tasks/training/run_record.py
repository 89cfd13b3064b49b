"""What a run writes beside its metrics: how it was started, what happened in it, its results."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.macs import count_macs
from swinv2_tasks.batches import task_data
from swinv2_tasks.errors import Interrupted
from swinv2_tasks.files import replace_file
from swinv2_tasks.outside_files import load_json, read_lines
from swinv2_tasks.records import mapping, text, whole
from swinv2_tasks.training.run_folder import record_start
from swinv2_tasks.training.run_loggers import read_numbers
from swinv2_tasks.weights.files import read_checkpoint, write_safetensors

EVENTS = "events.jsonl"

EVENT = mapping({"step": whole(), "event": text})
"""What a line of events holds: what happened, and the optimizer steps done by then."""

RSS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10
"""macOS states resident memory in bytes, Linux in KiB."""

log = logging.getLogger("swinv2_tasks")


class RunRecord(Callback):
    """Writes run.json at each start, events.jsonl as things happen, weights.safetensors and summary.json at the end.

    An evaluation writes run.json and summary.json alone.

    Events are what this package logs with ``details``: samples and steps skipped, loss spikes. Processes other than the
    first write theirs to events_RANK.jsonl.

    Args:
        folder: the run's folder.
        resumed_from: the checkpoint that the run is resumed from.
        resumed_step: optimizer steps done then; later events in events.jsonl happen again and are dropped.
        arguments: the command line's arguments.
    """

    def __init__(
        self,
        folder: Path,
        resumed_from: Path | None = None,
        resumed_step: int = 0,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder, self.arguments = folder, [*arguments]
        self.resumed_from, self.resumed_step = resumed_from, resumed_step
        self._handler: _EventWriter | None = None
        self._started = time.monotonic()
        self._wall_seconds = 0.0
        self._train_seconds = 0.0
        self._batches = 0
        self._batch_started = 0.0
        self._evaluation_started = 0.0
        self._evaluated_size: tuple[int, ...] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes run.json, and starts to write events."""
        seed = task_data(trainer).seed  # all processes agree on it
        if trainer.is_global_zero:
            record_start(
                self.folder,
                arguments=self.arguments,
                seed=seed,
                processes=trainer.world_size,
                resumed_from=str(self.resumed_from) if self.resumed_from else None,
                resumed_step=self.resumed_step,
            )
        name = EVENTS if trainer.is_global_zero else f"events_{trainer.global_rank}.jsonl"
        _drop_repeated(self.folder / name, self.resumed_step)
        self._handler = _EventWriter(self.folder / name, trainer)
        log.addHandler(self._handler)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops writing events."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._handler is not None:
            log.removeHandler(self._handler)

    def state_dict(self) -> dict[str, Any]:
        """Seconds, of the run and of its steps alone, and batches so far, over all starts."""
        wall = self._wall_seconds + time.monotonic() - self._started
        return {"wall_seconds": wall, "train_seconds": self._train_seconds, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the counts of the run that is resumed."""
        self._wall_seconds, self._train_seconds = state_dict["wall_seconds"], state_dict["train_seconds"]
        self._batches = state_dict["batches"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of steps."""
        self._batch_started = time.monotonic()  # in the middle of an epoch, when resumed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restarts the clock of steps: what lies between epochs does not count."""
        self._batch_started = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of an evaluation."""
        self._evaluation_started = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of an evaluation."""
        self._evaluation_started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes the size at which the backbone sees the first batch of an evaluation."""
        self._note_size(trainer, pl_module, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes the size at which the backbone sees the first batch of a test."""
        self._note_size(trainer, pl_module, batch)

    def _note_size(self, trainer: Trainer, task: Any, batch: Any) -> None:
        knows_sizes = hasattr(task, "input_size_of")  # which a task of one's own need not
        if trainer.state.fn != TrainerFn.FITTING and self._evaluated_size is None and knows_sizes:
            self._evaluated_size = tuple(task.input_size_of(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restarts the clock of steps, as validations do not count; outside of a training writes summary.json."""
        self._batch_started = time.monotonic()
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:
            self._summarize_evaluation(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes summary.json."""
        if trainer.is_global_zero:
            self._summarize_evaluation(trainer, pl_module, "test")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the batch and its seconds."""
        now = time.monotonic()
        self._train_seconds += now - self._batch_started
        self._batch_started = now
        self._batches += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes weights.safetensors and summary.json."""
        if trainer.is_global_zero:
            self._export(trainer)
            self._summarize(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes summary.json with the reason, when a training ends by a signal or an error."""
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING and trainer.global_step:
            stopped = isinstance(exception, Interrupted | KeyboardInterrupt)
            status = "interrupted" if stopped else f"failed: {type(exception).__name__}: {exception}"
            self._summarize(trainer, pl_module, status)
        self._stop_listening()  # Lightning tears callbacks down only after success

    def _export(self, trainer: Trainer) -> None:
        """The best checkpoint's weights, or the last ones where none is best, without what only training needs."""
        callback: Any = trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "") if getattr(callback, "monitor", None) else ""
        source = Path(best or self.folder / "checkpoints" / "last.ckpt")
        if source.exists():
            contents = read_checkpoint(source).contents
            tensors = {name: tensor.contiguous() for name, tensor in contents["state_dict"].items()}
            write_safetensors(self.folder / "weights.safetensors", tensors, contents["swinv2_tasks"])

    def _summarize(self, trainer: Trainer, task: Any, status: str) -> None:
        for logger in trainer.loggers:
            logger.save()
        data = task_data(trainer)
        callback: Any = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        events = [event for path in sorted(self.folder.glob("events*.jsonl")) for event in _read_events(path)]
        samples = self._batches * trainer.world_size * (data.batch_size or 0)
        state = self.state_dict()
        seconds = state["train_seconds"]
        rows = read_metrics(self.folder / "metrics.csv")
        summary = {
            "status": status,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "best_metrics": _numbers(best_metrics(rows, callback)),
            "best_checkpoint": (callback.best_model_path or None) if callback and callback.monitor else None,
            # Without a logger those of the trainer: all of the last epoch, once it is finished.
            "last_metrics": _numbers(last_metrics(rows) or (trainer.callback_metrics if status == "finished" else {})),
            "samples_per_second": round(samples / seconds, 3) if samples and seconds else None,
            "wall_seconds": round(state["wall_seconds"], 3),
            "peak_memory_mib": _peak_memory(),
            "events": dict(Counter(event["event"] for event in events)),
            "skipped_samples": dict(data.skipped_samples),
            "samples": {split: _count_samples(trainer, split) for split in ("train", "val")},
            "model": describe_model(task, getattr(task, "input_size", None)),
        }
        self._write_summary(summary)

    def _summarize_evaluation(self, trainer: Trainer, task: Any, split: str) -> None:
        seconds = time.monotonic() - self._evaluation_started
        samples = _count_samples(trainer, split)
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(f"{split}/")}
        summary = {
            "status": "finished",
            "split": split,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "last_metrics": _numbers(metrics),
            "samples_per_second": round(samples / seconds, 3) if samples else None,
            "wall_seconds": round(seconds, 3),
            "peak_memory_mib": _peak_memory(),
            "samples": {split: samples},
            "model": describe_model(task, self._evaluated_size),
        }
        self._write_summary(summary)

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        content = json.dumps(summary, indent=2) + "\n"
        replace_file(self.folder / "summary.json", lambda file: file.write_text(content, "utf-8"))


def _peak_memory() -> dict[str, int | None]:
    """MiB that this process, its largest child and the GPU have held at most."""
    return {
        "main_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // RSS_PER_MIB,
        "largest_dataloader_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // RSS_PER_MIB,
        "gpu": torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_initialized() else None,
    }


def _count_samples(trainer: Any, split: str) -> int | None:
    """Samples of a split that an epoch or an evaluation goes through, over all processes; None where that is unknown.

    A limit on the batches counts, ``trainer.limit_val_batches`` and its like.
    """
    loaders = trainer.train_dataloader if split == "train" else getattr(trainer, f"{split}_dataloaders", None)
    dataset = getattr(loaders, "dataset", None)
    if not isinstance(dataset, Sized):
        return None
    samples = len(dataset) // getattr(dataset, "parts", 1)
    batches = trainer.num_training_batches if split == "train" else sum(getattr(trainer, f"num_{split}_batches"))
    batch_size = task_data(trainer).batch_size
    if batch_size is None or not math.isfinite(batches) or getattr(dataset, "parts", 1) > 1:
        return samples
    return min(samples, batches * batch_size * trainer.world_size)


def describe_model(task: Any, size: tuple[int, ...] | None) -> dict[str, Any]:
    """What a model costs: its parameters, and the multiply-accumulate operations of its backbone for an input.

    Args:
        task: the model.
        size: of the input, in pixels; None: no batch has shown it.

    Returns:
        {task, parameters, trained_parameters, input_size, macs}; the last one is None without a size, and with another
        backbone.
    """
    parameters = list(task.parameters())
    backbone = getattr(task, "backbone", None)
    return {
        "task": type(task).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "input_size": None if size is None else [*size],
        "macs": count_macs(backbone, size) if size and isinstance(backbone, SwinTransformerV2) else None,
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics as JSON has them, which knows neither NaN nor infinity: null in their place."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, without the cells that are empty; none where there is no such file."""
    if not path.is_file():
        return []
    return [{name: float(cell) for name, cell in row.items() if cell} for row in read_numbers(path)[1]]


def best_metrics(rows: Sequence[Mapping[str, float]], callback: ModelCheckpoint | None) -> dict[str, float]:
    """What was logged at the step in which the monitored metric was best: that of the best checkpoint, if there is one.

    Args:
        rows: of metrics.csv.
        callback: monitors a metric.

    Returns:
        Values by name, with ``step`` and ``epoch``. Where nothing was logged, the best checkpoint's score alone.
    """
    monitor = callback.monitor if callback is not None else None
    if callback is None or monitor is None:
        return {}
    score = None if callback.best_model_score is None else float(callback.best_model_score)
    candidates = [row for row in rows if monitor in row]
    if not candidates:
        return {} if score is None else {monitor: score}

    best = next((row for row in candidates if row[monitor] == score), None)
    if best is None:
        comparable = [row for row in candidates if not math.isnan(row[monitor])]
        choose = max if callback.mode == "max" else min
        best = choose(comparable or candidates, key=lambda row: row[monitor])
    return _merge(row for row in rows if row["step"] == best["step"] and row.get("epoch") == best.get("epoch"))


def last_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What was logged last in the newest epoch: nothing of it is from an epoch before."""
    epochs = [row["epoch"] for row in rows if "epoch" in row]
    return _merge(row for row in rows if epochs and row.get("epoch") == epochs[-1])


def _merge(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return {name: value for row in rows for name, value in row.items()}


class _EventWriter(logging.Handler):
    """Appends what is logged with ``details`` to a file, a JSON object per line, with the step that it happened in."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        super().__init__()
        self.path, self.trainer = path, trainer

    def emit(self, record: logging.LogRecord) -> None:
        details = getattr(record, "details", None)
        if details is not None:
            where = {"step": self.trainer.global_step, "epoch": self.trainer.current_epoch}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**where, **details}) + "\n")


def _read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file, without lines that are none, as the last one is where a kill has cut it off."""
    events = []
    for line in read_lines(path) if path.is_file() else ():
        try:
            event = load_json(line)
        except ValueError:
            continue
        if EVENT(event) is None:
            events.append(event)
    return events


def _drop_repeated(path: Path, step: int) -> None:
    """Leaves the events before a step in the file."""
    if path.is_file():
        kept = "".join(json.dumps(event) + "\n" for event in _read_events(path) if event["step"] < step)
        replace_file(path, lambda file: file.write_text(kept, "utf-8"))

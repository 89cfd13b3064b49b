"""Checkpoints that say how to build their task again, and what a resumed training must keep."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.window import Size
from swinv2_tasks.batches import task_data
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import Recorded, recorded_arguments, task_record
from swinv2_tasks.outside_files import shorten
from swinv2_tasks.text import say
from swinv2_tasks.training.changed_settings import describe_changes
from swinv2_tasks.training.classes import ClassAwareTask
from swinv2_tasks.training.lightning_internals import attached_trainer, is_accumulating
from swinv2_tasks.training.optim import optimizer_class
from swinv2_tasks.training.planning import PlannedTask
from swinv2_tasks.training.recorded_state import check_restored, check_state
from swinv2_tasks.weights.files import clean_name, read_checkpoint
from swinv2_tasks.weights.formats import some
from swinv2_tasks.weights.integrity import check_finite, check_types, collect_tensors
from swinv2_tasks.weights.loading import find_incompatible_keys, resize_tables
from swinv2_tasks.weights.saving import checkpoint_record
from swinv2_tasks.weights.sharded import ShardedTensor
from swinv2_tasks.weights.windows import windows_of


@dataclass(frozen=True)
class StepSize:
    """What an optimizer step is made of; None where nothing says how many.

    Attributes:
        batch_size: samples of a batch in each process.
        processes: number of processes.
        accumulated_batches: batches of each process that a step is made of.
        epoch_batches: batches of an epoch in each process.
    """

    batch_size: int | None
    processes: int
    accumulated_batches: int
    epoch_batches: int | None

    @classmethod
    def recorded(cls, training: Mapping[str, Any]) -> StepSize:
        """That of the training which a checkpoint records."""
        names = ("batch_size", "processes", "accumulated_batches", "epoch_batches")
        return cls(**{name: training[name] for name in names})

    @property
    def samples(self) -> int | None:
        """Samples of a step, over all processes."""
        return None if self.batch_size is None else self.batch_size * self.processes * self.accumulated_batches

    @property
    def epoch_steps(self) -> int | None:
        """Steps of an epoch."""
        return None if self.epoch_batches is None else math.ceil(self.epoch_batches / self.accumulated_batches)

    def __str__(self) -> str:
        return (
            f"{self.processes} processes × {_number(self.batch_size)} samples × {self.accumulated_batches} accumulated "
            f"= {_number(self.samples)} per step, {_number(self.epoch_steps)} steps per epoch"
        )


def _number(value: int | None) -> str:
    return "unknown" if value is None else str(value)


class RestorableTask(Recorded, PlannedTask, ClassAwareTask):
    """Writes and reads the record under ``swinv2_tasks`` in a checkpoint: plain values, which name no code to run."""

    backbone: SwinTransformerV2
    skipped_steps: int

    def __init__(self) -> None:
        super().__init__()
        self.input_size: tuple[int, ...] | None = None
        self.run_name = "run"
        self._stated_windows: tuple[Size | None, ...] | None = None
        """In an evaluation, the pre-training windows of the backbone outside of it."""

    # ---- resuming

    def on_train_start(self) -> None:
        """Makes sure that what was taken over from a checkpoint can be trained with."""
        super().on_train_start()
        if self.trainer.ckpt_path is not None:
            check_restored(self.trainer, str(self.trainer.ckpt_path))

    # ---- evaluating

    def on_validation_start(self) -> None:
        """Evaluates the position bias as the checkpoint's will be."""
        self._fix_trained_windows()
        super().on_validation_start()

    def on_validation_end(self) -> None:
        """Trains on with the pre-training windows as they were."""
        self._release_trained_windows()
        super().on_validation_end()

    def on_test_start(self) -> None:
        """Evaluates the position bias as the checkpoint's will be."""
        self._fix_trained_windows()
        super().on_test_start()

    def on_test_end(self) -> None:
        """Leaves the pre-training windows as they were."""
        self._release_trained_windows()
        super().on_test_end()

    def _fix_trained_windows(self) -> None:
        """Relates offsets to the windows in effect in training, also where maps of an evaluation are larger.

        Windows longer than their map shrink to it. A checkpoint records those in effect in training, to which whoever
        loads it relates offsets; an evaluation within the training has to do the same, or it scores another function.
        """
        self._release_trained_windows()  # an evaluation that failed has left them
        if self.trainer.world_size > 1:  # the first process's, as in checkpoints: batches differ in size
            self.input_size = self.trainer.strategy.broadcast(self.input_size)
        if self.input_size is not None:
            self._stated_windows = self.backbone.pretrained_window_size
            self.backbone.set_pretrained_window(windows_of(self.backbone, self.input_size).pretrained)

    def _release_trained_windows(self) -> None:
        """Gives the backbone back the pre-training windows that it has outside of evaluations."""
        if self._stated_windows is not None:
            self.backbone.set_pretrained_window(self._stated_windows)
            self._stated_windows = None

    # ---- writing

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Records what the task, its backbone, classes and data are, so that it can be built again."""
        trainer = attached_trainer(self)
        backbone = self.backbone.config
        if self._stated_windows is not None:  # saved in an evaluation
            backbone["pretrained_window_size"] = [list(window) if window else 0 for window in self._stated_windows]
        checkpoint["swinv2_tasks"] = {
            **checkpoint_record(self.backbone, self.input_size),
            "name": self.run_name,
            "task": self._task_record(),
            "backbone": backbone,
            "input_size": None if self.input_size is None else list(self.input_size),
            "classes": {"ids": self.class_ids, "names": self.class_names},
            "data": task_data(trainer).record,
            "precision": None if trainer is None else trainer.precision,
            "training": self.training_record(),
        }

    def _task_record(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "init_args": {**self.init_args, "weights": None}}

    def training_record(self) -> dict[str, Any] | None:
        """What steps are made of, which a resumed training must keep; None when not training."""
        trainer: Any = attached_trainer(self)
        if trainer is None or not trainer.optimizers:
            return None
        data = task_data(trainer)
        return {
            "optimizer": self._optimizer_name(),
            "samples": data.train_samples,
            "batch_size": data.batch_size,
            "processes": trainer.world_size,
            "accumulated_batches": self.accumulated_batches(trainer.current_epoch),
            "epoch_batches": self.epoch_batches(),
            "total_steps": self.known_steps(),
            "skipped_steps": self.skipped_steps,
            "class_weights": self.class_weight_numbers,
            "mid_accumulation": is_accumulating(trainer),  # its gradients are not saved
        }

    def _optimizer_name(self) -> str:
        cls = optimizer_class(self.optimizer)
        return f"{cls.__module__}.{cls.__qualname__}"

    # ---- reading

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the checkpoint's classes and windows, and checks that the rest of it can be used.

        Raises:
            UserError: it is of another task, its tensors do not match or are not finite, or a resumed training would
                not be the one that was begun.
        """
        trainer: Any = attached_trainer(self)
        source = str(getattr(trainer, "ckpt_path", None) or "the checkpoint")
        record = task_record(checkpoint, source)
        if trainer is not None:
            check_state(checkpoint, trainer, source)
        task_name = record["task"]["class"]
        if task_name not in [cls.__name__ for cls in type(self).__mro__]:
            raise UserError(f"the checkpoint holds a {task_name}, not a {type(self).__name__}")

        if record["classes"]["ids"] is not None:
            self.set_classes(record["classes"]["ids"], record["classes"]["names"], "the checkpoint")

        weights = (record.get("training") or {}).get("class_weights")
        if trainer is None and weights is not None:
            self.set_class_weights(weights)
        is_resumed = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        self._check_values(checkpoint, is_resumed)
        if not is_resumed:
            trained = [tuple(window) for window in record["windows"]["effective"]]
            resize_tables(checkpoint["state_dict"], self.backbone, trained)
        self._check_names(checkpoint["state_dict"])

        # A resumed run of the same backbone keeps the windows of pre-training that its config states.
        if not (is_resumed and self.backbone.config == record["backbone"]):
            self.backbone.set_pretrained_window(record["windows"]["pretrained"])
        if is_resumed:
            self.input_size = tuple(record["input_size"]) if record.get("input_size") else None
            self._check_averaging(checkpoint)
            self._report_changes(record)
            self._check_training(record.get("training"), checkpoint["loops"]["fit_loop"], checkpoint["epoch"])

    def _check_values(self, checkpoint: dict[str, Any], is_resumed: bool) -> None:
        """Refuses tensors that are no finite numbers: weights, and of a resumed run averages and optimizer states.

        The names of the checkpoint's weights become those of this task, where one of the two is compiled.
        """
        source = str(getattr(attached_trainer(self), "ckpt_path", None) or "the checkpoint")
        own = self.state_dict(keep_vars=True)
        name_of = {clean_name(name): name for name in own}
        keys = {"state_dict"}
        if is_resumed:
            keys |= {"current_model_state"} & checkpoint.keys()
        for key in sorted(keys):
            state = {name_of.get(clean_name(name), clean_name(name)): value for name, value in checkpoint[key].items()}
            check_types(state, own, source)
            check_finite(state, source)
            checkpoint[key] = state
        if is_resumed:
            check_finite(collect_tensors(checkpoint.get("optimizer_states", []), "optimizer"), source)

    def _check_names(self, state: Mapping[str, Any]) -> None:
        """Refuses weights of another model: a name is missing or unexpected, or a shape is another."""
        own = self.state_dict(keep_vars=True)
        problems = find_incompatible_keys(state, own)
        unexpected_keys = [name for name in state if name not in own and not name.startswith("backbone.")]
        if unexpected_keys:
            problems.append(f"{len(unexpected_keys)} unexpected: {some(unexpected_keys)}")
        if problems:
            raise UserError(
                f"the checkpoint does not fit the model, which must be built as it was: {'; '.join(problems)}"
            )

    def _check_averaging(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuses to resume a training whose weights were averaged and would not be now."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if "current_model_state" in checkpoint and not averages:
            raise UserError(
                "the training that is resumed averages its weights, this config does not: add overlays/ema.yaml or "
                "whatever set the averaging up"
            )

    def _report_changes(self, record: Mapping[str, Any]) -> None:
        """Says in a line which settings of model and data are others than those of the training that is resumed."""
        data = task_data(self.trainer).record
        line = describe_changes(record, {"task": self._task_record(), "data": data})
        before = (record.get("training") or {}).get("class_weights")
        if line is None and before != self.class_weight_numbers:
            line = (
                f"resuming with other class weights than the training had so far: model.class_weights "
                f"{self.class_weights} follows the training data, which have changed"
            )
        if line is not None:
            rank_zero_only(say)(line)

    def _check_training(self, before: dict[str, Any] | None, progress: dict[str, Any], epoch: int) -> None:
        """Makes sure that steps are made as before, of as many samples, and counts batches in today's processes.

        Args:
            before: the training record of the checkpoint.
            progress: that of Lightning's fit loop, which is changed where the number of processes was.
            epoch: that the training is resumed in.

        Raises:
            UserError: another optimizer, dataset, or size of a step.
        """
        if before is None:
            raise UserError("the checkpoint was not written in a training: there is nothing to resume")
        optimizer = self._optimizer_name()
        if before.get("optimizer", optimizer) != optimizer:
            raise UserError(
                f"the training that is resumed went by {before['optimizer']}, this config has {optimizer}, which "
                "cannot read its state. Resume with the optimizer of the run's own config, or start a new run from the "
                "trained weights with --model.weights CHECKPOINT."
            )
        data = task_data(self.trainer)
        if before["samples"] != data.train_samples:
            raise UserError(
                f"the training that is resumed had {_number(before['samples'])} training samples, the dataset now has "
                f"{_number(data.train_samples)}: nothing says which of them the epoch has seen. Restore the "
                "dataset as it was, or start a new run from the trained weights with --model.weights CHECKPOINT."
            )
        self._planned_steps = (before["total_steps"], self.known_steps())
        self.skipped_steps = before["skipped_steps"]

        old = StepSize.recorded(before)
        accumulated_batches = self.accumulated_batches(epoch)
        new = StepSize(data.batch_size, self.trainer.world_size, accumulated_batches, self.epoch_batches())
        if old != new:
            _check_same_steps(old, new)
            _rescale_progress(progress, new.accumulated_batches / old.accumulated_batches)
            rank_zero_only(say)(
                f"resuming a training of {old} with {new}: samples and their order stay the same; sums are rounded "
                "differently and drop path draws other numbers"
            )

    # Lightning's further arguments, files of hyperparameters and the like, have no meaning here.
    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any) -> Self:  # type: ignore[override]
        """The trained task of a checkpoint, in eval mode; nothing that the file names is imported or run.

        Args:
            checkpoint_path: a checkpoint of a run.
            map_location: device to put the task on.
            **overrides: constructor arguments that replace the recorded ones, ``backbone`` among them.

        Raises:
            UserError: when the file is no checkpoint of this task.
        """
        contents = dict(read_checkpoint(checkpoint_path).contents)
        record = task_record(contents, str(checkpoint_path))
        if record["task"]["class"] != cls.__name__:
            raise UserError(f"{checkpoint_path} holds a {record['task']['class']}, not a {cls.__name__}")
        recorded = {name: value for name, value in record["task"]["init_args"].items() if name not in overrides}
        arguments = recorded_arguments(cls, recorded, str(checkpoint_path))
        arguments |= {"weights": None, **overrides}
        if absent := _absent_arguments(cls, arguments):
            raise UserError(
                f"{checkpoint_path} does not record {', '.join(absent)} of the {cls.__name__}: give it to "
                "load_from_checkpoint, or take another checkpoint."
            )
        if "backbone" not in arguments:
            check_recorded_size(contents, record, str(checkpoint_path), None if overrides else cls)
            arguments["backbone"] = SwinTransformerV2.from_config(record["backbone"])
        task = cls(**arguments)
        try:
            task.on_load_checkpoint(contents)
        except UserError as error:
            raise UserError(f"{checkpoint_path}: {error}") from error
        task.load_state_dict(contents["state_dict"])
        return task.to(map_location).eval()


SPARE_WEIGHTS = 10_000_000
"""Weights that a network may always have, whatever its file holds."""


def check_recorded_size(
    contents: Mapping[str, Any], record: Mapping[str, Any], source: str, task_class: type[nn.Module] | None
) -> None:
    """Refuses a record of a network that has more weights than the file: building it would take any memory.

    Args:
        contents: the checkpoint's.
        record: what it says of its task and backbone.
        source: the file, for the message.
        task_class: the recorded class; None, or one that is not of this package: the backbone alone is looked at.

    Raises:
        UserError: it is one; or its position bias is not one of this package.
    """
    state = contents.get("state_dict")
    tensors = [*state.values()] if isinstance(state, Mapping) else []
    held = sum(math.prod(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor | ShardedTensor))
    blocks = sum(depth for depth in record["backbone"]["depths"] if isinstance(depth, int))
    if blocks > len(tensors):  # before they are made, if only of shapes
        raise UserError(
            f"{source} is corrupt: its record is of a network of {shorten(blocks)} blocks, but it holds "
            f"{len(tensors):,} tensors."
        )
    classes = record["task"]["init_args"].get("num_classes")
    needed = classes if isinstance(classes, int) else 0  # a class has a weight at least
    if needed <= held:
        needed = _count_weights(record, source, task_class)
    if needed > 2 * held + SPARE_WEIGHTS:  # a few that are missing are named later on
        raise UserError(
            f"{source} is corrupt: its record is of a network of at least {needed:,} weights, but it holds {held:,} "
            "numbers."
        )


def _count_weights(record: Mapping[str, Any], source: str, task_class: type[nn.Module] | None) -> int:
    """How many weights the network of a record has, of which only the shapes are made."""
    try:
        with torch.device("meta"):
            network: nn.Module = SwinTransformerV2.from_config(record["backbone"])
            if task_class is not None and task_class.__module__.startswith("swinv2_tasks."):
                arguments = recorded_arguments(task_class, record["task"]["init_args"], source)
                if not _absent_arguments(task_class, arguments):  # which whoever builds it names
                    network = task_class(**{**arguments, "weights": None, "backbone": network})
    except RuntimeError as error:  # of a size that 64 bits do not hold
        raise UserError(f"{source} is corrupt: its record is of a network that nothing holds ({error}).") from error
    return sum(parameter.numel() for parameter in network.parameters())


def _absent_arguments(task_class: type[nn.Module], arguments: Mapping[str, Any]) -> list[str]:
    """What a task cannot be built without and is not among the arguments; the backbone is made from its own record."""
    parameters = [*inspect.signature(task_class.__init__).parameters.values()][1:]
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    return [name for name in needed if name not in arguments and name not in ("backbone", "args", "kwargs")]


def _check_same_steps(old: StepSize, new: StepSize) -> None:
    """Refuses steps of another number of samples, or of a number that nothing says: batches could not be matched."""
    is_unknown = new.samples is None or new.epoch_steps is None
    if is_unknown or old.samples != new.samples or old.epoch_steps != new.epoch_steps:
        raise UserError(
            f"the training that is resumed took {old}; now it would take {new}. Choose trainer.devices, "
            "data.batch_size and trainer.accumulate_grad_batches so that both stay, or start a new run from the "
            "trained weights with --model.weights CHECKPOINT."
        )


def _rescale_progress(progress: dict[str, Any], factor: float) -> None:
    """Multiplies the counts of batches in Lightning's progress, where the number of processes has changed."""
    batches = progress["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        unfinished = counts["ready"] - counts["completed"]  # 1 where the checkpoint was written as a batch ended
        scaled = round(counts["ready"] * factor)
        counts.update(ready=scaled, started=scaled, processed=scaled, completed=scaled - unfinished)
    for loader in progress["state_dict"].get("combined_loader", []):
        loader["batches"] = round(loader["batches"] * factor)

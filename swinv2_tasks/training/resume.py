"""Checkpoints that say how to build their task again, and what going on with a training must keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.optim import Optimizer

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import task_data
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import Recorded, recorded_arguments, task_record
from swinv2_tasks.training.lightning_internals import TrainingLoader, describe_training_loader
from swinv2_tasks.training.optim import optimizer_class
from swinv2_tasks.weights.files import clean_name, read_checkpoint
from swinv2_tasks.weights.formats import some
from swinv2_tasks.weights.integrity import check_finite, check_types, collect_tensors
from swinv2_tasks.weights.loading import find_incompatible_keys, resize_tables
from swinv2_tasks.weights.saving import checkpoint_record


class RestorableTask(Recorded, LightningModule):
    """Writes and reads the record under ``swinv2_tasks`` in a checkpoint: plain values, which name no code to run."""

    backbone: SwinTransformerV2
    optimizer: Callable[..., Optimizer]
    skipped_steps: int
    compare_class_names = False
    """Whether classes of the same ids and other names are other classes: where ids merely count, in every dataset."""

    def __init__(self) -> None:
        super().__init__()
        self.class_ids: list[Any] | None = None
        self.class_names: list[str] | None = None
        self.input_size: tuple[int, ...] | None = None
        self.run_name = "run"
        self._planned_steps: tuple[int | None, int | None] | None = None
        """Optimizer steps of the training that is resumed, as planned then and now."""
        self._training_loader: TrainingLoader | None = None

    def set_classes(self, ids: list[Any], names: list[str], whose: str) -> None:
        """Takes over the classes of the data or of a checkpoint, or stops when they are not the ones known already."""
        if self.class_ids is not None and self.class_ids != ids:
            other = "the model" if whose == "the data" else "the data"
            if self.compare_class_names and self.class_names == names:
                raise UserError(
                    f"label maps hold other values for the same classes: those of {whose} {abbreviate(ids)}, those of "
                    f"{other} {abbreviate(self.class_ids)}. Leave data.background, data.label_values and data.palette "
                    "as they were in training, or start from the weights with model.weights."
                )
            raise UserError(
                f"{whose} has {len(ids)} classes ({abbreviate(ids)}), {other} {len(self.class_ids)} "
                f"({abbreviate(self.class_ids)}). State the trained ones with data.class_names, or train a new head "
                "with model.weights."
            )
        if self.compare_class_names and self.class_names is not None and self.class_names != names:
            other = "the model" if whose == "the data" else "the data"
            k = next(k for k, name in enumerate(self.class_names) if name != names[k])
            raise UserError(
                f"{whose} has other classes than {other}: {ids[k]} is {names[k]!r}, not {self.class_names[k]!r}. "
                f"{whose}: {abbreviate(names)}; {other}: {abbreviate(self.class_names)}. "
                "Take the dataset of these classes, or train a new head with model.weights."
            )
        self.class_ids, self.class_names = ids, names

    def training_record(self) -> dict[str, Any] | None:
        """What steps are made of, which a resumed training must keep; None when not training."""
        trainer: Any = self._trainer
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
            "total_steps": self._known_steps(),
            "skipped_steps": self.skipped_steps,
            "mid_accumulation": trainer.fit_loop.epoch_loop._should_accumulate(),  # its gradients are not saved
        }

    def _optimizer_name(self) -> str:
        kind = optimizer_class(self.optimizer)
        return f"{kind.__module__}.{kind.__qualname__}"

    def epoch_batches(self) -> int | None:
        """Batches of an epoch in each process; None where neither the data nor its loader says."""
        trainer: Any = self.trainer
        limit = trainer.limit_train_batches
        batches = task_data(trainer).train_batches(trainer.world_size)
        if batches is None:
            return self.training_loader.batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    @property
    def training_loader(self) -> TrainingLoader:
        """What the trainer's loader says of an epoch, where the data does not."""
        if self._training_loader is None:
            self._training_loader = describe_training_loader(self.trainer)
        return self._training_loader

    def accumulated_batches(self, epoch: int) -> int:
        """Batches of each process that an optimizer step of an epoch is made of."""
        scheduler = self._accumulation_scheduler()
        return (
            self.trainer.accumulate_grad_batches if scheduler is None else scheduler.get_accumulate_grad_batches(epoch)
        )

    def _accumulation_scheduler(self) -> GradientAccumulationScheduler | None:
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        return next((one for one in callbacks if isinstance(one, GradientAccumulationScheduler)), None)

    def epoch_steps(self, epoch: int = 0) -> int | None:
        """Optimizer steps of an epoch; None where nothing says how long it is."""
        # Lightning's own estimate would build the training loader too early and so lose the state of a resumed one.
        batches = self.epoch_batches()
        return None if batches is None else math.ceil(batches / self.accumulated_batches(epoch))

    def steps_of(self, epochs: float) -> float | None:
        """Optimizer steps of the first so many epochs; None where nothing says how long they are."""
        batches, whole = self.epoch_batches(), math.floor(epochs)
        if batches is None:
            return None
        steps = sum(math.ceil(batches / self.accumulated_batches(epoch)) for epoch in range(whole))
        return (
            steps
            if whole == epochs
            else steps + (epochs - whole) * math.ceil(batches / self.accumulated_batches(whole))
        )

    def total_steps(self) -> int:
        """Optimizer steps of the whole training.

        Raises:
            UserError: when nothing says how long it lasts.
        """
        steps = self._known_steps()
        if steps is None:
            raise UserError(
                "nothing says when the training ends, which the schedule of the learning rate follows: state "
                "trainer.max_epochs or, for a loader without a length, trainer.max_steps"
            )
        return steps

    def _known_steps(self) -> int | None:
        """Optimizer steps of the whole training; None where nothing says how long it lasts."""
        trainer = self.trainer
        ends = [self.steps_of(epochs) for epochs in (trainer.max_epochs,) if epochs not in (None, -1)]
        ends += [steps for steps in (trainer.max_steps,) if steps != -1]
        return min((int(steps) for steps in ends if steps is not None), default=None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["swinv2_tasks"] = {
            **checkpoint_record(self.backbone, self.input_size),
            "name": self.run_name,
            "task": {"class": type(self).__name__, "init_args": {**self.init_args, "weights": None}},
            "backbone": self.backbone.config,
            "classes": {"ids": self.class_ids, "names": self.class_names},
            "data": task_data(self._trainer).record,
            "training": self.training_record(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        record = task_record(checkpoint, "the checkpoint")
        if record["classes"]["ids"] is not None:
            self.set_classes(record["classes"]["ids"], record["classes"]["names"], "the checkpoint")
        trainer: Any = self._trainer
        resumed = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        self._check_weights(checkpoint, resumed)
        if not resumed:
            trained = [tuple(window) for window in record["windows"]["effective"]]
            resize_tables(checkpoint["state_dict"], self.backbone, trained)
        own = self.state_dict(keep_vars=True)
        problems = find_incompatible_keys(checkpoint["state_dict"], own)
        others = [name for name in checkpoint["state_dict"] if name not in own and not name.startswith("backbone.")]
        if others:
            problems.append(f"{len(others)} unknown to the model: {some(others)}")
        if problems:
            raise UserError(
                f"the checkpoint does not fit the model, which must be built as it was: {'; '.join(problems)}"
            )
        if not (resumed and self.backbone.config == record["backbone"]):  # which goes on as it was
            self.backbone.set_pretrained_window(record["windows"]["pretrained"])
        if resumed:
            averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
            if "current_model_state" in checkpoint and not averages:
                raise UserError(
                    "the training that is resumed averages its weights, this config does not: add overlays/ema.yaml or "
                    "whatever set the averaging up"
                )
            self._check_training(record.get("training"), checkpoint["loops"]["fit_loop"], checkpoint["epoch"])

    def _check_weights(self, checkpoint: dict[str, Any], resumed: bool) -> None:
        """Gives tensors of a checkpoint the names of this task, where one of them is compiled, and refuses those that
        are no finite numbers: weights, and of a training that goes on also its averages and optimizer states."""
        source = str(getattr(self._trainer, "ckpt_path", None) or "the checkpoint")
        own = self.state_dict(keep_vars=True)
        plain = {clean_name(name): name for name in own}
        used = {"state_dict"} | ({"current_model_state"} & checkpoint.keys() if resumed else set())
        for key in sorted(used):
            state = checkpoint[key]
            renamed = {plain.get(clean_name(name), clean_name(name)): value for name, value in state.items()}
            check_types(renamed, own, source)
            check_finite(renamed, source)
            checkpoint[key] = renamed
        if resumed:
            check_finite(collect_tensors(checkpoint.get("optimizer_states", []), "optimizer"), source)

    def _check_training(self, before: dict[str, Any] | None, progress: dict[str, Any], epoch: int) -> None:
        """Makes sure that steps are made as before, of as many samples, and counts batches in today's processes."""
        trainer: Any = self.trainer
        if before is None:
            raise UserError("the checkpoint was not written in a training: there is nothing to go on with")
        optimizer = self._optimizer_name()
        if before.get("optimizer", optimizer) != optimizer:
            raise UserError(
                f"the training that is resumed went by {before['optimizer']}, this config has {optimizer}, which "
                "cannot read its state. Resume with the optimizer of the run's own config, or start a new run from the "
                "trained weights with --model.weights CHECKPOINT."
            )
        data = task_data(trainer)
        if before["samples"] != data.train_samples:
            raise UserError(
                f"the training that is resumed had {_number(before['samples'])} training samples, the dataset now has "
                f"{_number(data.train_samples)}: nothing says which of them the epoch has seen. Restore the "
                "dataset as it was, or start a new run from the trained weights with --model.weights CHECKPOINT."
            )
        self._planned_steps, self.skipped_steps = (before["total_steps"], self._known_steps()), before["skipped_steps"]
        now: dict[str, Any] = {"batch_size": data.batch_size, "processes": trainer.world_size}
        now |= {"accumulated_batches": self.accumulated_batches(epoch), "epoch_batches": self.epoch_batches()}
        if all(before[name] == value for name, value in now.items()):
            return

        def samples(numbers: dict[str, Any]) -> int | None:
            if numbers["batch_size"] is None:
                return None
            return numbers["batch_size"] * numbers["processes"] * numbers["accumulated_batches"]

        def steps(numbers: dict[str, Any]) -> int | None:
            if numbers["epoch_batches"] is None:
                return None
            return math.ceil(numbers["epoch_batches"] / numbers["accumulated_batches"])

        def describe(numbers: dict[str, Any]) -> str:
            return (
                f"{numbers['processes']} processes × {_number(numbers['batch_size'])} samples × "
                f"{numbers['accumulated_batches']} accumulated = {_number(samples(numbers))} per step, "
                f"{_number(steps(numbers))} steps per epoch"
            )

        unknown = samples(now) is None or steps(now) is None  # nothing tells how batches of before become today's
        if unknown or samples(before) != samples(now) or steps(before) != steps(now):
            raise UserError(
                f"the training that is resumed took {describe(before)}; now it would take {describe(now)}. Choose "
                "trainer.devices, data.batch_size and trainer.accumulate_grad_batches so that both stay, or start a "
                "new run from the trained weights with --model.weights CHECKPOINT."
            )
        factor = now["accumulated_batches"] / before["accumulated_batches"]
        batches = progress["epoch_loop.batch_progress"]
        for counts in (batches["total"], batches["current"]):
            behind = counts["ready"] - counts["completed"]  # 1 where the checkpoint was written as a batch ended
            scaled = round(counts["ready"] * factor)
            counts.update(ready=scaled, started=scaled, processed=scaled, completed=scaled - behind)
        for loader in progress["state_dict"].get("combined_loader", []):
            loader["batches"] = round(loader["batches"] * factor)
        rank_zero_only(print)(
            f"resuming a training of {describe(before)} with {describe(now)}: samples and their order stay the same; "
            "sums are rounded differently and drop path draws other numbers"
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
        arguments.setdefault("backbone", SwinTransformerV2.from_config(record["backbone"]))
        task = cls(**arguments)
        try:
            task.on_load_checkpoint(contents)
        except UserError as error:
            raise UserError(f"{checkpoint_path}: {error}") from error
        task.load_state_dict(contents["state_dict"])
        return task.to(map_location).eval()


def _number(value: int | None) -> str:
    return "unknown" if value is None else str(value)

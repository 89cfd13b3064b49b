"""Saving a training so that resumed it ends bitwise identical to an undisturbed one, and stopping it by signals.

Lightning can resume from a checkpoint written as a training batch or a validation ends. For two more places, the end of
an epoch without validation and the middle of a validation, `_save` writes the progress that its loops understand.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from swinv2_tasks.errors import Interrupted, UserError
from swinv2_tasks.files import remove, remove_unfinished
from swinv2_tasks.hyperparameters import task_record
from swinv2_tasks.training.lightning_internals import (
    cluster_environment,
    complete_epoch,
    is_accumulating,
    is_epoch_done,
    is_last_batch,
    is_validation_next,
    make_checkpoint,
    requeue,
    restart_validation,
)
from swinv2_tasks.weights.files import find_corruption, read_contents, write_pickle
from swinv2_tasks.weights.formats import some
from swinv2_tasks.weights.integrity import collect_tensors, find_nonfinite
from swinv2_tasks.weights.sharded import assemble

_NOTHING, _SAVE, _REQUEUE, _STOP = range(4)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, without a second copy in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint atomically."""
        write_pickle(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads tensors and plain values alone, also from the weights that a run leaves as safetensors."""
        return assemble(self.open_checkpoint(path))

    def open_checkpoint(self, path: Any) -> dict[str, Any]:
        """As ``load_checkpoint``, but sharded tensors are not read yet."""
        contents = dict(read_contents(Path(path)))
        if "callbacks" in contents:
            home = Path(path).absolute().parent
            contents["callbacks"] = {key: _relocate(state, home) for key, state in contents["callbacks"].items()}
        return {"pytorch-lightning_version": lightning.__version__, "global_step": 0, "epoch": 0, **contents}


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` and, in case that gets corrupt, the one before it as ``previous.ckpt``.

    Saves after each validation, at the end of each epoch without one, and as often as the arguments say. On SIGTERM and
    SIGINT (Ctrl-C) the step is finished and saved, then the training ends with ``Interrupted``; a second Ctrl-C ends it
    at once. Under SLURM the requeue signal saves and requeues the job.

    Args:
        every_n_steps: optimizer steps between saves; None: by time only.
        every_n_minutes: minutes between saves; None: by steps only.
    """

    def __init__(self, every_n_steps: int | None = None, every_n_minutes: float | None = 15) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"save.{name} is {value}; expected a number above 0, or null for never")
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.folder: Path | None = None
        self.resume_command = "fit with the same config and ckpt_path"
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._signal: int | None = None
        self._agreed = _NOTHING
        self._averages_swapped = False
        self._loaded_state: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps what schedulers that watch a metric need, which Lightning lets them miss when it resumes."""
        monitors = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        if monitors:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name in monitors}
            state = {"metrics": metrics, "at_batch_end": trainer.training}
            checkpoint["callbacks"][self.state_key] = state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state for ``on_train_start``, when the schedulers are there."""
        self._loaded_state = state_dict

    def _make_up_for_schedulers(self, trainer: Any) -> None:
        """Steps those that watch a metric after a batch whose end was saved in the middle of."""
        state, self._loaded_state = self._loaded_state, {}
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.get("metrics", {}).items()}
        trainer.callback_metrics.update(values)
        if state.get("at_batch_end"):
            trainer.fit_loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder, and removes files in it that were not finished."""
        if self.folder is None:
            self.folder = Path(trainer.strategy.broadcast(trainer.log_dir or trainer.default_root_dir)) / "checkpoints"
        if stage == "fit" and trainer.is_global_zero:
            remove_unfinished(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and handles the signals that stop or requeue."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._signal, self._agreed = None, _NOTHING
        self._make_up_for_schedulers(trainer)
        if threading.current_thread() is not threading.main_thread():
            return
        # Lightning puts back after the training what was there before.
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signal.signal(environment.requeue_signal or signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: Any) -> None:
        """Remembers a signal until the step is done: in its middle, weights and optimizer do not belong together."""
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal not in _STOP_SIGNALS:
            self._signal = number
        if number == signal.SIGINT:  # print might wait for a lock that the interrupted code holds
            os.write(2, b"\nstopping after this step, to save it; Ctrl-C again stops at once\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where a save is due, then obeys a signal."""
        if is_accumulating(trainer):
            return  # the gradients so far are not in a checkpoint
        self._agreed = self._agree(trainer)
        step_due = self.every_n_steps and trainer.global_step - self._saved_step >= self.every_n_steps
        if is_validation_next(trainer):
            return  # saved after the validation, which would not be made up for
        if is_last_batch(trainer):
            self._save(trainer, epoch_done=True)
        elif step_due or self._agreed != _NOTHING or is_epoch_done(trainer):
            self._save(trainer)
        if self._agreed != _STOP:  # a stop waits until the step is in the logs
            self._obey(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Obeys a stop that had to wait for the step's logs."""
        self._obey(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obeys a signal; a resumed run first steps the schedulers that count epochs."""
        if trainer.fit_loop.restarting and is_last_batch(trainer):  # where Lightning leaves them out
            trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        self._obey(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops before a validation, which the resumed run then makes."""
        counts: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        counts.ready = counts.started = counts.completed  # without what made a resumed validation begin again
        if self._in_fit(trainer) and self._agreed == _STOP:
            self._save(trainer, before_validation=True)
            self._obey(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the model has its averaged weights from here on, where weights are averaged."""
        self._averages_swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the model has its trained weights again."""
        self._averages_swapped = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Obeys a signal in the middle of a validation, which the resumed run begins again."""
        if self._signal is None or not self._in_fit(trainer):
            return
        # Processes have unequal numbers of batches and so cannot agree here. But all hold the same weights: to stop,
        # the first one saves by itself, and its end ends the others. Anything else waits for the end of the validation.
        stops = self._signal in _STOP_SIGNALS and trainer.is_global_zero and isinstance(trainer.strategy, DDPStrategy)
        if stops or trainer.world_size == 1:
            with self._trained_weights(trainer, pl_module):
                self._save(trainer, before_validation=True)
                self._agreed = _STOP if self._signal in _STOP_SIGNALS else _REQUEUE
                self._obey(trainer)

    @contextmanager
    def _trained_weights(self, trainer: Any, pl_module: LightningModule) -> Iterator[None]:
        """In a validation, the weights in training, where averaged ones are in their place."""
        averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
        for callback in averages if self._averages_swapped else ():
            callback.on_validation_epoch_end(trainer, pl_module)
        yield
        for callback in averages if self._averages_swapped else ():
            callback.on_validation_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after the validation of a training, then obeys a signal."""
        if self._in_fit(trainer):
            self._agreed = self._agree(trainer)
            self._save(trainer)
            self._obey(trainer)

    @staticmethod
    def _in_fit(trainer: Trainer) -> bool:
        """Whether a validation is part of a training, at a point where the gradients so far are in the weights."""
        in_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return in_training and not is_accumulating(trainer)

    def _agree(self, trainer: Trainer) -> int:
        """What all processes do now: the most urgent thing that any of them was asked for."""
        request = _NOTHING
        if self._signal is not None:
            request = _STOP if self._signal in _STOP_SIGNALS else _REQUEUE
        elif self.every_n_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_n_minutes:
            request = _SAVE
        if trainer.world_size > 1:
            highest = torch.tensor(request, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            request = int(highest)
        return request

    def _obey(self, trainer: Any) -> None:
        """Stops or requeues, once saved."""
        agreed, self._agreed = self._agreed, _NOTHING
        if agreed == _REQUEUE:
            number, self._signal = self._signal, None
            requeue(trainer, number)
        elif agreed == _STOP:
            number = self._signal or signal.SIGTERM
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            raise Interrupted(
                f"stopped by {name} at step {trainer.global_step}, saved to {self.folder}/last.ckpt. "
                f"To resume: {self.resume_command}",
                number,
            )

    def _save(self, trainer: Any, *, epoch_done: bool = False, before_validation: bool = False) -> None:
        """Writes last.ckpt.

        Args:
            trainer: in training.
            epoch_done: the epoch's last batch was trained and no validation follows.
            before_validation: a validation is about to begin, or has and is to begin again.
        """
        assert self.folder is not None
        if trainer.fast_dev_run:
            return
        for logger in trainer.loggers:
            logger.save()
        checkpoint = make_checkpoint(trainer)
        if epoch_done:
            complete_epoch(checkpoint)
        if before_validation:
            restart_validation(checkpoint)
        newest, last = self.folder / "newest.ckpt", self.folder / "last.ckpt"
        trainer.strategy.save_checkpoint(checkpoint, newest)
        if trainer.is_global_zero:
            if last.exists():
                move_checkpoint(last, self.folder / "previous.ckpt")
            move_checkpoint(newest, last)
            for requeued in self.folder.parent.glob("hpc_ckpt_*.ckpt"):  # Lightning's, of an earlier requeue
                remove(requeued)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


def move_checkpoint(source: Path, target: Path) -> None:
    """Moves a file or a sharded checkpoint, in place of one that may be there."""
    if source.is_dir() or target.is_dir():  # which only a name that is free takes
        remove(target)
    os.replace(source, target)


def _relocate(state: Any, home: Path) -> Any:
    """A ModelCheckpoint's state with its files in ``home``, where the run's checkpoints have been moved with them."""
    before = state.get("dirpath") if isinstance(state, dict) else None
    if before is None or before == str(home) or Path(before).name != home.name:
        return state

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {move(key): entry for key, entry in value.items()}
        return str(home / Path(value).name) if isinstance(value, str) and value.startswith(before) else value

    return {key: move(value) for key, value in state.items()} | {"dirpath": str(home)}


_RESUMED = ("state_dict", "current_model_state", "optimizer_states")
"""Entries of a checkpoint whose numbers a resumed training takes over."""


def newest_intact(run: Path) -> tuple[Path, int, list[str]]:
    """The checkpoint to resume from in a run's folder.

    Args:
        run: the run's folder.

    Returns:
        The intact checkpoint of the latest step, that step, and a message for each newer one that is corrupt or whose
        numbers are not all finite.

    Raises:
        UserError: when there is none.
    """
    candidates: list[tuple[int, bool, float, Path]] = []
    messages, weights_alone = [], 0
    for path in [*run.glob("checkpoints/*.ckpt"), *run.glob("hpc_ckpt_*.ckpt")]:
        try:
            contents = read_contents(path)
            step = int(contents["global_step"])
        except UserError as error:
            reason = find_corruption(path)
            messages.append(str(error) if reason is None else f"{path} is corrupt: {reason}")
            continue
        except (KeyError, TypeError, ValueError):
            messages.append(f"{path} is corrupt: {find_corruption(path) or 'it holds no training'}")
            continue
        training = task_record(contents, str(path)).get("training")
        if "optimizer_states" in contents and training and not training["mid_accumulation"]:
            # Of those of one step, RunCheckpoint's own come first: it can resume from them exactly.
            is_own = path.stem in ("last", "newest", "previous")
            candidates.append((step, is_own, path.stat().st_mtime, path))
        else:
            weights_alone += 1
    for step, _, _, path in sorted(candidates, reverse=True):
        reason = find_corruption(path)
        if reason is not None:
            messages.append(f"{path} is corrupt: {reason}")
        elif diverged := find_nonfinite(collect_tensors({key: read_contents(path).get(key) for key in _RESUMED})):
            messages.append(
                f"{path} is passed over: {len(diverged)} of its tensors hold NaN or infinite numbers: {some(diverged)}"
            )
        else:
            return path, step, messages
    if messages:
        raise UserError(f"{run} has no intact checkpoint to resume from: {'; '.join(messages)}")
    also = ", only weights without the state of the training" if weights_alone else ""
    raise UserError(f"{run} has no checkpoint to resume from{also}: start it again with --config {run}/config.yaml")

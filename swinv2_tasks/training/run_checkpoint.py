"""Saving a training so that resumed it ends bitwise identical to an undisturbed one, and stopping it by signals.

Lightning can resume from a checkpoint written as a training batch or a validation ends. For two more places, the end of
an epoch without validation and the middle of a validation, `_save` writes the progress that its loops understand.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.errors import Interrupted, UserError, name_signal
from swinv2_tasks.files import remove, remove_unfinished, replace_file, unfinished_name
from swinv2_tasks.hyperparameters import task_record
from swinv2_tasks.records import flag, mapping, require, score, values
from swinv2_tasks.stopping import stops
from swinv2_tasks.training.lightning_internals import (
    cluster_environment,
    complete_epoch,
    is_accumulating,
    is_epoch_done,
    is_last_batch,
    is_validation_next,
    log_step,
    make_checkpoint,
    requeue,
    restart_validation,
)
from swinv2_tasks.training.process_watch import ProcessWatch, cpu_group
from swinv2_tasks.training.sharding import gather_units, release_units
from swinv2_tasks.weights.files import find_corruption, read_contents, write_pickle
from swinv2_tasks.weights.formats import some
from swinv2_tasks.weights.integrity import collect_tensors, find_nonfinite
from swinv2_tasks.weights.sharded import assemble

WATCHED = mapping({}, {"metrics": values(score), "at_batch_end": flag})
"""What a checkpoint keeps of the metrics that are watched."""

_NOTHING, _SAVE, _REQUEUE, _STOP = range(4)


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

    Saves after each validation, at the end of each epoch without one, and as often as the arguments say. On a signal
    that asks to stop (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGQUIT) the step is finished and saved, then the training ends
    with ``Interrupted``; a second one ends it at once. Under SLURM the requeue signal saves and requeues the job.

    On several processes it is enough that one gets the signal: all agree after each step. In a validation, of which
    they have unequal numbers of batches, ``StopInValidation`` lets them agree.

    Args:
        every_n_steps: optimizer steps between saves; None: by time only.
        every_n_minutes: minutes between saves; None: by steps only.
    """

    def __init__(self, every_n_steps: int | None = None, every_n_minutes: float | None = 15.0) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"save.{name} is {value}; expected a number above 0, or null for never")
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.folder: Path | None = None
        self.resume_command = "fit with the same config and ckpt_path"
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._agreed, self._number = _NOTHING, 0
        self._group: Any = None
        self._handles_signals = False
        self._averages_swapped = False
        self._loaded_state: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes what was logged before, and keeps the metrics that schedulers and callbacks watch.

        A training that is resumed from a checkpoint, be it the best one, logs nothing of what came before again.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            log_step(trainer)
            for logger in trainer.loggers:
                logger.save()
        monitors = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        # One that stops early, say, looks at its metric as the epoch ends, which may be after the save.
        monitors |= {getattr(callback, "monitor", None) for callback in trainer.callbacks}
        if metrics := {name: value for name, value in trainer.callback_metrics.items() if name in monitors}:
            metrics = {name: torch.as_tensor(value).detach().cpu() for name, value in metrics.items()}
            checkpoint["callbacks"][self.state_key] = {"metrics": metrics, "at_batch_end": trainer.training}

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores of the best checkpoint what Lightning lets it forget: the score that it was last saved with."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                callback.current_score = state.get("current_score")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state for ``on_train_start``, when the schedulers are there."""
        require(state_dict, WATCHED, "the checkpoint is corrupt: in its state of RunCheckpoint,")
        self._loaded_state = state_dict

    def _restore_watched(self, trainer: Any) -> None:
        """Restores metrics; steps schedulers that watch one after a batch whose end was saved in the middle of."""
        state, self._loaded_state = self._loaded_state, {}
        metrics = {name: torch.as_tensor(value) for name, value in state.get("metrics", {}).items()}
        trainer.callback_metrics.update(metrics)
        if state.get("at_batch_end"):
            trainer.fit_loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder, and removes files in it that were not finished."""
        if self.folder is None:
            self.folder = Path(trainer.strategy.broadcast(trainer.log_dir or trainer.default_root_dir)) / "checkpoints"
        if stage == "fit" and trainer.is_global_zero:
            remove_unfinished(self.folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handles the signals that stop, where the command line does not, and the one that requeues."""
        self._handles_signals = stops.install() or self._handles_signals
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            stops.requeue_at(environment.requeue_signal or signal.SIGUSR1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; from here on signals wait for the end of a step."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._agreed = _NOTHING
        self._restore_watched(trainer)
        if trainer.world_size > 1:
            self._group = cpu_group()
        stops.defer()
        self._advise(trainer)

    def _advise(self, trainer: Trainer) -> None:
        """Lets a stop that does not wait for the step say how to resume."""
        last = f"{self.folder}/last.ckpt"
        if os.path.lexists(last):
            stops.advise(f"The last save is {last}. To resume: {self.resume_command}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows takes little time, and there is nothing to resume."""
        stops.advise(f"The training is done, its checkpoints are in {self.folder}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Handles signals no longer."""
        self._release_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Handles signals no longer."""
        self._release_signals()

    def _release_signals(self) -> None:
        if self._handles_signals:
            stops.uninstall()
        self._handles_signals = False

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
        if self.is_in_fit(trainer) and self._agreed == _STOP:
            self._save(trainer, before_validation=True)
            self._obey(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the model has its averaged weights from here on, where weights are averaged."""
        self._averages_swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the model has its trained weights again."""
        self._averages_swapped = False

    def leave_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obeys a signal in the middle of a validation, which the resumed run begins again; called by all processes."""
        agreed = self._agree(trainer)
        if agreed not in (_REQUEUE, _STOP):
            return
        self._agreed = agreed
        release_units(pl_module)
        with self._trained_weights(trainer, pl_module):
            self._save(trainer, before_validation=True)
            self._obey(trainer)
        gather_units(pl_module)

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
        if self.is_in_fit(trainer):
            self._agreed = self._agree(trainer)
            self._save(trainer)
            self._obey(trainer)

    @staticmethod
    def is_in_fit(trainer: Trainer) -> bool:
        """Whether a validation is part of a training, at a point where the gradients so far are in the weights."""
        in_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return in_training and not is_accumulating(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes what a kill has left of a save of which ``complete_save`` has made the last checkpoint."""
        if self.folder is not None and trainer.is_global_zero:
            remove(self.folder / "newest.ckpt")

    def _agree(self, trainer: Trainer) -> int:
        """What all processes do now: the most urgent thing that any of them was asked for."""
        request = _NOTHING
        if stops.number is not None:
            request = _STOP
        elif stops.is_requeue_wanted:
            request = _REQUEUE
        elif self.every_n_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_n_minutes:
            request = _SAVE
        self._number = stops.number or 0
        if self._group is not None:  # on the CPU: a GPU's work is not waited for
            highest = torch.tensor([request, self._number])
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=self._group)
            request, self._number = highest.tolist()
        return request

    def _obey(self, trainer: Any) -> None:
        """Stops or requeues, once saved."""
        agreed, self._agreed = self._agreed, _NOTHING
        if agreed == _REQUEUE:
            stops.forget_requeue()
            requeue(trainer, stops.requeue_number)
        elif agreed == _STOP:
            stops.undefer()
            raise Interrupted(
                f"stopped by {name_signal(self._number)} at step {trainer.global_step}, saved to "
                f"{self.folder}/last.ckpt. To resume: {self.resume_command}",
                self._number,
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
        self._advise(trainer)


class StopInValidation(Callback):
    """Lets all processes leave a validation together, once any of them is asked to stop.

    They have unequal numbers of batches, so that none may wait for another in a batch: each looks whether a stop is
    announced, and one that has no more batches waits for the others before anything else of the validation's end. So it
    is to be the first of the callbacks.

    Args:
        checkpoint: what saves.
        watch: what tells processes of each other's stops.
    """

    def __init__(self, checkpoint: RunCheckpoint, watch: ProcessWatch) -> None:
        self.checkpoint, self.watch = checkpoint, watch
        self._has_agreed = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from here on, in a training whose gradients so far are in the weights."""
        self._has_agreed = not self.checkpoint.is_in_fit(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Leaves, where a stop is announced."""
        is_wanted = stops.number is not None or stops.is_requeue_wanted or self.watch.is_stop_announced
        if is_wanted and not self._has_agreed:
            self._agree(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has no more batches: waits for the others, and leaves with them if they do."""
        if not self._has_agreed:
            self._agree(trainer, pl_module)

    def _agree(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_agreed = True
        self.checkpoint.leave_validation(trainer, pl_module)


@rank_zero_only
def complete_save(newest: Path) -> None:
    """Makes a checkpoint the last one, where a kill came before a save was through with the names.

    Args:
        newest: what a run is resumed from. It stays, as other processes may be about to read it.

    Raises:
        UserError: when there is no room for it.
    """
    last = newest.with_name("last.ckpt")
    if newest.stem in ("last", "previous") or newest.parent.name != "checkpoints":
        return
    if last.exists():
        move_checkpoint(last, newest.with_name("previous.ckpt"))
    if newest.is_dir():
        unfinished = unfinished_name(last)
        shutil.copytree(newest, unfinished)
        os.replace(unfinished, last)
    else:
        replace_file(last, lambda file: shutil.copyfile(newest, file))


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

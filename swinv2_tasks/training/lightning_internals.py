"""What is used of Lightning beyond its public interface, and nowhere else.

The rule: no other module of the package names a private member of Lightning, one whose name or module begins with an
underscore, be it imported, called, set, overridden or read off a checkpoint. Each is used here, in a function or class
whose name says what for. ``tests/test_fences.py`` finds those used elsewhere, and for each one here that is gone fails
with its name; so an upgrade of Lightning is a look at this file. pyproject.toml's bounds of Lightning follow from it.
"""

from __future__ import annotations

import datetime
import math
import signal
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.distributed.constants import default_pg_timeout
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader

from swinv2_tasks.errors import Interrupted, InterruptedProcess
from swinv2_tasks.stopping import handled_stops, stops

# ---- modules


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The trainer that runs a module; None where none does, for which the property ``trainer`` raises."""
    return module._trainer


def is_default_summary(callback: Callback) -> bool:
    """Whether a callback is the summary that a trainer adds by itself, a line for each part of the model."""
    return isinstance(callback, ModelSummary) and callback._max_depth == 1


# ---- where a training stands, asked as a training batch ends


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the gradients so far wait for those of further batches, before a step is made of them."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the batch is the epoch's last."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_epoch_done(trainer: Trainer) -> bool:
    """Whether no batch follows, be it the epoch's last or the training's last step."""
    return trainer.fit_loop.epoch_loop._is_training_done


def is_validation_next(trainer: Trainer) -> bool:
    """Whether a validation follows."""
    loop: Any = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def log_step(trainer: Any) -> None:
    """As a training batch ends, logs what Lightning is going to log next: a checkpoint is not to be ahead of the logs.

    Lightning logs it again, with the same values for the same step. At any other time nothing happens.
    """
    connector = trainer._logger_connector
    if trainer.training and connector._first_loop_iter is not None:
        connector.update_train_step_metrics()


def may_stop_early(trainer: Trainer) -> bool:
    """Whether the training has come as far as it has to, so that ``trainer.should_stop`` ends it."""
    return trainer.fit_loop._can_stop_early


def forget_last_validation(trainer: Any) -> None:
    """Where validations follow an interval of time, lets the next one be due at once."""
    if trainer._val_check_time_interval is not None:
        trainer._last_val_time = -math.inf


# ---- checkpoints


def make_checkpoint(trainer: Any) -> dict[str, Any]:
    """What ``trainer.save_checkpoint`` would write."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def is_restoring(error: BaseException) -> bool:
    """Whether an error was raised as Lightning took over what a checkpoint holds."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        is_connector = frame.f_globals.get("__name__") == _CheckpointConnector.__module__
        if is_connector and frame.f_code.co_name.startswith(("restore", "resume_start")):
            return True
        traceback = traceback.tb_next
    return False


def complete_epoch(checkpoint: dict[str, Any]) -> None:
    """Lets a checkpoint that is made as the epoch's last batch ends resume after it, in the next epoch."""
    progress = checkpoint["loops"]["fit_loop"]
    batches = progress["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """Lets a checkpoint that is made before or in a validation resume with all of that."""
    counts = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    before = counts["total"]["completed"] - counts["current"]["completed"]
    counts["total"].update(ready=before + 1, started=before + 1, processed=before, completed=before)
    counts["current"].update(ready=0, started=0, processed=0, completed=0)


# ---- clusters and strategies


def cluster_environment(trainer: Any) -> ClusterEnvironment:
    """What tells processes of one another: SLURM, torchrun, Lightning itself."""
    return trainer._accelerator_connector.cluster_environment


def requeue(trainer: Any, number: int | None) -> None:
    """Saves and requeues the job, as Lightning does under SLURM on a signal; None: the usual one."""
    trainer._signal_connector._slurm_sigusr_handler_fn(number or signal.SIGUSR1, None)


def leave_signals_to_us(trainer: Any) -> None:
    """Lets a trainer handle no signals, and end its processes as ``stopping`` says.

    Lightning's handler of SIGTERM is a collective, in the middle of whatever a process is at: it waits for the others
    forever. In each training step they would ask one another whether it was called.
    """
    trainer._signal_connector = _NoSignals(trainer)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing
    strategy = trainer.strategy
    if type(strategy.launcher) is _MultiProcessingLauncher:
        strategy._launcher = _StoppableLauncher(strategy, strategy.launcher._start_method)


class _NoSignals(_SignalConnector):
    def register_signal_handlers(self) -> None: ...


def _do_nothing() -> None: ...


class _StoppableLauncher(_MultiProcessingLauncher):
    """Hands signals on to the processes that it spawns or forks, and waits for these to stop."""

    def launch(self, *args: Any, **kwargs: Any) -> Any:
        stops.forward_to(self.kill)
        stops.defer()
        try:
            result = super().launch(*args, **kwargs)
        except Exception as error:
            if isinstance(error, ProcessExitedException) and stops.number is not None:  # it was still starting
                raise stops.interruption() from error
            raise
        finally:
            stops.forward_to(None)
            stops.undefer()
        return result

    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        with handled_stops() as own_stops:
            own_stops.is_forwarded_to = True
            try:
                super()._wrapping_function(*args, **kwargs)
            except Interrupted as interrupted:  # of which the other process would hear nothing
                raise InterruptedProcess(interrupted) from interrupted


def limit_collectives(strategy: Any, timeout: datetime.timedelta) -> None:
    """Sets how long processes wait for each other in a collective, unless the strategy was given a time of its own."""
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = timeout


def shard_over_all_processes(strategy: ModelParallelStrategy) -> None:
    """Lets each process hold one shard of a model; Lightning's ``auto`` is a shard for each node."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


# ---- the training loader


class TrainingLoader(NamedTuple):
    """What a trainer's loaders say of an epoch; None where they do not."""

    batches: int | None
    """Batches in each process."""

    batch_size: int | None
    """Samples per batch and process, of one loader alone."""


def describe_training_loader(trainer: Any) -> TrainingLoader:
    """Makes the training loader, as the trainer's own ``estimated_stepping_batches`` does, and asks it."""
    loop = trainer.fit_loop
    loop.setup_data()
    combined = loop._combined_loader
    loaders = [] if combined is None else combined.flattened
    batches = None if loop.max_batches == float("inf") else int(loop.max_batches)
    batch_size = _batch_size(loaders[0]) if len(loaders) == 1 else None
    if trainer.ckpt_path is not None:
        # Loaders that keep a state get it as the loop makes them, once the checkpoint has been read: again, that is.
        loop._combined_loader = None
    return TrainingLoader(batches, batch_size)


def _batch_size(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader):
        return None
    return loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)


# ---- the command line


class CheckpointCheckingCLI(LightningCLI):
    """LightningCLI that takes no settings from a checkpoint: it would build whatever classes a file names."""

    def check_checkpoint(self, path: str) -> None:
        """Called with what ``ckpt_path`` names, once all arguments are parsed; raises where it cannot be used."""

    def _parse_ckpt_path(self) -> None:
        path = self.config[self.config.subcommand]["ckpt_path"]
        if path is not None:
            self.check_checkpoint(path)


class ParseOnly(LightningCLI):
    """Mixed into a LightningCLI, lets it parse its arguments into ``config`` and do nothing else."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None:
        """Does nothing."""

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def _run_subcommand(self, subcommand: str) -> None: ...

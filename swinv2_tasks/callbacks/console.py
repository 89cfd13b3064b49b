"""What a run prints: an opening block, one line that moves, a lasting line per validation, and where results are."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer

from swinv2_tasks.callbacks.closing import describe_results, next_commands
from swinv2_tasks.callbacks.last_validation import LastValidation
from swinv2_tasks.callbacks.notices import quiet_lightning
from swinv2_tasks.callbacks.opening import describe_run, layout_rows, short_path, wrap
from swinv2_tasks.callbacks.run_report import REPORT
from swinv2_tasks.callbacks.time_left import Plan, TimeLeft, steps_to_batches
from swinv2_tasks.progress import StatusLine, WorkProgress, count_words, format_number, in_words, is_terminal
from swinv2_tasks.text import say
from swinv2_tasks.training.lightning_internals import is_default_summary

LINE_SECONDS = 60.0
"""Time between two lines within an epoch, where there is no terminal; in long trainings a hundredth of their length."""


class Console(ProgressBar):
    """What a terminal shows of a training, an evaluation or a prediction; in place of Lightning's bar and summary.

    ``Trainer(callbacks=[Console()])``, in scripts and notebooks; on the command line it is there by default. In a
    terminal one line moves, with the time that is left of the whole run; where there is none (a file, a pipe, SLURM)
    there is a line per epoch, and one now and then in long ones. Each evaluation leaves one line. Nothing but the first
    process prints.

    Args:
        bar: whether a line may move; false: always lines, as where there is no terminal.
    """

    def __init__(self, bar: bool = True) -> None:
        super().__init__()
        quiet_lightning()
        self.bar = bar
        self.is_enabled = True
        self.time_left = TimeLeft()
        self._line = StatusLine()
        self._work: WorkProgress | None = None
        self._is_opened = False
        self._has_line = False
        self._training_names: set[str] = set()
        self._evaluation_names: set[str] = set()
        self._started = self._printed_at = time.monotonic()
        self._evaluation_started = 0.0
        self._scores: dict[str, float] = {}

    # ---- what Lightning asks of a progress bar

    def enable(self) -> None:
        """Lets it print."""
        self.is_enabled = True

    def disable(self) -> None:
        """Keeps it silent: in processes other than the first, and while a learning rate is searched for."""
        self._close()
        self.is_enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the line that moves; what `LightningModule.print` calls."""
        print(*args, **kwargs)

    # ---- all runs

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's model summary and tables."""
        super().setup(trainer, pl_module, stage)
        quiet_lightning()  # in a process that was spawned
        trainer.callbacks = [callback for callback in trainer.callbacks if not is_default_summary(callback)]
        self._is_opened = False
        self._started = time.monotonic()
        self._scores = {}
        self.time_left = TimeLeft()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the line that moves."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says what came out, and where it is."""
        self._close()
        if not self.is_enabled or not self._is_opened:
            return
        if stage == "fit":
            self._conclude_training(trainer, pl_module)
        elif stage in ("validate", "test"):
            self._conclude_evaluation(trainer, pl_module, "validation" if stage == "validate" else "test")

    def _open(self, trainer: Any, task: Any) -> None:
        """Prints the opening block, once."""
        if self._is_opened or not self.is_enabled:
            return
        self._is_opened = True
        self._say(*layout_rows(describe_run(trainer, task), _width()))

    def _say(self, *lines: str) -> None:
        say("\n".join(lines), flush=True)
        self._printed_at = time.monotonic()

    def _say_parts(self, parts: list[str]) -> None:
        """Prints parts side by side: in a terminal as many per line as it has room for, elsewhere all in one."""
        self._say(*wrap(parts, _width() if is_terminal(sys.stdout) else sys.maxsize))

    def _shows_line(self) -> bool:
        """Whether whoever reads what is printed sees the line that moves, too."""
        return self._has_line and is_terminal(sys.stdout)

    def _close(self) -> None:
        self._line.stop()
        if self._work is not None:
            self._work.stop()
            self._work = None

    # ---- training

    def on_validation_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Opens the run before the check of the validation, begins to show a validation."""
        self._evaluation_started = time.monotonic()
        if trainer.state.fn != "fit":
            self._start_work(trainer, pl_module, "validating", sum(trainer.num_val_batches))
            return
        if trainer.sanity_checking:
            self._open(trainer, pl_module)
            self._start_line()
        self.time_left.start_validation()
        self._draw(trainer)

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Opens the run, and plans how long it will take."""
        self._open(trainer, pl_module)
        self.time_left.start(self._plan(trainer), self._batches_done(trainer))
        self._start_line()

    def _start_line(self) -> None:
        self._has_line = self.is_enabled and self.bar and self._line.start()

    def _plan(self, trainer: Any) -> Plan | None:
        """What the training consists of; None where nothing says how long it is."""
        done, epoch_batches = self._batches_done(trainer), trainer.num_training_batches
        limits: list[float] = []
        if trainer.max_epochs not in (None, -1):
            limits.append(trainer.max_epochs * epoch_batches)
        if trainer.max_steps != -1:
            steps = trainer.max_steps - trainer.global_step
            accumulated = trainer.accumulate_grad_batches
            limits.append(done + steps_to_batches(steps, trainer.global_step, done, accumulated))
        batches = min(limits, default=math.inf)
        if not math.isfinite(batches):
            return None
        interval = trainer.val_check_batch
        return Plan(
            batches=int(batches),
            epoch_batches=int(min(epoch_batches, batches) or 1),
            every_n_epochs=trainer.check_val_every_n_epoch,
            every_n_batches=int(interval) if math.isfinite(interval) and trainer.enable_validation else 0,
            validation_batches=_finite_sum(trainer.num_val_batches),
            ends_with_validation=any(isinstance(callback, LastValidation) for callback in trainer.callbacks),
        )

    @staticmethod
    def _batches_done(trainer: Any) -> int:
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that an epoch begins."""
        self.time_left.start_epoch()

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws the line; where there is no terminal, prints one at an epoch's end, and now and then."""
        self.time_left.finish_batch(self._batches_done(trainer))
        if not self.is_enabled:
            return
        if self._line.is_due:
            self._draw(trainer)
        if self._shows_line():
            return
        ends = trainer.is_last_batch or trainer.global_step >= trainer.max_steps != -1
        long = 0.01 * (time.monotonic() - self._started + (self.time_left.seconds() or 0))
        if ends or time.monotonic() - self._printed_at >= max(LINE_SECONDS, long):
            details = [self._where(trainer), f"step {trainer.global_step:,}", *self._training_metrics(trainer)]
            self._say_parts([*details, *self._left(trainer)])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what is waited for."""
        self._line.show("writing the results", None, [])

    def on_sanity_check_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Notes what the check measured."""
        self._note_evaluation_names(trainer)
        self.time_left.finish_check()

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the line."""
        if trainer.state.fn != "fit":
            self._advance_work()
            return
        self.time_left.finish_validation_batch()
        if self._line.is_due:
            self._draw(trainer)

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Leaves a line with the scores of the validation."""
        if trainer.sanity_checking:
            return
        self._note_evaluation_names(trainer)
        self._scores = self._evaluation_metrics(trainer)
        if trainer.state.fn != "fit":
            self._close()
            return
        self.time_left.finish_validation()
        if not self.is_enabled:
            return
        seconds = in_words(time.monotonic() - self._evaluation_started)
        left = [] if self._shows_line() else self._left(trainer)
        self._say_parts(
            [f"{self._where(trainer)}  validation", *_describe_scores(self._scores), f"in {seconds}", *left]
        )
        self._draw(trainer)

    def _draw(self, trainer: Any) -> None:
        """Draws the line that moves."""
        if trainer.sanity_checking:
            self._line.show("checking the validation", None, [])
            return
        details = ["validating"] if self.time_left.is_validating else []
        details += [*self._left(trainer), *self._training_metrics(trainer)]
        self._line.show(self._where(trainer), self.time_left.share() or 0.0, details)

    def _where(self, trainer: Any) -> str:
        """The epoch, counted from 1; in trainings that are counted in steps the step."""
        if trainer.max_epochs in (None, -1):
            total = f"/{trainer.max_steps:,}" if trainer.max_steps != -1 else ""
            return f"step {trainer.global_step:,}{total}"
        digits = len(str(trainer.max_epochs))
        return f"epoch {min(trainer.current_epoch + 1, trainer.max_epochs):>{digits}}/{trainer.max_epochs}"

    def _left(self, trainer: Any) -> list[str]:
        """The time that is left, in words; none while nobody knows."""
        seconds = self.time_left.seconds()
        for callback in trainer.callbacks:
            if isinstance(callback, Timer) and (remaining := callback.time_remaining()) is not None:
                seconds = min(remaining, math.inf if seconds is None else seconds)
        return [] if seconds is None else [f"{in_words(seconds)} left"]

    # ---- metrics

    def _training_metrics(self, trainer: Any) -> list[str]:
        """What is logged for the bar of a training step."""
        metrics = {**trainer.progress_bar_metrics}
        self._training_names |= metrics.keys() - self._evaluation_names
        names = sorted(self._training_names & metrics.keys(), key=lambda name: (not name.endswith("loss"), name))
        return [f"{name.removeprefix('train/')} {format_number(metrics[name])}" for name in names]

    def _note_evaluation_names(self, trainer: Any) -> None:
        names = trainer.progress_bar_metrics.keys() | trainer.callback_metrics.keys()
        self._evaluation_names |= names - self._training_names

    def _evaluation_metrics(self, trainer: Any) -> dict[str, float]:
        """The scores of an evaluation that are logged for the bar; all where none is."""
        for metrics in (trainer.progress_bar_metrics, trainer.callback_metrics):
            scores = {name: float(value) for name, value in metrics.items() if name in self._evaluation_names}
            if scores:
                return scores
        return {}

    # ---- evaluations and predictions

    def on_test_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Begins to show a test."""
        self._evaluation_started = time.monotonic()
        self._start_work(trainer, pl_module, "testing", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the line."""
        self._advance_work()

    def on_test_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Notes the scores."""
        self._note_evaluation_names(trainer)
        self._scores = self._evaluation_metrics(trainer)
        self._close()

    def on_predict_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Opens a prediction."""
        self._open(trainer, pl_module)

    def on_predict_batch_start(
        self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begins to show a prediction: now it is known which files are left to predict."""
        if self._work is None:
            self._start_work(trainer, pl_module, "predicting", sum(trainer.num_predict_batches))

    def on_predict_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the line."""
        self._advance_work()

    def on_predict_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Removes the line."""
        self._close()

    def _start_work(self, trainer: Any, task: Any, title: str, batches: float) -> None:
        self._open(trainer, task)
        trainer.validate_loop.verbose = trainer.test_loop.verbose = False  # the tables that are printed at the end
        if self.is_enabled:
            self._work = WorkProgress(title, batches, unit="batches")
            self._work.start(bar=self.bar)

    def _advance_work(self) -> None:
        if self._work is not None:
            self._work.advance()

    def _conclude_evaluation(self, trainer: Any, task: Any, title: str) -> None:
        """Says the scores, unless a callback has printed a table of them, how long it took, and where the report is."""
        has_table = any(getattr(callback, "prints_scores", False) for callback in trainer.callbacks)
        seconds = in_words(time.monotonic() - self._evaluation_started)
        self._say_parts([title, *([] if has_table else _describe_scores(self._scores)), f"in {seconds}"])
        folder = getattr(task, "run_folder", None)
        if folder is not None and (folder / REPORT).is_file():
            self._say(f"report: {short_path(folder / REPORT)}")

    # ---- the end of a training

    def _conclude_training(self, trainer: Any, task: Any) -> None:
        """Says how long it took, which checkpoint is best, where everything is, and what comes next."""
        seconds = in_words(time.monotonic() - self._started)
        epochs = count_words(trainer.current_epoch, "epoch")
        if trainer.max_epochs not in (None, -1) and trainer.current_epoch < trainer.max_epochs:
            epochs += f" of {trainer.max_epochs:,}"
        self._say(f"done in {seconds}: {count_words(trainer.global_step, 'step')}, {epochs}")
        if rows := describe_results(trainer, task):
            self._say(*layout_rows(rows, _width()))
        if commands := next_commands(trainer, task):
            self._say("next:", *(f"  {command}" for command in commands))


def _describe_scores(scores: Mapping[str, float]) -> list[str]:
    """Names and values, without the word for the split."""
    return [f"{name.partition('/')[2] or name} {format_number(value)}" for name, value in scores.items()]


def _finite_sum(numbers: Any) -> int:
    total = sum(numbers) if isinstance(numbers, list) else numbers
    return int(total) if math.isfinite(total) else 0


def _width() -> int:
    return shutil.get_terminal_size().columns

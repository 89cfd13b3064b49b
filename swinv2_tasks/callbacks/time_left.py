"""How long a training will still take, from what it has taken so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What a training consists of, counted in training batches from its very beginning.

    Attributes:
        batches: of the whole training.
        epoch_batches: of an epoch.
        every_n_epochs: epochs from one validation to the next; None: ``every_n_batches`` counts over all epochs.
        every_n_batches: batches from one validation to the next within an epoch; 0: no validation.
        validation_batches: batches of a validation.
        ends_with_validation: whether one follows the last batch in any case.
    """

    batches: int
    epoch_batches: int
    every_n_epochs: int | None = 1
    every_n_batches: int = 0
    validation_batches: int = 0
    ends_with_validation: bool = False

    def epochs_until(self, batches: int) -> int:
        """Epochs that have begun once so many batches are done."""
        return -(-batches // self.epoch_batches)

    def validations_until(self, batches: int) -> int:
        """Validations that are due by the time so many batches are done, the last batch's included."""
        if not self.every_n_batches or not self.validation_batches:
            return 0
        if self.every_n_epochs is None:
            number, due = batches // self.every_n_batches, batches % self.every_n_batches == 0
        else:
            epochs, rest = divmod(batches, self.epoch_batches)
            per_epoch = self.epoch_batches // self.every_n_batches
            number = epochs // self.every_n_epochs * per_epoch
            is_validated = (epochs + (rest > 0)) % self.every_n_epochs == 0
            if rest and is_validated:
                number += rest // self.every_n_batches
            due = is_validated and (rest or self.epoch_batches) % self.every_n_batches == 0
        return number + int(self.ends_with_validation and batches >= self.batches and not due)


class _Mean:
    """A mean in which later values weigh more: the k-th as much as k."""

    def __init__(self) -> None:
        self.number = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.number += 1
        self.value += (value - self.value) * 2 / (self.number + 1)


class TimeLeft:
    """Measures the parts of a training and adds up those that are still to come.

    Training batches take their mean. What the first batch after the start of an epoch or after a validation takes
    beyond that is the price of that break: of loaders that start, of checkpoints. A validation takes the mean of those
    before; the first one as long as its batches would at the pace of the fastest in the check before training, or of
    training batches without their backward pass.

    Args:
        clock: the time in seconds.

    Attributes:
        plan: what the training consists of; None: nobody knows, there is no estimate.
        done: training batches that are done.
        is_validating: whether a validation runs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan: Plan | None = None
        self.done = 0
        self._clock = clock
        self._validations = 0
        """Validations that are done."""
        self._batch = _Mean()
        self._after_epoch, self._after_validation = _Mean(), _Mean()
        """Seconds of the first batch after each."""
        self._validation = _Mean()
        self._check_batch: float | None = None
        """Seconds of the fastest batch of the check before training: the first one waits for the loader's start."""
        self._validation_start = self._validation_last = 0.0
        """When the validation that runs began, and when its latest batch was done."""
        self._fastest = math.inf
        """Seconds of its fastest batch."""
        self._validated = 0
        """Batches of the validation that runs."""
        self.is_validating = False
        self._break: _Mean | None = _Mean()
        """What the next batch is the first after; before the first of all nothing that comes back."""
        self._last = clock()

    # ---- what happens

    def start(self, plan: Plan | None, done: int = 0) -> None:
        """The training begins, or one is resumed of which ``done`` batches are done."""
        self.plan, self.done = plan, done
        self._validations = 0 if plan is None else plan.validations_until(done)
        self._last = self._clock()

    def start_epoch(self) -> None:
        """An epoch begins."""
        if self._break is None:
            self._break = self._after_epoch

    def finish_batch(self, done: int | None = None) -> None:
        """A training batch is done; ``done`` is how many there were in all, one more where it is None."""
        now = self._clock()
        measured = self._batch if self._break is None else self._break
        measured.add(now - self._last)
        self._last, self._break = now, None
        self.done = self.done + 1 if done is None else done

    def start_validation(self) -> None:
        """A validation begins, or the check before training."""
        self._validation_start = self._validation_last = self._clock()
        self._fastest, self._validated, self.is_validating = math.inf, 0, True

    def finish_validation_batch(self) -> None:
        """A batch of a validation is done."""
        now = self._clock()
        self._fastest = min(self._fastest, now - self._validation_last)
        self._validation_last = now
        self._validated += 1

    def finish_check(self) -> None:
        """The check before training is done."""
        if self._validated:
            self._check_batch = self._fastest
        self.is_validating = False

    def finish_validation(self) -> None:
        """A validation is done."""
        now = self._clock()
        self._validation.add(now - self._validation_start)
        self._validations += 1
        self._last, self._break, self.is_validating = now, self._after_validation, False

    # ---- what follows from it

    def seconds(self) -> float | None:
        """Seconds until the training ends; None while nothing is known."""
        if self.plan is None:
            return None
        epochs = self.plan.epochs_until(self.plan.batches) - max(1, self.plan.epochs_until(self.done))
        validations = self.plan.validations_until(self.plan.batches) - self._validations
        left = self._cost(self.plan.batches - self.done, epochs, validations)
        if left is None or not self.is_validating:
            return left
        share = self._validated / max(1, self.plan.validation_batches)
        return max(0.0, left - min(1.0, share) * self._validation_seconds())

    def share(self) -> float | None:
        """How much of the training is done, in time; None while nothing is known."""
        left = self.seconds()
        if left is None or self.plan is None:
            return None
        epochs, validations = self.plan.epochs_until(self.plan.batches), self.plan.validations_until(self.plan.batches)
        total = self._cost(self.plan.batches, epochs - 1, validations)
        return 1 - left / total if total else None

    def _cost(self, batches: int, epochs: int, validations: int) -> float | None:
        """Seconds of so many batches, starts of epochs and validations."""
        batch = self._batch_seconds()
        if batch is None:
            return None
        validation = self._validation_seconds() + _beyond(self._after_validation, batch)
        epoch = _beyond(self._after_epoch, batch)
        breaks = max(0, epochs - validations)  # an epoch that begins after a validation is no second break
        return max(0, batches) * batch + breaks * epoch + max(0, validations) * validation

    def _batch_seconds(self) -> float | None:
        if self._batch.number:
            return self._batch.value
        breaks = [mean for mean in (self._after_epoch, self._after_validation) if mean.number]  # epochs of one batch
        return sum(mean.value for mean in breaks) / len(breaks) if breaks else None

    def _validation_seconds(self) -> float:
        if self._validation.number:
            return self._validation.value
        batch = self._check_batch
        if batch is None:
            batch = (self._batch_seconds() or 0.0) / 3
        return batch * (self.plan.validation_batches if self.plan else 0)


def _beyond(measured: _Mean, batch: float) -> float:
    """What the first batch after a break takes beyond any other."""
    return max(0.0, measured.value - batch) if measured.number else 0.0


def steps_to_batches(steps: float, steps_done: int, batches_done: int, accumulated: int) -> int:
    """Training batches that so many further optimizer steps take.

    Args:
        steps: that are still to be made.
        steps_done: steps that were made …
        batches_done: … of so many batches; 0: none yet.
        accumulated: batches of a step, where none was made.
    """
    ratio = batches_done / steps_done if steps_done and batches_done else accumulated
    return math.ceil(steps * ratio)

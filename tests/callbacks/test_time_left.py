"""The time that is left of simulated trainings, in which a second is as long as the simulation says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from swinv2_tasks.callbacks.time_left import Plan, TimeLeft, steps_to_batches


class Simulation:
    """A training on a clock of its own, which notes what was estimated after each batch.

    Args:
        plan: what the training consists of.
        batch: seconds of a batch, with noise of a fifth.
        loader: seconds before the first batch of an epoch, and of the check before training.
        validation: seconds of a batch of a validation.
        check: batches of the check before training.
        slower: by how much the last batch is slower than the first.
    """

    def __init__(
        self,
        plan: Plan,
        batch: float = 1.0,
        loader: float = 0.0,
        validation: float = 0.5,
        check: int = 0,
        slower: float = 1.0,
    ) -> None:
        self.now = 0.0
        self.estimates: list[tuple[float, float | None, float | None]] = []
        rng = np.random.default_rng(0)
        left = TimeLeft(clock=lambda: self.now)

        if check:
            left.start_validation()
            self.now += loader
            for _ in range(check):
                self.now += validation
                left.finish_validation_batch()
            left.finish_check()

        left.start(plan)
        self.begun = self.now
        validations = 0
        for done in range(1, plan.batches + 1):
            if (done - 1) % plan.epoch_batches == 0:
                left.start_epoch()
                self.now += loader + (5 * batch if done == 1 else 0)
            self.now += batch * rng.uniform(0.8, 1.2) * (1 + (slower - 1) * done / plan.batches)
            left.finish_batch(done)
            self.estimates.append((self.now, left.seconds(), left.share()))
            while validations < plan.validations_until(done):
                left.start_validation()
                for _ in range(plan.validation_batches):
                    self.now += validation
                    left.finish_validation_batch()
                    self.estimates.append((self.now, left.seconds(), left.share()))
                self.now += 2 * batch  # the scores
                left.finish_validation()
                validations += 1

    def errors(self, after: float) -> Iterator[float]:
        """By how much the whole time was wrong, as a share of it, from a share of the training on."""
        whole = self.now - self.begun
        for now, seconds, _ in self.estimates:
            if now - self.begun >= after * whole:
                assert seconds is not None
                yield abs(now + seconds - self.now) / whole


PLANS = {
    "no validation": Plan(1000, 100),
    "each epoch": Plan(1000, 50, 1, 50, 20),
    "each fourth epoch": Plan(1000, 25, 4, 25, 30),
    "in the middle of epochs": Plan(1000, 200, 1, 30, 10),
    "by batches over all epochs": Plan(1000, 70, None, 45, 10),
    "a last one": Plan(1010, 100, 3, 100, 40, ends_with_validation=True),
    "one epoch of steps": Plan(900, 900, 1, 300, 50),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("loader", [0.0, 5.0])
def test_it_is_right_within_a_tenth_once_a_twentieth_is_done(name: str, loader: float) -> None:
    run = Simulation(PLANS[name], loader=loader, check=2)
    assert max(run.errors(after=0.05)) < 0.1
    assert max(run.errors(after=0.5)) < 0.03


def test_without_a_check_a_validation_is_taken_to_be_cheaper_than_training() -> None:
    run = Simulation(Plan(1000, 500, 1, 500, 100), validation=0.35)
    assert max(run.errors(after=0.05)) < 0.1


def test_batches_that_get_slower_are_followed() -> None:
    run = Simulation(Plan(1000, 100), slower=2.0)
    assert max(run.errors(after=0.6)) < 0.1  # of all batches alike, the error would be 0.17


def test_the_share_grows_from_0_to_1() -> None:
    run = Simulation(PLANS["each epoch"], check=2)
    shares = [share for _, _, share in run.estimates if share is not None]
    assert shares[0] < 0.02 and shares[-1] > 0.98
    assert np.diff(shares).min() > -0.05


def test_epochs_of_one_batch() -> None:
    run = Simulation(Plan(200, 1, 10, 1, 4), loader=1.0)
    assert max(run.errors(after=0.2)) < 0.1


def test_nothing_is_known_before_the_first_usual_batch_or_without_a_plan() -> None:
    left = TimeLeft()
    left.start(Plan(10, 5))
    assert left.seconds() is None and left.share() is None
    unknown = TimeLeft()
    unknown.start(None)
    for _ in range(3):
        unknown.finish_batch()
    assert unknown.seconds() is None and unknown.share() is None


def test_a_resumed_training_has_less_to_do() -> None:
    now = 0.0
    left = TimeLeft(clock=lambda: now)
    left.start(Plan(1000, 100, 1, 100, 10), done=500)
    for done in range(501, 511):
        now += 1
        left.finish_batch(done)
    seconds, share = left.seconds(), left.share()
    assert seconds == pytest.approx(490 + 5 * 10 / 3)
    assert share == pytest.approx(0.51, abs=0.01)


@pytest.mark.parametrize(
    ("plan", "numbers"),
    [
        (Plan(10, 5, 1, 5, 1), {4: 0, 5: 1, 9: 1, 10: 2}),
        (Plan(20, 5, 2, 5, 1), {5: 0, 10: 1, 19: 1, 20: 2}),
        (Plan(20, 5, 2, 2, 1), {7: 1, 9: 2, 10: 2, 17: 3, 20: 4}),
        (Plan(20, 5, None, 3, 1), {2: 0, 3: 1, 20: 6}),
        (Plan(12, 5, 2, 5, 1, ends_with_validation=True), {10: 1, 11: 1, 12: 2}),
        (Plan(10, 5, 1, 5, 1, ends_with_validation=True), {10: 2}),
        (Plan(10, 5, 1, 0, 1), {10: 0}),
    ],
)
def test_validations_that_are_due(plan: Plan, numbers: dict[int, int]) -> None:
    assert {done: plan.validations_until(done) for done in numbers} == numbers


def test_epochs_that_have_begun() -> None:
    assert [Plan(12, 5).epochs_until(done) for done in (0, 1, 5, 6, 12)] == [0, 1, 1, 2, 3]


def test_steps_in_batches() -> None:
    assert steps_to_batches(10, 0, 0, accumulated=4) == 40
    assert steps_to_batches(10, 20, 30, accumulated=4) == 15

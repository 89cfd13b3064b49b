"""How far long work has come."""

from __future__ import annotations

import pytest

from swinv2_tasks.progress import WorkProgress, in_words


def test_outside_of_a_terminal_lines_tell_how_things_stand(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("Decoding", 4, seconds=0) as progress:
        progress.advance()
        progress.advance(faulty=1)
        progress.advance(2)
    first, second = capsys.readouterr().err.splitlines()  # the last one would tell nothing new
    assert first == "Decoding: 1 of 4"  # of a single time nothing follows
    assert second.startswith("Decoding: 2 of 4, 1 faulty, about ") and second.endswith(" left")


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("Decoding", 4, seconds=1000) as progress:
        progress.advance(3)
    assert capsys.readouterr().err == ""


def test_what_is_left_follows_from_what_is_done() -> None:
    """From the first file on: before it, processes take their time to start."""
    now = 0.0
    progress = WorkProgress("Scoring", 3000, clock=lambda: now)
    assert progress.line() == "Scoring: 0 of 3,000"
    now = 600.0
    progress.advance(16, faulty=2)
    assert progress.line() == "Scoring: 16 of 3,000, 2 faulty"
    now = 660.0
    progress.advance(984)
    assert progress.line() == "Scoring: 1,000 of 3,000, 2 faulty, about 2 min left"
    now = 600.0 + 2400
    progress.advance(1400)
    assert progress.line() == "Scoring: 2,400 of 3,000, 2 faulty, about 10 min left"


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min")])
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words

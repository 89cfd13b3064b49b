"""The journal of a prediction."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.callbacks.prediction_journal import Journal, Record, append_line
from swinv2_tasks.errors import UserError


def record(path: str, error: str = "") -> Record:
    return Record(path=path, stat=[1, 2], files=[], position=None, row=["x"], details=None, error=error)


def test_records_come_back_in_order_whoever_wrote_them(tmp_path: Path) -> None:
    Journal(tmp_path, 0).begin({"model": 1}, [record("c")])
    Journal(tmp_path, 0).append([record("d"), record("a")])
    Journal(tmp_path, 1).append([record(os.fsdecode(b"caf\xe9\n"))])
    names = ["a", "b", "c", "d", os.fsdecode(b"caf\xe9\n")]
    records = list(Journal(tmp_path, 0).in_order({name: index for index, name in enumerate(names)}))
    assert [index for index, _ in records] == [0, 1, 2, 3, 4]
    assert [entry and entry["path"] for _, entry in records] == ["a", None, "c", "d", names[4]]
    assert Journal(tmp_path, 0).settings() == {"model": 1}


def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    journal.begin({}, [])
    journal.append([record("a")])
    journal.append([record("b"), record("c")])
    content = journal.own.read_bytes()
    for length in range(len(content) // 2 + 1, len(content)):
        journal.own.write_bytes(content[:length])
        assert [entry["path"] for entry in journal.records()] == ["a"]


@pytest.mark.parametrize(
    "odd",
    [
        3,
        {},
        {"more": 1},
        {"path": 3},
        {"stat": [1, "2"]},
        {"stat": 3},
        {"row": [None]},
        {"error": None},
        {"files": "labels/x.png"},
        {"files": ["../outside.png"]},
        {"files": ["/outside.png"]},
        {"files": ["labels/../../outside.png"]},
        {"files": ["a\0b"]},
    ],
)
def test_records_that_nobody_writes_are_left_out(odd: Any, tmp_path: Path) -> None:
    """Among them those that would have files removed elsewhere."""
    journal = Journal(tmp_path, 0)
    journal.begin({}, [])
    entry = {**record("b"), **odd} if odd and isinstance(odd, dict) else odd
    journal.own.write_text(f"{json.dumps([record('a'), entry])}\n3\n{'[' * 100_000}\n")
    assert [entry["path"] for entry in journal.records()] == ["a"]


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, '{"a": ', ""])
def test_settings_that_nobody_writes_count_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    assert Journal(tmp_path, 0).settings() is None


def test_beginning_keeps_what_it_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 3)
    journal.begin({}, [])
    journal.append([record("a"), record("b", error="broken")])
    journal.end(1)
    assert journal.bad() == 1
    journal.begin({}, (entry for entry in journal.records() if not entry["error"]))
    assert [entry["path"] for entry in journal.kept()] == ["a"]
    assert journal.bad() == 0
    assert not journal.own.exists()


def test_what_cannot_be_appended_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    append_line(tmp_path / "table.csv", "a\n", "header\n")
    append_line(tmp_path / "table.csv", "b\n", "header\n")
    assert (tmp_path / "table.csv").read_text() == "header\na\nb\n"
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(UserError, match="full cannot be written: No space left on device"):
        append_line(tmp_path / "full", "a\n")

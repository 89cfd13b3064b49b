"""Files of others are opened only where they are files, and cost no more than they look like."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from swinv2_tasks import outside_files
from swinv2_tasks.outside_files import (
    TooLarge,
    check_tree,
    check_yaml,
    load_json,
    load_yaml,
    open_file,
    read_bytes,
    read_lines,
    read_text,
)
from tests.helpers.prices import call


def listen(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(path.name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "pipe, a socket or a device"),
        (listen, "pipe, a socket or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "pipe, a socket or a device"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
        (Path.mkdir, "directory"),
    ],
    ids=["pipe", "socket", "device", "circle", "folder"],
)
def test_only_files_are_opened(
    make: Callable[[Path], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as the name of a socket is short
    make(tmp_path / "file")
    outcome = call(open_file, tmp_path / "file")
    assert outcome.error is not None
    assert issubclass(outcome.error, OSError)
    assert words in outcome.text


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a\r\nb\rc\nä".encode())
    assert read_text(path) == path.read_text()
    assert read_bytes(path, most=len(path.read_bytes())) == path.read_bytes()
    with pytest.raises(OSError, match="has 9 bytes") as caught:
        read_bytes(path, most=8)
    assert caught.value.strerror is not None


def aliases(levels: int, merges: bool = False) -> str:
    """A kilobyte of YAML, each of whose lines stands for nine times as much as the one before."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        nine = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {f'{{<<: [{nine}], k{level}: 1}}' if merges else f'[{nine}]'}")
    return "\n".join(lines)


@pytest.mark.parametrize("load", [load_yaml, check_yaml])
@pytest.mark.parametrize(
    "text",
    [
        aliases(12),
        aliases(12, merges=True),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 100_000,
        "- " * 20_000 + "a",
        "{a: " * 2_000 + "}" * 2_000,
    ],
    ids=["aliases", "merges", "circle", "own mapping", "open lists", "lists", "mappings"],
)
def test_yaml_that_stands_for_more_than_it_looks_is_refused(load: Callable[[str], Any], text: str) -> None:
    outcome = call(load, text)
    assert outcome.error is not None
    assert issubclass(outcome.error, yaml.YAMLError)
    assert outcome.peak < 2**31


def test_yaml_of_plain_values_is_read_as_before() -> None:
    text = "a: &a {x: 1, y: [1.5, null, 2001-02-03]}\nb: {<<: *a, z: *a}\nc: ''\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml("") is None
    check_yaml(text)
    names = yaml.safe_dump({"class_names": [f"class {number}" for number in range(2000)]})
    assert load_yaml(names) == yaml.safe_load(names)


@pytest.mark.parametrize(
    "text", ["a: 0x" + "f" * 1000, "a: " + "9" * 5000, "a: 2001-99-99", "a: !!python/object/apply:os.getcwd []"]
)
def test_yaml_with_values_that_are_none_ends_in_its_own_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


NINES = "9" * 400


@pytest.mark.parametrize(
    "text", [NINES, f"-{NINES}", f'{{"a": [1, {NINES}]}}', "[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 5000]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", None])
def test_json_of_long_numbers_or_many_levels_is_refused(text: str, encoding: str | None) -> None:
    with pytest.raises(ValueError, match=r"digits|levels|deep"):
        load_json(text.encode(encoding) if encoding else text)


def test_json_is_read_as_before() -> None:
    content = {"id": 2**63, "-": -1, "counts": "0" * 500, "x": [1.5, None, True, f"{NINES} in a text"]}
    text = json.dumps(content)
    assert load_json(text) == load_json(text.encode()) == content
    spread = json.dumps([1.0] * 300_000 + [NINES])  # the long one lies across two of the pieces that are looked at
    assert load_json(spread.encode()) == json.loads(spread)


def shared(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value, value]
    return value


def test_a_tree_is_counted_as_often_as_it_is_referred_to() -> None:
    own: list[Any] = []
    own.append({"itself": own})
    text = "x" * 2**20
    for value in (shared(1, 40), shared({}, 40), tuple(shared((), 40)), own, [text] * 100, {"a": 10**200}):
        with pytest.raises(TooLarge):
            check_tree(value)
    check_tree(shared(1, 10))
    check_tree({"ids": [str(number) for number in range(22_000)], "state": (1, 2**128), "none": None})


def test_lines_come_as_they_are_and_long_ones_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_files, "MOST_LINE_BYTES", 8)
    content = b"short\n\n" + b"x" * 20 + b"\nlast"
    (tmp_path / "lines").write_bytes(content)
    lines = [*read_lines(tmp_path / "lines")]
    assert lines == [b"short\n", b"\n", b"x" * 8, b"x" * 8, b"xxxx\n", b"last"]

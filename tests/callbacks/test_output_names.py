"""What results of files are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swinv2_tasks.callbacks.output_names import MAX_BYTES, OutputNames


def name_outputs(*names: str) -> list[str]:
    paths = [f"/data/{name}" for name in names]
    outputs = OutputNames(paths)
    return [outputs[path] for path in paths]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg"], ["a.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png", "a.png.png", "a.jpg.png.png"]),
        (["a.jpg.png", "a.png", "a.jpg"], ["a.jpg.png.png", "a.png.png", "a.jpg.png"]),
        (["a.jpg", "a.png", "a.jpg.png", "b"], ["a.jpg.png", "a.png.png", "a.jpg.png.png", "b.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg.png", "a.png/b.png"]),  # a.png is a folder
    ],
)
def test_names_are_alike_where_they_can_be(names: list[str], expected: list[str]) -> None:
    assert name_outputs(*names) == expected


def test_a_chain_of_names_that_take_each_others_places() -> None:
    names = [
        "a.jpg",
        "a.png",
        *(f"a.jpg{'.png' * k}" for k in range(1, 6)),
        *(f"a.png{'.png' * k}" for k in range(1, 6)),
    ]
    assert len(set(name_outputs(*names))) == len(names)


def test_names_differ_where_case_does_not_count() -> None:
    names = ["A/x.jpg", "a/x.jpg", "b.jpg", "B.jpg", "\u00e9.jpg", "e\u0301.jpg", "straße.jpg", "STRASSE.jpg"]
    output_names = name_outputs(*names)
    assert len({name.casefold() for name in output_names}) == len(names)
    assert name_outputs(*names) == output_names  # always the same


def test_a_file_named_twice_has_one_name() -> None:
    assert name_outputs("a.jpg", "b.jpg", "a.jpg") == ["a.png", "b.png", "a.png"]


def test_long_names_are_shortened_apart_and_stay_text() -> None:
    names = ["x" * 251 + end for end in (".jpg", ".png")] + ["語" * 84 + end for end in (".a", ".b")]
    names += [os.fsdecode(b"\xe9" * 253 + b".j")]
    output_names = name_outputs(*names)
    assert len(set(output_names)) == len(names)
    assert all(len(os.fsencode(Path(name).name)) <= MAX_BYTES and name.endswith(".png") for name in output_names)
    assert all(name.encode() for name in output_names[:4])


def test_dots_do_not_lead_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ["x/../../a.jpg", "b/../b/1.jpg", "b/1.jpg", "../../../../../c.jpg"]
    outputs = OutputNames(paths)
    assert len({outputs[path] for path in paths}) == 4
    assert not any(".." in Path(outputs[path]).parts or Path(outputs[path]).is_absolute() for path in paths)

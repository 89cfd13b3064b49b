"""A JSON object of lists is read entry by entry as json reads the whole, whatever lies where a piece of it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.datamodules.readers import json_lists
from swinv2_tasks.datamodules.readers.json_lists import JsonLists

CONTENT: dict[str, Any] = {
    "info": {"lists": [1, [2, "]"]], "text": 'a "quoted" \\ text, \u20ac \U0001f600'},
    "images": [{"id": 1, "name": "ä.jpg"}, {"id": 2, "name": "日本.jpg"}],
    "none": [],
    "number": -12.5e3,
    "annotations": [123456, 7.25, "text", None, True, [], {}, {"parts": [[1.5, 2, 3e-2]] * 3}],
}


def read(path: Path) -> dict[str, list[Any]]:
    lists = JsonLists(path)
    found: dict[str, list[Any]] = {}
    for name, index, entry in lists:
        assert index == len(found.setdefault(name, []))
        found[name].append(entry)
    assert list(lists.types) == list(CONTENT)
    assert [name for name, cls in lists.types.items() if cls is list] == ["images", "none", "annotations"]
    return found


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_entries_are_those_of_json(piece: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lists, "_PIECE", max(piece, 4))  # four bytes tell the encoding
    path = tmp_path / "a.json"
    for text in (json.dumps(CONTENT), json.dumps(CONTENT, ensure_ascii=False, indent=3), json.dumps(CONTENT) + " \n"):
        path.write_text(text, encoding)
        assert read(path) == {"images": CONTENT["images"], "annotations": CONTENT["annotations"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting '{'"),
        ("{", "Expecting value"),
        ('{"a" 1}', "Expecting ':'"),
        ('{"a": [1 2]}', "Expecting ',' or ']'"),
        ('{"a": [1,]}', "Expecting value"),
        ('{"a": [1, {"b": 2', "Expecting ',' delimiter"),
        ('{"a": [1', "Expecting ',' or ']'"),
        ('{"a": "text', "Unterminated string"),
        ('{"a": 1} {', "Extra data: character 9"),
        ('{"a": 1, "a": []}', "'a' stands there twice"),
        ("{1: 2}", "quotation marks"),
        ('{"a": [' + "9" * 102 + "]}", "more than 100 digits"),
        ('{"a": [1, [' + "[" * 100_000, "nested too deep"),
    ],
)
@pytest.mark.parametrize("piece", [4, 2**20])
def test_what_is_no_object_of_lists_is_refused(
    text: str, message: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lists, "_PIECE", piece)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        list(JsonLists(tmp_path / "a.json"))
    assert message in str(caught.value)

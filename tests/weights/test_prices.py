"""Reading a checkpoint costs what its bytes account for: each of these stands for gigabytes, or for hours."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from swinv2_tasks.errors import UserError
from swinv2_tasks.weights import load_weights
from swinv2_tasks.weights.files import read_checkpoint, read_contents, write_pickle
from swinv2_tasks.weights.formats import FORMATS, describe_variant, find_unsupported_keys, from_official, to_official
from swinv2_tasks.weights.integrity import find_checksum_mismatch
from tests.helpers.checkpoints import official_state, tiny_backbone
from tests.helpers.prices import call, refusal


def write_zip(path: Path, pickled: bytes) -> None:
    """A file as torch writes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


def shared_list(levels: int = 40) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value, value]
    return value


def own_list() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested_key() -> bytes:
    """A dict with a key of tuples, each of which holds the one before twice."""
    key: Any = ()
    for _ in range(60):
        key = (key, key)
    return b"\x80\x02}" + pickle.dumps(key, 2)[2:-1] + b"K\x01s."


def plain(contents: Any) -> Callable[[Path], None]:
    return lambda path: write_zip(path, pickle.dumps(contents, 2))


def pickled(content: bytes) -> Callable[[Path], None]:
    return lambda path: write_zip(path, content)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        with archive.open("archive/data/0", "w", force_zip64=True) as part:
            for _ in range(4096):  # 4 MB in the file
                part.write(bytes(2**20))


def overlapping(path: Path) -> None:
    """A thousand entries for one part of ten megabytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(10_000_000))
        archive.filelist += [archive.filelist[-1]] * 10_000


def repeated(legacy: bool) -> Callable[[Path], None]:
    """A tensor of 10¹² numbers, which are all the same one."""
    state = {"patch_embed.proj.weight": torch.zeros(1).expand(10**6, 10**6)}
    return lambda path: torch.save(state, path, _use_new_zipfile_serialization=not legacy)


def long_storage(path: Path) -> None:
    """In torch's old format, whose reader asks for the memory first."""
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    stated = b"M" + struct.pack("<H", 1000)
    assert stated in content
    path.write_bytes(content.replace(stated, b"J" + struct.pack("<i", 2**31 - 1), 1))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "shared list": (plain({"record": shared_list()}), "stand for more than"),
    "own list": (plain({"record": own_list()}), "in a circle"),
    "deep list": (pickled(b"\x80\x02}K\x01" + b"]" * 5000 + b"a" * 4999 + b"s."), "levels deep"),
    "nested key": (pickled(nested_key()), "tuples stand for more"),
    "kept far up": (pickled(b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."), "under the number"),
    "long number": (pickled(b"\x80\x02}\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"."), "256 bits"),
    "compressed": (compressed, "compressed"),
    "overlapping": (overlapping, "parts have"),
    "repeated": (repeated(legacy=False), "repeats the 1 numbers"),
    "repeated, legacy": (repeated(legacy=True), "repeats the 1 numbers"),
    "long storage": (long_storage, "its tensors need"),
    "pipe": (os.mkfifo, "is a pipe"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "compressed" else name for name in FILES]
)
def test_a_checkpoint_that_costs_more_than_its_bytes_is_refused(name: str, tmp_path: Path) -> None:
    write, words = FILES[name]
    path = tmp_path / "weights.pth"
    write(path)
    message = refusal(read_checkpoint, path)
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize("name", [pytest.param("compressed", marks=pytest.mark.slow), "overlapping"])
def test_checksums_are_not_computed_of_what_a_zip_file_only_states(name: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    FILES[name][0](path)
    assert FILES[name][1] in (find_checksum_mismatch(path) or "")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [({"note": "x" * 20_000_000}, "header has"), ({"swinv2_tasks": "[" * 5000 + "]" * 5000}, "deep")],
)
def test_a_safetensors_file_has_a_bounded_header(metadata: dict[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(official_state(), path, metadata)
    assert words in refusal(read_checkpoint, path)


@pytest.mark.parametrize(
    "text", ['{"weight_map": ' + "[" * 5000, '{"weight_map": {' + '"a": "b",' * 2_000_000 + '"a": "b"}}']
)
def test_an_index_of_shards_is_bounded(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(read_checkpoint, tmp_path)


@pytest.mark.parametrize("number", [10**12, 0, -1, True, "many"])
def test_a_sharded_checkpoint_states_a_number_of_shards(number: Any, tmp_path: Path) -> None:
    write_pickle(tmp_path / "rest.pt", {"shards": {"number": number, "shapes": {}, "saved": "x"}})
    assert "number of shards" in refusal(read_contents, tmp_path)


FAR = {
    "official": ("layers.1000000.blocks.5.attn.logit_scale", "layers.999999.blocks.999999.attn.logit_scale"),
    "torchvision": ("features.2000001.5.attn.logit_scale", "features.999999.999999.attn.logit_scale"),
    "huggingface": (
        "swinv2.encoder.layers.0.blocks.999999.attention.self.logit_scale",
        f"layers.{'9' * 5000}.blocks.1",
    ),
}


def with_far_names(format: str) -> dict[str, Tensor]:
    state = from_official(official_state(), format)  # type: ignore[arg-type]
    return {**state, **{name: torch.zeros(1, 1, 1) for name in FAR[format]}}


def load_far(format: str) -> list[str]:
    return load_weights(tiny_backbone(), with_far_names(format)).unexpected


@pytest.mark.parametrize("format", FAR)
def test_names_do_not_choose_how_many_stages_and_blocks_there_are(format: str) -> None:
    outcome = call(load_far, format)  # names that no model has are reported, those that one may have count
    assert outcome.error in (None, UserError)
    assert any(word in outcome.text for word in ("is missing", "the checkpoint is SwinV2", "999999"))
    assert outcome.peak < 2**31


@pytest.mark.parametrize("format", FORMATS)
def test_names_of_all_stages_and_blocks_go_to_each_format_and_back(format: Any) -> None:
    state = official_state()
    learned = {name for name in state if name not in find_unsupported_keys(state, format)}
    back = to_official(from_official(state, format), format)
    assert {name for name in learned if "relative_" not in name and "attn_mask" not in name} <= back.keys()


def test_a_stage_that_is_missing_is_named() -> None:
    state = {name.replace("layers.2.", "layers.7."): tensor for name, tensor in official_state().items()}
    with pytest.raises(UserError, match=r"layers\.2 is missing, while layers\.7 is there"):
        describe_variant(state)


def test_records_with_long_lists_of_classes_are_read(tmp_path: Path) -> None:
    """Those of ImageNet-22k, with an optimizer's state of many parameters."""
    names = [f"class {number}" for number in range(21_841)]
    states = {index: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)} for index in range(500)}
    contents = {"swinv2_tasks": {"classes": {"ids": names, "names": names}}, "optimizer_states": [{"state": states}]}
    torch.save({**contents, "state_dict": official_state()}, tmp_path / "last.ckpt")
    read = read_contents(tmp_path / "last.ckpt")
    assert read["swinv2_tasks"] == contents["swinv2_tasks"]
    save_file(official_state(), tmp_path / "w.safetensors", {"swinv2_tasks": json.dumps(contents["swinv2_tasks"])})
    assert read_checkpoint(tmp_path / "w.safetensors").record == contents["swinv2_tasks"]

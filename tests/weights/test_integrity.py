"""Corrupt checkpoints, and such that hold what is no weight, are refused by every way of loading; nothing changes."""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from swinv2_tasks.commands.weights import convert, inspect
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights import load_weights
from swinv2_tasks.weights.integrity import is_finite
from tests.helpers.broken_files import cut_off
from tests.helpers.checkpoints import official_state, randomize, tiny_backbone

KEY = "layers.2.blocks.0.mlp.fc1.weight"


def write_zip(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"model": state}, path)


def write_legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)


def write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)


WRITERS = {"zip": write_zip, "legacy": write_legacy, "safetensors": write_safetensors}


def refusals(source: Any) -> list[str]:
    """What load_weights, inspect and convert say of a source, of which the module keeps nothing."""
    backbone = randomize(tiny_backbone())
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    windows = backbone.pretrained_window_size
    messages = []
    target = Path(str(source) + ".out") if isinstance(source, Path) else None
    ways: list[Callable[[], Any]] = [lambda: load_weights(backbone, source)]
    if target is not None:
        ways += [lambda: inspect(str(source)), lambda: convert(str(source), str(target))]
    for way in ways:
        with pytest.raises(UserError) as caught:
            way()
        messages.append(str(caught.value))
    assert target is None or not target.exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert backbone.pretrained_window_size == windows
    return messages


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(
    value: float, dtype: torch.dtype, write: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    state = official_state()
    state[KEY] = state[KEY].to(dtype)
    state[KEY][3, 5] = value
    write(state, tmp_path / "weights.bin")
    for message in refusals(tmp_path / "weights.bin"):
        assert KEY in message
        assert str(tmp_path / "weights.bin") in message
        assert "NaN" in message
    assert KEY in refusals({"model": state})[0]


def test_infinities_of_both_signs_and_sums_beyond_the_largest_number_are_told_apart() -> None:
    assert not is_finite(torch.tensor([math.inf, -math.inf, 1.0]))
    assert is_finite(torch.full((8,), 3e38))
    assert is_finite(torch.full((8,), 6e4, dtype=torch.float16))
    assert not is_finite(torch.tensor([1.0, math.nan], dtype=torch.float8_e4m3fn))
    assert is_finite(torch.arange(5))


def test_numbers_too_large_for_the_models_type_are_refused() -> None:
    state = official_state()
    state[KEY] = state[KEY].double()
    state[KEY][0, 0] = 1e300
    with pytest.raises(UserError, match="in the model's type"):
        load_weights(tiny_backbone(), state)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.complex64])
def test_other_kinds_of_numbers_in_place_of_weights_are_refused(
    dtype: torch.dtype, write: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    state = official_state()
    state[KEY] = state[KEY].to(dtype)
    write(state, tmp_path / "weights.bin")
    for message in refusals(tmp_path / "weights.bin"):
        assert KEY in message
        assert str(dtype).removeprefix("torch.") in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_reported(dtype: torch.dtype) -> None:
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in official_state().items()}
    backbone = tiny_backbone()
    report = load_weights(backbone, state)
    assert report.cast == [str(dtype).removeprefix("torch.")]
    assert f"cast from {report.cast[0]}" in str(report)
    assert torch.equal(backbone.state_dict()[KEY], state[KEY].float())
    assert load_weights(tiny_backbone(), official_state()).cast == []


def flip_bit(path: Path, needle: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(needle) + 1] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "pytorch_model.bin", "last.ckpt"])
def test_a_flipped_bit_in_a_zip_is_told_by_its_checksum(name: str, tmp_path: Path) -> None:
    path, state = tmp_path / name, official_state()
    write_zip(state, path)
    load_weights(tiny_backbone(), path)
    flip_bit(path, state[KEY].numpy().tobytes()[:32])
    for message in refusals(path):
        assert str(path) in message
        assert "checksum" in message
    if name == "pytorch_model.bin":
        refusals(tmp_path)


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Writes a zip again, with changed records and checksums that agree with them."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_a_storage_shorter_than_its_tensor_is_refused(fraction: float, tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", official_state()
    write_zip(state, path)
    content = state[KEY].numpy().tobytes()
    rewrite(path, lambda _, record: record[: int(fraction * len(record)) // 4 * 4] if record == content else record)
    for message in refusals(path):
        assert str(path) in message
        assert KEY in message
        assert f"{len(content):,} bytes" in message


class Reaching:
    """A tensor as a pickle declares it, with a geometry of the test's choice."""

    def __init__(self, tensor: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = (tensor.storage(), offset, size, stride, False, {})

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("offset", "stride"), [(1, (32, 1)), (0, (33, 1)), (0, (1 << 40, 1)), (-1, (32, 1))], ids=str)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    offset: int, stride: tuple[int, int], legacy: bool, tmp_path: Path
) -> None:
    path, state = tmp_path / "weights.pth", official_state()
    changed: dict[str, Any] = {**state, KEY: Reaching(state[KEY], offset, tuple(state[KEY].shape), stride)}
    torch.save({"model": changed}, path, _use_new_zipfile_serialization=not legacy)
    for message in refusals(path):
        assert str(path) in message
        assert KEY in message


def test_tensors_that_share_a_storage_load(tmp_path: Path) -> None:
    """Views within their storage are intact: transposed ones, rows of a larger tensor."""
    state = official_state()
    larger = torch.cat([state[KEY], state[KEY]])
    rows, columns = state[KEY].shape
    state[KEY] = larger[rows:]
    state["layers.2.blocks.0.mlp.fc2.weight"] = larger[:rows].T
    torch.save({"model": state}, tmp_path / "weights.pth")
    backbone = tiny_backbone()
    load_weights(backbone, tmp_path / "weights.pth")
    assert torch.equal(backbone.state_dict()[KEY], larger[:rows])
    assert (rows, columns) == (128, 32)


def test_safetensors_with_wrong_offsets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(official_state(), path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    offset = header.index(b'"data_offsets":[') + len(b'"data_offsets":[')
    moved = header[:offset] + (b"9" if header[offset : offset + 1] != b"9" else b"8") + header[offset + 1 :]
    path.write_bytes(content[:8] + moved + content[8 + length :])
    for message in refusals(path):
        assert str(path) in message


class Runs:
    def __reduce__(self) -> Any:
        return print, ("this is not run",)


def test_a_refused_pickle_names_what_it_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By an opcode that torch's reader does not know, so that the tensors beside it cannot be read either."""
    path, file = tmp_path / "weights.pth", io.BytesIO()
    pickle.dump({"model": 1, "x": Runs()}, file, protocol=4)
    torch.save({"model": official_state()}, path)
    rewrite(path, lambda name, record: file.getvalue() if name.endswith("data.pkl") else record)
    for message in refusals(path):
        assert "refused: it asks to call builtins.print, and no code of a file is run. Ask its author" in message
        assert "corrupt" not in message and "Download" not in message
    assert "not run" not in capsys.readouterr().out


REFUSED: dict[str, Callable[[Path], object]] = {
    "blocked function": lambda path: torch.save({"model": official_state(), "x": Calls(os.system)}, path),
    "old format": lambda path: torch.save(
        {"model": official_state(), "x": Calls(os.system)}, path, _use_new_zipfile_serialization=False
    ),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps({"model": Calls(os.system)})),
}


class Calls:
    """Unpickled, calls a function."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return self.function, ("touch ran",)


@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_runs_code_is_refused_by_the_call(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    REFUSED[name](path)
    for message in refusals(path):
        assert "is refused" in message and "it asks to call posix.system, and no code of a file is run" in message
        assert "corrupt" not in message and "Download" not in message
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_no_tensors_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"model": np.zeros(3)}))
    for message in refusals(path):
        assert "is refused: it is a pickle of Python objects, not of PyTorch" in message


def test_an_old_file_that_is_cut_off_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    contents = {"model": official_state(), "args": argparse.Namespace(lr=0.1)}
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    cut_off(path)
    for message in refusals(path):
        assert "refused" not in message and "corrupt" in message


def test_an_index_without_a_map_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(UserError, match="weight_map"):
        load_weights(tiny_backbone(), tmp_path)

"""Reading checkpoint files without running anything that is in them, and writing them atomically.

A ``.pth`` file is a pickle: a small program that may name any function. ``torch.load(weights_only=True)`` refuses all
but a few harmless names; released files, however, also pickle a yacs config or an argparse namespace beside tensors.
Each unknown name is therefore bound, before loading, to a placeholder that swallows whatever it is given. Which names a
file mentions is read off its opcodes. No module is imported and no function called that a file asks for.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import reprlib
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.files import replace_file
from swinv2_tasks.hyperparameters import WEIGHTS
from swinv2_tasks.outside_files import TooLarge, check_tree, load_json, open_file, read_json
from swinv2_tasks.python_internals import python3_name
from swinv2_tasks.records import mapping, require, text, values
from swinv2_tasks.text import printable
from swinv2_tasks.weights.formats import without_prefix
from swinv2_tasks.weights.integrity import (
    check_storages,
    find_checksum_mismatch,
    names_in,
    record_sizes,
    scan_pickle,
)
from swinv2_tasks.weights.sharded import REST, KeyPath, assemble, is_sharded, joined, shard_names, unflatten


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        source: what messages call it.
        state: its tensors, without the wrappers and prefixes that training adds.
        contents: the outermost dict, with whatever else is in it.
        config: the config.json beside the weights; empty when there is none.
        prefix: what stood before the names of its tensors and was taken off: "model.", say.
        record: what this package wrote about itself; empty in the files of others.
    """

    source: str
    state: dict[str, Tensor]
    contents: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""

    @property
    def record(self) -> Mapping[str, Any]:
        """What this package recorded about the task, its backbone and windows; empty in other formats.

        Raises:
            UserError: it is not what this package writes.
        """
        record = self.contents.get("swinv2_tasks", {})
        require(record, WEIGHTS, f"{self.source} is corrupt: in its record,")
        return _mapping(record)

    @property
    def other_states(self) -> list[str]:
        """Entries that hold weights as well and were not taken: averaged ones beside those of the training, say."""
        return [key for key in _WRAPPERS if _holds_tensors(self.contents.get(key))][1:]


def read_checkpoint(source: str | PathLike[str] | Mapping[str, Any]) -> Checkpoint:
    """Reads a checkpoint file or folder onto the CPU, or unwraps one that is in memory.

    Args:
        source: a ``.pth``, ``.ckpt`` or ``.safetensors`` file, a folder as Hugging Face and timm write it (weights and
            config.json), a run's sharded checkpoint (without its optimizer's state), or a state dict or a dict around
            one.

    Raises:
        UserError: when there is nothing to read, saying what the file seems to be instead.
    """
    if isinstance(source, Mapping):
        state, prefix = without_prefix(_state_of(source, "the state dict"), "the state dict")
        return Checkpoint("the state dict", state, source, prefix=prefix)

    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; weights are read from disk, not downloaded by name")

    if is_sharded(path):
        shards = {key: value for key, value in read_shards(path).items() if key != "optimizer_states"}
        contents = assemble(shards)
        state, prefix = without_prefix(_state_of(contents, str(path)), str(path))
        return Checkpoint(str(path), state, contents, prefix=prefix)

    files = _weight_files(path) if path.is_dir() else [path]
    parts = [_read_file(file) for file in files]
    tensors = {name: tensor for part in parts for name, tensor in _state_of(part, str(path)).items()}
    state, prefix = without_prefix(tensors, str(path))
    return Checkpoint(str(path), state, parts[0], _read_config(files[0]), prefix)


def read_shards(folder: Path) -> dict[str, Any]:
    """Contents of a sharded checkpoint, with a ``ShardedTensor`` for each sharded tensor.

    Raises:
        UserError: a shard is missing or corrupt, or belongs to another checkpoint.
    """
    rest = _read_file(folder / REST)
    try:
        names = _names_of_shards(rest)
        shapes = {key_path: rest["shards"]["shapes"][key_path] for key_path in rest["shards"]["shapes"]}
        save_id = rest["shards"]["saved"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / REST} is no part of a checkpoint that this package wrote: {error} is wrong"
        ) from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} lacks {', '.join(absent)}: the checkpoint has {len(names)} shards, copy the folder with all of "
            "them"
        )

    parts: dict[KeyPath, list[tuple[int, Tensor]]] = {key_path: [] for key_path in shapes}
    for name in names:
        shard = _read_file(folder / name)
        if shard.get("saved") != save_id:
            raise UserError(
                f"{folder / name} belongs to another checkpoint than {REST} beside it: copy the folder again"
            )
        try:
            for key_path, tensor in shard["tensors"].items():
                parts[key_path].append((shard["first_rows"][key_path], tensor))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / name} is corrupt: {error} is wrong. Copy the folder again.") from error

    try:
        leaves = {key_path: joined(shape, parts[key_path]) for key_path, shape in shapes.items()}
    except ValueError as error:
        raise UserError(f"{folder} is corrupt: its shards {error}. Copy the folder again.") from error
    return unflatten({key: value for key, value in rest.items() if key != "shards"}, leaves)


MOST_SHARDS = 65_536
"""Of a sharded checkpoint: as many as processes wrote it."""


def _names_of_shards(rest: Mapping[str, Any]) -> list[str]:
    number = rest["shards"]["number"]
    if type(number) is not int or not 1 <= number <= MOST_SHARDS:
        raise TypeError(f"the number of shards, {reprlib.repr(number)},")
    return shard_names(number)


def read_contents(path: Path) -> Mapping[str, Any]:
    """The outermost dict of a file or of a sharded checkpoint; sharded tensors are not read yet."""
    return read_shards(path) if is_sharded(path) else read_checkpoint(path).contents


_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds weights as Hugging Face and timm write them."""
    names = [name for file in _FOLDER_FILES for name in (file, f"{file}.index.json")]
    return any((folder / name).is_file() for name in names)


def _weight_files(folder: Path) -> list[Path]:
    """The weights in a folder; several files when an index names shards."""
    for name in _FOLDER_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            content = _read_json(index)
            require(content, mapping({"weight_map": values(text)}), f"{index}:", "Download it again.")
            shards = {*content["weight_map"].values()}
            if odd := [shard for shard in sorted(shards) if shard in ("", ".", "..") or Path(shard).name != shard]:
                raise UserError(
                    f"{index}: {printable(odd[0][:60])!r} in its weight_map is no file beside it. Download it again."
                )
            if not shards:
                raise UserError(f"{index}: its weight_map names no file. Download it again.")
            return [folder / shard for shard in sorted(shards)]
    raise UserError(f"{folder}: no weights in this folder; expected {' or '.join(_FOLDER_FILES)}")


def _read_config(file: Path) -> dict[str, Any]:
    """config.json beside a file of the name that belongs to one; other files may have strangers for neighbors."""
    config = file.parent / "config.json"
    return _read_json(config) if file.name.startswith(("model", "pytorch_model")) and config.is_file() else {}


MOST_JSON_BYTES = 2**24
"""Of a config.json or an index of shards, which has a line for each tensor."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, MOST_JSON_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        with open_file(path) as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    file_type = _file_type(start)
    if file_type not in (_ZIP, _PICKLE, _SAFETENSORS):
        raise UserError(f"{path}: not a checkpoint but {file_type}. Download it again, or name another file.")

    is_zip = file_type == _ZIP
    try:
        if is_zip and zipfile.is_zipfile(path) and (reason := find_checksum_mismatch(path)) is not None:
            raise UserError(f"{path} is corrupt: {reason}. Download or copy it again; nothing was loaded.")
        contents = _read_safetensors(path) if file_type == _SAFETENSORS else _read_pickle(path, is_zip=is_zip)
        check_tree(contents)
    except UserError:
        raise
    except TooLarge as error:
        raise UserError(f"{path} is refused: {error}. Ask its author for the tensors alone, as safetensors.") from error
    except Exception as error:  # corrupt files make the readers raise anything
        refusal = None if file_type == _SAFETENSORS else _describe_refusal(path, error, is_zip=is_zip)
        if refusal is not None:
            raise UserError(f"{path} is refused: {refusal}") from error
        reason = reason_of(error)
        raise UserError(
            f"{path}: cannot be read. It begins like {file_type} but is corrupt or incomplete ({reason}). Download it "
            "again."
        ) from error

    if not isinstance(contents, Mapping):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of tensors; save model.state_dict()")
    return contents


_ZIP, _PICKLE, _SAFETENSORS = "a PyTorch file", "an old PyTorch file", "a safetensors file"
_STARTS = (  # (first bytes in lower case, what such a file is)
    (b"pk\x03\x04", _ZIP),
    (b"\x80", _PICKLE),
    (b"version https://git-lfs", "a git-lfs pointer, which `git lfs pull` replaces by the file"),
    (b"<!doctype html", "an HTML page, perhaps of a failed or refused download"),
    (b"<html", "an HTML page, perhaps of a failed or refused download"),
    (b"\x1f\x8b", "a gzip archive, to be unpacked first"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89png", "a PNG image"),
)


def _file_type(start: bytes) -> str:
    """What a file is, from its first bytes."""
    if not start.strip(b"\0"):
        return "empty" if not start else "zeros"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER:
        return _SAFETENSORS
    for beginning, file_type in _STARTS:
        if start.lstrip().lower().startswith(beginning):
            return file_type
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return "text"
    return "something unknown"


_LONGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, by the format's own limit."""

MOST_HEADER_BYTES = 2**24
"""Of those that are read: names and places of 100,000 tensors. The header becomes some fifty times as large."""


def _read_safetensors(path: Path) -> dict[str, Any]:
    with open_file(path) as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > MOST_HEADER_BYTES:
        raise TooLarge(f"its header has {header:,} bytes, one of weights at most {MOST_HEADER_BYTES:,}")
    with safe_open(path, framework="pt") as file:
        names = file.keys()  # the file itself cannot be iterated
        contents: dict[str, Any] = {"state_dict": {name: file.get_tensor(name) for name in names}}
        metadata = file.metadata() or {}
    if "swinv2_tasks" in metadata:
        contents["swinv2_tasks"] = load_json(metadata["swinv2_tasks"])
    return contents


def _read_pickle(path: Path, *, is_zip: bool) -> Any:
    names = _named_globals(path, is_zip=is_zip)  # first, as it refuses pickles that would cost any reader too much
    _check_declarations(path, is_zip=is_zip)
    harmless: list[Any] = [(_placeholder(name), name) for name in sorted(names)]
    with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols and deprecated storage types
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_declarations(path: Path, *, is_zip: bool) -> None:
    """Refuses tensors that reach beyond their storage, or storages beyond their record in the file."""
    if not is_zip:
        for number, stream in enumerate(_pickles(path, is_zip=False)):
            if number == 3:  # the object itself
                check_storages(path, stream, None)
                return
            names_in(stream)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as stream:
                    check_storages(path, stream, record_sizes(archive, name))


def _describe_refusal(path: Path, error: Exception, *, is_zip: bool) -> str | None:
    """Why a file is not read that is whole, since it is not plain data, and what to do; None where it is broken."""
    advice = "Ask its author for the tensors alone: a saved state dict, or safetensors."
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, and no code of a file is run. {advice}"

    blocked = re.search(r"GLOBAL (\S+)", str(error))
    called = [blocked[1].rstrip(",")] if blocked else _unknown_names(path, is_zip=is_zip)
    calls = f"it asks to call {', '.join(dict.fromkeys(called[:3]))}, and no code of a file is run" if called else ""
    if isinstance(error, pickle.UnpicklingError) and called:
        return f"{calls}. {advice}"
    if not is_zip and not _begins_as_torch(path):
        return f"it is a pickle of Python objects, not of PyTorch{calls and f'; {calls}'}. {advice}"
    return None


def _begins_as_torch(path: Path) -> bool:
    """Whether a file that is no zip begins with the number by which torch marks its own."""
    with path.open("rb") as stream:
        try:
            opcode, argument, _ = next(op for op in pickletools.genops(stream) if op[0].name != "PROTO")
        except (ValueError, StopIteration):  # nothing tells what it was
            return True
    return opcode.name == "LONG1" and argument == torch.serialization.MAGIC_NUMBER


def _unknown_names(path: Path, *, is_zip: bool) -> list[str]:
    """What a pickle asks for beside tensors and plain containers."""
    try:
        named = [name for stream in _pickles(path, is_zip=is_zip) for name in names_in(stream)]
    except Exception:  # of a file that is too corrupt to be read so far
        return []
    return [name for name in named if not name.startswith(("torch.", "collections.", "_codecs.", "numpy."))]


class _Inert:
    """Stands for an object of a class that is not known: takes any arguments and any state, and keeps none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


class _InertDict:
    """Stands for a dict class: becomes an OrderedDict, the only dict with attributes that torch's reader fills."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


_DICTS = {
    "yacs.config.CfgNode",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "collections.defaultdict",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
}


def _placeholder(name: str) -> type:
    """A new class for each name, so that one allowed name never vouches for another."""
    return type(name, (_InertDict if name in _DICTS else _Inert,), {})


def _named_globals(path: Path, *, is_zip: bool) -> set[str]:
    """Every module.name that the pickles of a file mention, read from the opcodes.

    Raises:
        TooLarge: reading them would take more than their length accounts for.
    """
    names = set()
    for stream in _pickles(path, is_zip=is_zip):
        for module, name in scan_pickle(stream):
            # Python 2 names are translated exactly as torch's reader will translate them.
            names.add(".".join(python3_name(module, name)))
    return names


def _pickles(path: Path, *, is_zip: bool) -> Iterator[IO[bytes]]:
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as stream:
                        yield stream
        return
    with path.open("rb") as stream:  # magic number, protocol, system, the object, storage keys; then raw numbers
        for _ in range(5):
            yield stream


_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")


def _state_of(contents: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of its wrappers."""
    inner = next((contents[key] for key in _WRAPPERS if _holds_tensors(contents.get(key))), contents)
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        entries = ", ".join(map(str, list(contents)[:5])) or "nothing"
        raise UserError(f"{source}: holds no tensors; its entries are {entries}")
    return {clean_name(name): value for name, value in tensors.items()}


def clean_name(name: str) -> str:
    """A parameter's name without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def write_pickle(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes what ``torch.load`` reads, atomically; its checksums tell later whether it still is.

    Raises:
        UserError: when it cannot be written: the disk is full, say. What was there before stays.
    """
    replace_file(path, lambda file: torch.save(dict(contents), file))


def write_safetensors(path: Path, tensors: dict[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes a safetensors file, atomically; ``record`` goes into its metadata, which others skip."""
    metadata = {"format": "pt"} | ({"swinv2_tasks": json.dumps(record)} if record else {})
    replace_file(path, lambda file: save_file(tensors, file, metadata))


def write_folder(path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes model.safetensors and config.json into a folder, each atomically."""
    if path.is_file():
        raise UserError(f"{path}: is a file, where a folder is to be written; name another")
    text = json.dumps(config, indent=2) + "\n"
    write_safetensors(path / "model.safetensors", tensors, {})
    replace_file(path / "config.json", lambda file: file.write_text(text, encoding="utf-8"))


def find_corruption(path: Path) -> str | None:
    """What is wrong with a checkpoint of a run, by its checksums; None when it is intact."""
    if path.is_dir():
        return _find_shard_corruption(path)
    try:
        return find_checksum_mismatch(path)
    except OSError as error:
        return str(error)


def _find_shard_corruption(folder: Path) -> str | None:
    try:
        names = _names_of_shards(_read_file(folder / REST))
    except (UserError, KeyError, TypeError) as error:
        return f"{REST} is missing or corrupt ({error})"
    for name in (REST, *names):
        if (reason := find_corruption(folder / name)) is not None:
            return f"its shard {name}: {reason}"
    return None

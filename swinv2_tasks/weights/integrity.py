"""Whether a checkpoint is intact: checksums, storages as long as their tensors, weights that are finite numbers.

torch's reader trusts a file: it asks no checksum, and takes the length of a storage from the pickle beside it. Where
the record in the file is shorter, the tensor is filled with whatever follows.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import pickletools
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.outside_files import MOST_ENTRIES, TooLarge, check_tree
from swinv2_tasks.torch_internals import check_archive
from swinv2_tasks.weights.formats import some
from swinv2_tasks.weights.sharded import ShardedTensor

# ---- checksums

SETTLED_NS = 2 * 10**9
"""How old a file's last change must be for its date to tell a later change from it."""


def find_checksum_mismatch(path: Path) -> str | None:
    """What is wrong with a zip file by its checksums; None when it is intact. Asked once of a file that stays."""
    stat = path.stat()
    key = (path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    # Changed just now, it may change again within the same tick of the clock that dates files.
    is_settled = time.time_ns() - stat.st_mtime_ns > SETTLED_NS
    return _find_checksum_mismatch(*key) if is_settled else _find_checksum_mismatch.__wrapped__(*key)


@lru_cache(maxsize=256)
def _find_checksum_mismatch(path: Path, *_: int) -> str | None:
    entry = None
    try:
        with zipfile.ZipFile(path) as archive:
            if (reason := _find_excess(archive, path.stat().st_size)) is not None:
                return reason
            for entry in archive.infolist():
                with archive.open(entry) as part:
                    while part.read(2**20):  # which compares the checksum at the end
                        pass
        entry = None
        check_archive(path)  # which also looks at parts of the directory that Python passes over
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = reason_of(error)
        return reason if entry is None else f"its part {entry.filename} does not match its checksum ({reason})"
    return None


MOST_PARTS = 100_000
"""Of a zip file: a checkpoint has one for each tensor, and some for itself."""


_FOLDER = 0x10
"""The attribute of folders, which no checksum covers: of a part so marked torch reads nothing, and takes any memory."""


def _find_excess(archive: zipfile.ZipFile, size: int) -> str | None:
    """Why reading the parts of a zip file would take more than reading the file; None where it does not.

    Parts may be compressed to a thousandth, and several may be the same bytes of the file. torch does neither.
    """
    entries = archive.infolist()
    if len(entries) > MOST_PARTS:
        return f"it has {len(entries):,} parts, a checkpoint at most {MOST_PARTS:,}"
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            return f"its part {entry.filename} is compressed, which torch does not do: unpack it and save it by torch"
        if entry.external_attr & _FOLDER:
            return f"its part {entry.filename} is marked as a folder, of which torch reads nothing"
    stated = sum(entry.file_size for entry in entries)
    if stated > size:
        return f"its parts have {stated:,} bytes together, the file has {size:,}"
    return None


# ---- storages


@dataclass
class _Storage:
    """A storage as a pickle declares it."""

    key: str
    item_size: int
    length: int


MOST_AXES = 64
"""Of a tensor, as in numpy; torch itself takes as many in most of its functions."""

MOST_REPEATED = 2**24
"""Numbers of a tensor that has the same ones several times, by a stride of 0: a few bytes may stand for any number."""


@dataclass
class _Rebuilt:
    """A tensor as a pickle declares it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def problem(self, record_sizes: Mapping[str, int] | None) -> str | None:
        """What keeps the tensor from being in its storage, and that in the file."""
        if len(self.size) > MOST_AXES:
            return f"has {len(self.size)} axes"
        last = self.offset + sum((side - 1) * step for side, step in zip(self.size, self.stride, strict=True))
        numbers = math.prod(self.size)
        needed = last + 1 if numbers else 0
        lowest = min([self.offset, *self.size, *self.stride], default=0)
        if lowest < 0:
            return "has a negative size, stride or offset"
        if needed > self.storage.length:
            return f"needs {needed:,} numbers, its storage has {self.storage.length:,}"
        if numbers > max(self.storage.length, MOST_REPEATED):
            return f"repeats the {self.storage.length:,} numbers of its storage to {numbers:,}"
        if record_sizes is None:
            return None
        held = record_sizes.get(self.storage.key, 0)
        if held < self.storage.length * self.storage.item_size:
            return f"needs {self.storage.length * self.storage.item_size:,} bytes, the file holds {held:,} of them"
        return None


class _Anything:
    """Stands for whatever a pickle names: takes any arguments, state and entries, and keeps none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    add = append


class _Dict(_Anything):
    """Stands for a dict class."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _Rebuild(_Anything):
    """Stands for torch's functions that make tensors of storages, and parameters of tensors."""

    rebuilt: list[_Rebuilt]

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        if arguments and isinstance(arguments[0], _Storage):
            storage, offset, size, stride = arguments[:4]
            cls.rebuilt.append(_Rebuilt(storage, int(offset), tuple(size), tuple(stride)))
            return cls.rebuilt[-1]
        if len(arguments) > 2 and isinstance(arguments[0], type) and issubclass(arguments[0], _Rebuild):
            return arguments[0](*arguments[2])  # _rebuild_from_type_v2(function, type, arguments, state)
        return arguments[0] if arguments else super().__new__(cls)


_ITEM_SIZES = {
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
"""Bytes of each number in torch's storages; of the others it is one."""


class _Declarations(pickle.Unpickler):
    """Reads what a pickle says about tensors.

    Nothing that it names is imported or called: classes of this module, which do nothing, stand for all of it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.tensors: list[_Rebuilt] = []

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return type(name, (_Anything,), {"item_size": _ITEM_SIZES.get(name, 1)})
        if module.startswith("torch.") and name.startswith("_rebuild"):
            return type(name, (_Rebuild,), {"rebuilt": self.tensors})
        is_dict = module == "collections" and name in ("OrderedDict", "defaultdict")
        return type(name, (_Dict if is_dict else _Anything,), {})

    def persistent_load(self, pid: Any) -> Any:
        _, storage_class, key, _, length, *_ = pid
        return _Storage(str(key), int(getattr(storage_class, "item_size", 1)), int(length))


def check_storages(path: Path, stream: IO[bytes], record_sizes: Mapping[str, int] | None) -> None:
    """Refuses a pickle with a tensor that is longer than its storage, or a storage that is longer than the file says.

    Args:
        path: the file, for messages.
        stream: the pickle in it.
        record_sizes: bytes of each storage's record in a zip file; None where torch's reader asks itself.

    Raises:
        UserError: naming the first tensors.
        ValueError: what the pickle holds is no tree of a bounded size, or its tensors are longer than the file.
    """
    reader = _Declarations(stream)
    contents = reader.load()
    check_tree(contents)
    keys = {id(tensor): key for key, tensor in _declared(contents)}
    problems = []
    if record_sizes is None:
        lengths = {tensor.storage.key: tensor.storage.length * tensor.storage.item_size for tensor in reader.tensors}
        stated, size = sum(lengths.values()), path.stat().st_size
        if stated > size:
            raise ValueError(f"its tensors need {stated:,} bytes, the file has {size:,}")
    for tensor in reader.tensors:
        if problem := tensor.problem(record_sizes):
            problems.append(f"{keys.get(id(tensor), 'one')} {problem}")
    if problems:
        raise UserError(
            f"{path} is corrupt: {len(problems)} of its tensors do not fit their storage: {some(problems, 2)}. "
            "Download or copy it again; nothing was loaded."
        )


def _declared(contents: Any, key: str = "") -> Iterator[tuple[str, _Rebuilt]]:
    """The declared tensors in nested dicts and lists, by their keys, without the wrapper's own."""
    if isinstance(contents, _Rebuilt):
        yield key, contents
    elif isinstance(contents, Mapping):
        for name, value in contents.items():
            yield from _declared(value, f"{key}.{name}" if key else str(name))
    elif isinstance(contents, list | tuple):
        for index, value in enumerate(contents):
            yield from _declared(value, f"{key}.{index}")


def record_sizes(archive: zipfile.ZipFile, pickle_name: str) -> dict[str, int]:
    """Bytes of each record beside a pickle in a zip file, by the storage's key."""
    folder = pickle_name.removesuffix("data.pkl") + "data/"
    entries = archive.infolist()
    return {entry.filename.removeprefix(folder): entry.file_size for entry in entries if folder in entry.filename}


def names_in(stream: IO[bytes]) -> list[str]:
    """Every module.name that a pickle asks for, as far as it can be read."""
    names = []
    with contextlib.suppress(Exception):  # a corrupt pickle raises anything; what was read until then was asked for
        for module, name in scan_pickle(stream):
            names.append(f"{module}.{name}")
    return names


# ---- pickles, before any reader takes them apart

MOST_OPCODES = 2_000_000
"""Of a pickle. A tensor takes some 50, the optimizer's state of a network of 3 billion parameters some 300,000."""

MOST_BITS = 256
"""Of a whole number in a pickle; torch's own mark of its files has 80."""

_MUTABLE = {
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"),
}
"""Opcodes that leave a list, dict or set on the stack, which nothing hashes."""


def _effect(opcode: pickletools.OpcodeInfo) -> tuple[int, bool, int]:
    """How many values an opcode takes off the stack, whether all above a mark as well, and how many it leaves."""
    taken = [value.name for value in opcode.stack_before]
    below = taken.index("mark") if "mark" in taken else len(taken)
    return below, "mark" in taken, len(opcode.stack_after)


_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}


def scan_pickle(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Goes through the opcodes of a pickle, and yields the module and the name of everything that it asks for.

    Nothing is made of it. What makes a pickle of a few bytes cost a reader gigabytes or hours is refused: numbers under
    which values are kept, which readers make tables of; whole numbers of any length; and tuples of tuples of which each
    holds the last one twice, whose hash is computed anew wherever they are a key.

    Raises:
        TooLarge: it is of that kind, or has more than ``MOST_OPCODES``.
        ValueError: it is no pickle.
    """
    stack: list[tuple[int, str]] = []  # of each value, of how many tuples and values it is made, and its text
    marks: list[int] = []
    memo: dict[int, tuple[int, str]] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if number > MOST_OPCODES:
            raise TooLarge(f"its pickle has more than {MOST_OPCODES:,} opcodes")
        if isinstance(argument, int) and argument.bit_length() > MOST_BITS:
            raise TooLarge(f"a whole number in it has more than {MOST_BITS} bits")

        name = opcode.name
        try:
            if name == "MARK":
                marks.append(len(stack))
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                key = len(memo) if argument is None else int(argument)
                if not 0 <= key <= number:
                    raise TooLarge(f"it keeps a value under the number {key:,}, after {number:,} opcodes")
                memo[key] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name == "DUP":
                stack.append(stack[-1])
            elif name == "POP" and marks and marks[-1] == len(stack):
                marks.pop()
            else:
                below, has_mark, left = _EFFECTS[name]
                start = (marks.pop() if has_mark else len(stack)) - below
                taken, stack[start:] = stack[start:], []
                if named := _name(name, argument, taken):
                    yield named
                weight = 1 if name in _MUTABLE else 1 + sum(weight for weight, _ in taken)
                if weight > MOST_ENTRIES:
                    raise TooLarge(f"its tuples stand for more than {MOST_ENTRIES:,} entries")
                if left:
                    stack.append((weight, argument if isinstance(argument, str) else ""))
        except (IndexError, KeyError) as error:
            raise ValueError("its pickle takes values that are not there") from error


def _name(opcode: str, argument: object, taken: Sequence[tuple[int, str]]) -> tuple[str, str] | None:
    """The module and the name that an opcode asks for; None where it asks for none."""
    if opcode in ("GLOBAL", "INST"):
        module, _, name = str(argument).partition(" ")
        return module, name
    return (taken[0][1], taken[1][1]) if opcode == "STACK_GLOBAL" and len(taken) == 2 else None


# ---- values


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. One pass without a copy: whatever is not finite makes the sum so."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # types of 8 bits cannot be summed
        return bool(tensor.float().isfinite().all())
    wide = torch.float32 if tensor.element_size() == 2 and tensor.is_floating_point() else tensor.dtype
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def check_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Refuses tensors, sharded ones too, with NaN or infinite numbers; other values do not count.

    Raises:
        UserError: naming them.
    """
    if bad := find_nonfinite(tensors):
        raise UserError(
            f"{source}: {len(bad)} of {len(tensors)} tensors hold NaN or infinite numbers: {some(bad)}. The training "
            "that wrote them diverged, or the file is corrupt: take an earlier checkpoint or another copy. Nothing "
            "was loaded."
        )


def find_nonfinite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors, sharded ones too, that hold NaN or infinite numbers."""
    names = []
    for name, value in tensors.items():
        parts = [part for _, part in value.parts] if isinstance(value, ShardedTensor) else [value]
        if not all(is_finite(part) for part in parts if isinstance(part, Tensor)):
            names.append(name)
    return names


def check_types(tensors: Mapping[str, Any], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors of another type than those they are for.

    That is integers, booleans or complex numbers in place of real ones, or the reverse, and tensors without values.
    Real numbers may be of any precision.

    Raises:
        UserError: naming them.
    """
    problems = []
    for name, value in tensors.items():
        if name not in expected:
            continue
        parts = [part for _, part in value.parts] if isinstance(value, ShardedTensor) else [value]
        for part in parts[:1]:
            problem = _type_problem(part, expected[name])
            if problem is not None:
                problems.append(f"{name} ({problem})")
    if problems:
        raise UserError(
            f"{source}: {len(problems)} tensors are not of the model's type: {some(problems)}. Save model.state_dict() "
            "of a model in float32, float16 or bfloat16. Nothing was loaded."
        )


def _type_problem(value: Any, expected: Tensor) -> str | None:
    expected_numbers = "real numbers" if expected.is_floating_point() else "integers"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} in place of {expected_numbers}"
    if value.layout != torch.strided or value.is_quantized:
        return f"{value.layout if value.layout != torch.strided else value.dtype} in place of plain {expected_numbers}"
    if value.is_meta and not expected.is_meta:
        return "no values"

    if expected.is_floating_point():
        fits = value.is_floating_point()
    else:
        is_integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        fits = is_integer or value.dtype == expected.dtype
    return None if fits else f"{str(value.dtype).removeprefix('torch.')} in place of {expected_numbers}"


def collect_tensors(contents: Any, key: str = "") -> dict[str, Any]:
    """The tensors in nested dicts and lists by their keys: of an optimizer's states, say."""
    if isinstance(contents, Tensor | ShardedTensor):
        return {key: contents}
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(contents, Mapping):
        entries = contents.items()
    elif isinstance(contents, list | tuple):
        entries = enumerate(contents)
    tensors: dict[str, Any] = {}
    for name, value in entries:
        tensors |= collect_tensors(value, f"{key}.{name}" if key else str(name))
    return tensors

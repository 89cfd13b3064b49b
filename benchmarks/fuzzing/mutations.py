"""Files changed at random, always in the same way for the same seed.

Whatever a file is, its bytes are flipped, cut, inserted, repeated, and spliced with those of another. Where its format
is known, it is taken apart, changed and put together again, so that what reads it comes further than its checksum:
JSON, YAML, CSV and text, PNG, JPEG and RIFF, containers of boxes (mp4), zips, pickles of torch, and safetensors.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

CANARY = "canary"
"""A file of this name appears where a case is run if something in the mutated file was executed."""

TOUCH = f"touch {CANARY}"

CALLS: list[Any] = [
    {"class_path": "os.system", "init_args": {"command": TOUCH}},
    {"class_path": "subprocess.run", "init_args": {"args": TOUCH, "shell": True}},
    {"class_path": "canary_module.Touch", "init_args": {}},
    {"class_path": "builtins.exec", "init_args": {"source": f"open('{CANARY}', 'w')"}},
    {"class_path": "torch.utils.cpp_extension.load_inline", "init_args": {"name": "x", "cpp_sources": ""}},
]
"""What a config must not be able to build; the module lies in the working folder of a case."""

WORDS = [
    "os.system",
    f"os.system('{TOUCH}')",
    f"__import__('os').system('{TOUCH}')",
    f"$({TOUCH})",
    f"; {TOUCH};",
    f"| {TOUCH}",
    f"!!python/object/apply:os.system ['{TOUCH}']",
    "canary_module.Touch",
    "canary_module",
    "subprocess.Popen",
    "../../outside",
    "/proc/outside",
    "..",
    ".",
    "~",
    "~nobody/x",
    "http://192.0.2.1/x",
    "s3://bucket/x",
    "file:///proc/version",
    "simplecache::http://192.0.2.1/x",
    "\x1b[2J\x1b]0;x\x07",
    "[red]x[/red]",
    "[/]",
    "$x_{$",
    "=cmd|'/c x'!A0",
    "%s%n{0}{x}",
    "\u202etxt",
    "a\nb",
    "a\rb",
    "\0",
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "0x10",
    "1_000",
    "9" * 400,
    "9" * 5000,
    "-1",
    "0",
    "null",
    "true",
    "x" * 70_000,
    "layers.1000000.weight",
    "é" * 300,
]
"""Text that is something else to a shell, a terminal, a template, a parser of numbers or a file system."""

NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 255, 256, 65536, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**9, 10**12, 10**18, 0.5, -0.0, 1e-320, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    10**400,
]


def odd_value(rng: Random) -> Any:
    """A value that what reads a file may not expect."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(WORDS)
    if kind == 5:
        return copy.deepcopy(rng.choice(CALLS))
    if kind == 6:
        return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}, [0], ["x"], {"x": 1}, [[0, 0]]])
    return _nested(rng.choice([2, 50, 900]), rng.random() < 0.5)


def _nested(depth: int, lists: bool) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


# ---- any bytes


def mutate_bytes(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Bytes flipped, cut off, inserted, repeated, zeroed, exchanged, or followed by those of another file."""
    data, size = bytearray(content), len(content)
    kind = rng.randrange(11)
    if not size or kind == 0:
        return rng.choice([b"", bytes(512), os_bytes(rng, 200), other, b"\xff" * 300, b"\xef\xbb\xbf" + content])
    start = rng.randrange(size) if rng.random() < 0.5 else rng.randrange(min(size, 256))  # headers are at the front
    length = min(size - start, rng.choice([1, 2, 4, 16, 64, 400, 4000]))
    if kind == 1:
        return bytes(data[: rng.randrange(size)])
    if kind == 2:
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 3:
        data[start : start + length] = os_bytes(rng, length)
    elif kind == 4:
        data[start:start] = os_bytes(rng, length)
    elif kind == 5:
        del data[start : start + length]
    elif kind == 6:
        data[start:start] = data[start : start + length] * rng.choice([1, 2, 50])
    elif kind == 7:
        data[start : start + length] = bytes(length) if rng.random() < 0.5 else b"\xff" * length
    elif kind == 8:
        number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0])
        width = rng.choice([1, 2, 4])
        packed = (number & (256**width - 1)).to_bytes(width, rng.choice(["little", "big"]))
        data[start : start + width] = packed
    elif kind == 9:
        return bytes(data[:start]) + other[rng.randrange(len(other) + 1) :]
    else:
        end = rng.randrange(size)
        data[end:end], data[start : start + length] = data[start : start + length], b""
    return bytes(data)


def os_bytes(rng: Random, number: int) -> bytes:
    return rng.randbytes(number)


# ---- text


def mutate_text(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Words and numbers replaced, lines dropped, repeated and exchanged, other encodings."""
    text = content.decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True) or [""]
    kind, at = rng.randrange(9), rng.randrange(len(lines))
    word = rng.choice(WORDS) if rng.random() < 0.7 else str(rng.choice(NUMBERS))
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines) + 1), lines[at] * rng.choice([1, 1, 200]))
    elif kind == 2:
        lines.insert(at, f"{word}\n")
    elif kind == 3:
        rng.shuffle(lines)
    elif kind in (4, 5, 6):
        matches = [*re.finditer(r"[\w.\-]+", lines[at])]
        if matches:
            match = rng.choice(matches)
            lines[at] = lines[at][: match.start()] + word + lines[at][match.end() :]
    elif kind == 7:
        place = rng.randrange(len(lines[at]) + 1)
        mark = rng.choice(
            [",", ";", "\t", '"', "'", "{", "}", "[", "]", ":", "#", "&a", "*a", "\0", "\r", " ", "|", ">"]
        )
        lines[at] = lines[at][:place] + mark + lines[at][place:]
    else:
        encoding = rng.choice(["utf-16", "utf-8-sig", "utf-32", "latin-1"])
        return "".join(lines).encode(encoding, "replace")
    return "".join(lines).encode("utf-8", "surrogateescape")


# ---- JSON and YAML


def mutate_value(value: Any, rng: Random) -> Any:
    """A tree of dicts and lists with one of its values, keys or lists changed."""
    value = copy.deepcopy(value)
    places = _places(value)
    if not places:
        return odd_value(rng)
    container, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice([*WORDS[:40], str(key) + "_", 1])] = container.pop(key)
    elif kind == 1:
        container.insert(key, copy.deepcopy(container[key]))
    elif kind == 2 and isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] = container[key] * rng.choice([-1, 1e6, 1.5, 10**30])
    elif kind == 3:
        other, other_key = rng.choice(places)
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 4 and isinstance(container[key], list):
        container[key] = container[key] * rng.choice([0, 2, 30])
    elif kind == 5 and isinstance(container[key], str):
        container[key] = rng.choice([container[key] * 500, container[key][:-1], container[key] + rng.choice(WORDS)])
    else:
        container[key] = odd_value(rng)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each container and key in a tree, breadth first; of long lists of numbers only the beginning."""
    places, waiting = [], [value]
    while waiting and len(places) < 20_000:
        container = waiting.pop(0)
        if isinstance(container, dict):
            keys: list[Any] = [*container]
        elif isinstance(container, list):
            keys = [*range(min(len(container), 50))]
        else:
            continue
        places += [(container, key) for key in keys]
        waiting += [container[key] for key in keys]
    return places


def mutate_json(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A value changed; sometimes a key that is there twice, or thousands of brackets."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice([b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'"' + b"x" * 10**6, b"NaN", b"null"])
    if kind == 1:
        return re.sub(rb"\{", b'{"id": -1, ', content, count=rng.randrange(1, 4))
    try:
        value = json.loads(content)
    except ValueError:  # after a mutation of its text
        return mutate_text(content, rng, other)
    return _dump_json(mutate_value(value, rng))


def _dump_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError, RecursionError):  # keys of several types, or too deep
        return repr(value).replace("'", '"').encode("utf-8", "replace")


def mutate_json_lines(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """One of the lines changed as JSON."""
    lines = content.splitlines() or [b"{}"]
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(lines[at], rng, other)
    return b"\n".join(lines) + b"\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


def mutate_yaml(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A value changed; sometimes aliases that stand for billions of values."""
    if rng.randrange(15) == 0:
        return BOMB.encode() + content
    try:
        value = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        return mutate_text(content, rng, other)
    try:
        return yaml.safe_dump(mutate_value(value, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        return mutate_text(content, rng, other)


# ---- images


def mutate_png(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A part changed, dropped, repeated or moved; all checksums are right."""
    chunks, start = [], 8
    while start + 12 <= len(content):
        size = int.from_bytes(content[start : start + 4], "big")
        chunks.append((content[start + 4 : start + 8], content[start + 8 : start + 8 + size]))
        start += 12 + size
    if not chunks:
        return mutate_bytes(content, rng, other)
    at, kind = rng.randrange(len(chunks)), rng.randrange(7)
    name, data = chunks[at]
    if kind == 0:
        side = rng.choice([0, 1, 2, 65535, 13_300, 100_000, 2**31 - 1])
        header = bytearray(chunks[0][1])
        place = rng.choice([0, 4])
        header[place : place + 4] = side.to_bytes(4, "big")
        if rng.random() < 0.5:
            header[8:10] = bytes([rng.choice([1, 2, 4, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 1])])
        chunks[0] = (chunks[0][0], bytes(header))
    elif kind == 1:
        del chunks[at]
    elif kind == 2:
        chunks.insert(rng.randrange(len(chunks)), (name, data))
    elif kind == 3:
        extra = rng.choice([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"gAMA", b"fcTL"])
        body = rng.choice([os_bytes(rng, 40), b"k\0\0" + zlib.compress(bytes(3_000_000)), b"x\0" + b"A" * 100_000, b""])
        chunks.insert(1, (extra, body))
    elif kind == 4 and name == b"IDAT":
        pixels = zlib.compress(mutate_bytes(_inflate(data), rng, other))
        chunks[at] = (name, pixels)
    else:
        chunks[at] = (name, mutate_bytes(data, rng, other))
    body = b"".join(len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in chunks)
    return content[:8] + body


def _inflate(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data


def mutate_jpeg(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A segment of the header changed, dropped or repeated, its length kept right; the size of the picture changed."""
    segments, start = [], 2
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != 0xDA:
        size = int.from_bytes(content[start + 2 : start + 4], "big")
        segments.append((content[start + 1], content[start + 4 : start + 2 + size]))
        start += 2 + size
    if not segments:
        return mutate_bytes(content, rng, other)
    at, kind = rng.randrange(len(segments)), rng.randrange(5)
    marker, data = segments[at]
    frame = next((i for i, (m, _) in enumerate(segments) if m in (0xC0, 0xC1, 0xC2)), 0)
    if kind == 0 and len(segments[frame][1]) >= 6:
        header = bytearray(segments[frame][1])
        place = rng.choice([1, 3])
        header[place : place + 2] = rng.choice([0, 1, 20_000, 65_500, 65_535]).to_bytes(2, "big")
        if rng.random() < 0.3:
            header[5] = rng.choice([0, 1, 2, 4, 255])
        segments[frame] = (segments[frame][0], bytes(header))
    elif kind == 1:
        del segments[at]
    elif kind == 2:
        segments.insert(rng.randrange(len(segments) + 1), (marker, data))
    elif kind == 3:
        exif = b"Exif\0\0" + rng.choice([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]) + os_bytes(rng, 60)
        segments.insert(
            0, (rng.choice([0xE1, 0xE2, 0xEE, 0xFE]), rng.choice([exif, os_bytes(rng, 30), b"MPF\0" + exif]))
        )
    else:
        segments[at] = (marker, mutate_bytes(data, rng, other)[:65_000])
    header_bytes = b"".join(
        bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data for marker, data in segments
    )
    return content[:2] + header_bytes + content[start:]


def mutate_boxes(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A number within the index of an mp4, or of the header of another container, changed to an odd one."""
    data = bytearray(content)
    marks = [
        m.start() for m in re.finditer(rb"mvhd|tkhd|mdhd|stsd|stts|ctts|stsc|stsz|stco|elst|avih|strh|strf", content)
    ]
    if not marks:
        return mutate_bytes(content, rng, other)
    start = rng.choice(marks) + 4 + 4 * rng.randrange(12)
    number = rng.choice([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, rng.randrange(2**32)])
    data[start : start + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
    return bytes(data)


# ---- checkpoints


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


EVIL: list[Callable[[], Any]] = [
    lambda: Call(os.system, TOUCH),
    lambda: Call(eval, f"open('{CANARY}', 'w')"),
    lambda: Call(getattr, os, "system"),
    lambda: Call(open, CANARY, "w"),
    lambda: Path("x"),
    lambda: re.compile("(a+)+$"),
    lambda: torch.nn.Linear(2, 2),
    lambda: torch.device("meta"),
    lambda: torch.Size([10**9, 10**9]),
    lambda: {1, 2},
    lambda: 1j,
    lambda: b"bytes",
]


def odd_tensor(tensor: torch.Tensor, rng: Random) -> Any:
    """A tensor of another type, shape, value or layout."""
    if tensor.numel() > 10**6 or tensor.layout != torch.strided or tensor.is_meta:  # changed before
        return torch.zeros(3)
    kind = rng.randrange(14)
    with torch.no_grad():
        if kind == 0:
            return tensor.to(rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]))
        if kind == 1:
            return tensor.to(torch.complex64)
        if kind == 2:
            return tensor.flatten()
        if kind == 3:
            return tensor[None]
        if kind == 4:
            return tensor[:0] if tensor.dim() else tensor.new_zeros(0)
        if kind == 5:
            return torch.full_like(tensor, rng.choice([float("nan"), float("inf"), 1e38, -1e38]), dtype=torch.float32)
        if kind == 6:
            return tensor.new_zeros(1).expand(10**6, 10**6)
        if kind == 7:
            return tensor.float().to_sparse() if tensor.dim() else tensor
        if kind == 8:
            return tensor.to("meta")
        if kind == 9:
            return torch.cat([tensor, tensor]) if tensor.dim() else tensor
        if kind == 10:
            return tensor.mT if tensor.dim() > 1 else tensor.new_zeros([])
        if kind == 11:
            return tensor.tolist()
        if kind == 12:
            return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
        return torch.zeros(3)


def mutate_contents(contents: Any, rng: Random) -> Any:
    """A checkpoint's contents with an entry changed: of its record, or a tensor."""
    contents = _copy(contents)
    places = _places(contents)
    if not places:
        return odd_value(rng)
    tensors = [(c, k) for c, k in places if isinstance(c[k], torch.Tensor)]
    records = [(c, k) for c, k in places if not isinstance(c[k], torch.Tensor)]
    container, key = rng.choice(tensors if tensors and (rng.random() < 0.4 or not records) else records)
    kind = rng.randrange(10)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        name = str(key)
        names = [re.sub(r"\d+", "1000000", name), f"module.{name}", name + ".x", "", 7, None, name.replace(".", "..")]
        container[rng.choice([*names, *WORDS[:20]])] = container.pop(key)
    elif kind == 2:
        container[key] = rng.choice(EVIL)()
    elif kind == 3:
        shared: Any = [0] * 10
        for _ in range(9):
            shared = [shared] * 10  # a few bytes, and a thousand million values
        container[key] = shared
    elif isinstance(container[key], torch.Tensor):
        container[key] = odd_tensor(container[key], rng)
    else:
        container[key] = odd_value(rng)
        if rng.random() < 0.1:
            return {0: contents, "state_dict": contents}
    return contents


def _copy(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """The same containers anew, around the same leaves; what is shared stays shared."""
    copies = {} if copies is None else copies
    if not isinstance(value, dict | list):
        return value
    if id(value) not in copies:
        copies[id(value)] = new = type(value)()
        if isinstance(value, dict):
            new.update({key: _copy(entry, copies) for key, entry in value.items()})
        else:
            new.extend(_copy(entry, copies) for entry in value)
    return copies[id(value)]


def mutate_checkpoint(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Another record or tensor, a pickle that calls, or another archive around the same."""
    if rng.random() < 0.3:
        return mutate_zip(content, rng, other)
    try:
        contents = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # after another mutation
        return mutate_bytes(content, rng, other)
    buffer = io.BytesIO()
    try:
        changed = mutate_contents(contents, rng)
        if rng.random() < 0.05:
            pickle.dump(changed, buffer)
        else:
            torch.save(changed, buffer, _use_new_zipfile_serialization=rng.random() < 0.85)
    except Exception:  # what pickle cannot write
        return mutate_bytes(content, rng, other)
    return buffer.getvalue()


def mutate_zip(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Members of an archive dropped, repeated, renamed, changed, compressed, or much larger than they look."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return mutate_bytes(content, rng, other)
    at, kind = rng.randrange(len(members)), rng.randrange(8)
    name, data = members[at]
    if kind == 0:
        del members[at]
    elif kind == 1:
        members.append((name, mutate_bytes(data, rng, other)))
    elif kind == 2:
        folder = name.partition("/")[0]
        members[at] = (
            rng.choice([f"../{name}", f"/{name}", f"{folder}/data/999", name.upper(), "x", f"{name}/"]),
            data,
        )
    elif kind == 3:
        members.append((f"{name.partition('/')[0]}/{rng.choice(['code/x.py', 'constants.pkl', 'data.pkl'])}", data))
    elif kind == 4:
        members[at] = (name, bytes(300_000_000) if rng.random() < 0.3 else bytes(len(data)))
    elif kind == 5:
        pickled = next((i for i, (n, _) in enumerate(members) if n.endswith("data.pkl")), at)
        members[pickled] = (members[pickled][0], mutate_pickle(members[pickled][1], rng, other))
    else:
        members[at] = (name, mutate_bytes(data, rng, other))
    buffer = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if kind == 4 or rng.random() < 0.2 else zipfile.ZIP_STORED
    import warnings

    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for member, member_data in members:
            archive.writestr(member, member_data)
    return buffer.getvalue()


def mutate_pickle(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Opcodes that call, and names and numbers of a pickle changed."""
    kind = rng.randrange(4)
    if kind == 0:
        call = b"cos\nsystem\n(S'" + TOUCH.encode() + b"'\ntR0"
        return content[:2] + call + content[2:]
    if kind == 1:
        return re.sub(rb"c(torch\._utils|collections)\n\w+", b"cos\nsystem", content, count=1)
    if kind == 2:
        names = [*re.finditer(rb"X(....)([\w.]+)", content, re.DOTALL)]
        if names:
            match = rng.choice(names)
            word = rng.choice(WORDS).encode("utf-8", "replace")
            return content[: match.start()] + b"X" + struct.pack("<I", len(word)) + word + content[match.end() :]
    return mutate_bytes(content, rng, other)


def mutate_safetensors(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """The header changed as JSON, its length kept right; or a length that it does not have."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.1:
        return rng.choice([0, 1, size + 1, 2**62, 2**64 - 1, 99_000_000]).to_bytes(8, "little") + content[8:]
    if rng.random() < 0.1:
        return content[: 8 + size] + mutate_bytes(data, rng, other)
    try:
        value = json.loads(header)
    except ValueError:
        return mutate_bytes(content, rng, other)
    if "__metadata__" in value and rng.random() < 0.4:  # our record is JSON within JSON
        key = rng.choice([*value["__metadata__"]])
        value["__metadata__"][key] = mutate_json(value["__metadata__"][key].encode(), rng).decode("utf-8", "replace")
    else:
        value = mutate_value(value, rng)
    new = _dump_json(value)
    return len(new).to_bytes(8, "little") + new + data


# ---- all together


Mutator = Callable[[bytes, Random, bytes], bytes]

BY_FORMAT: dict[str, tuple[Mutator, ...]] = {
    "bytes": (),
    "text": (mutate_text, mutate_text),
    "json": (mutate_json, mutate_json, mutate_json, mutate_text),
    "jsonl": (mutate_json_lines, mutate_json_lines, mutate_text),
    "yaml": (mutate_yaml, mutate_yaml, mutate_yaml, mutate_text),
    "png": (mutate_png, mutate_png),
    "jpeg": (mutate_jpeg, mutate_jpeg),
    "video": (mutate_boxes,),
    "checkpoint": (mutate_checkpoint, mutate_checkpoint, mutate_checkpoint),
    "safetensors": (mutate_safetensors, mutate_safetensors, mutate_safetensors),
}
"""What changes a format beside ``mutate_bytes``."""


@dataclass
class Mutation:
    """A file's new content, and by which steps it came about."""

    content: bytes
    steps: list[str] = field(default_factory=list)


def mutate(
    content: bytes, format: str, seed: str, other: bytes = b"", skipped: frozenset[int] = frozenset()
) -> Mutation:
    """A file's content after one to three changes.

    Args:
        content: of the file.
        format: a key of ``BY_FORMAT``.
        seed: the same one makes the same changes.
        other: another file's content, to be spliced with.
        skipped: numbers of the changes that are left out, to find those that matter.
    """
    rng = Random(seed)
    mutation = Mutation(content)
    for number in range(rng.choice([1, 1, 1, 2, 3])):
        mutator = rng.choice([*BY_FORMAT[format], mutate_bytes])
        if number not in skipped:
            try:
                mutation.content = mutator(mutation.content, Random(f"{seed} {number}"), other)
            except Exception:  # an earlier change is too much for what takes files apart: depth, memory
                mutation.content = mutate_bytes(mutation.content, Random(f"{seed} {number}"), other)
            mutation.steps.append(mutator.__name__)
    return mutation

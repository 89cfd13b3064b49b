"""The files in a tar, and where their bytes lie: tars are read in place, in any order, and nothing is unpacked.

Each header is taken apart by Python's tarfile. Its own walk through a file is not used: it takes a corrupt header for
the end, keeps an object for each member, and reads extended headers of any size into memory.
The format: https://www.gnu.org/software/tar/manual/html_node/Standard.html, and pax of POSIX.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import open_file
from swinv2_tasks.text import printable

BLOCK = tarfile.BLOCKSIZE

MOST_HEADER_BYTES = 2**16
"""Of a header that gives a member a longer name or further properties."""

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
"""How compressed files begin, what they are, and what undoes it."""

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

_WITHOUT_CONTENT = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
)


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    """As the tar has it, which may be anything: never a path to open."""
    offset: int
    """Where its bytes begin, from the start of the file that the tar is."""
    size: int
    """In bytes."""


def tar_members(path: str, start: int = 0, size: int | None = None) -> Iterator[Member]:
    """The files in a tar, in its order; folders and links are left out. Their bytes are not read.

    Args:
        path: The file.
        start: Where the tar begins in it, when it lies within another one.
        size: Of how many bytes it is then; None: up to the file's end.

    Raises:
        UserError: It cannot be read, is no tar or a compressed one, is corrupt or truncated.
    """
    try:
        with open_file(path) as file:
            end = os.fstat(file.fileno()).st_size if size is None else start + size
            yield from _members(file.fileno(), path, start, end)
    except OSError as error:
        raise UserError(f"Cannot read the tar {printable(path)}: {error.strerror}.") from error


def _members(descriptor: int, path: str, start: int, end: int) -> Iterator[Member]:
    def error(reason: str) -> UserError:
        return UserError(f"Cannot read the tar {printable(path)}: {reason}. Copy or download it again.")

    def read(position: int, number: int) -> bytes:
        return os.pread(descriptor, max(0, min(number, end - position)), position)

    _refuse_compressed(path, read(start, BLOCK))
    position = start
    long_name: str | None = None
    long_size: int | None = None
    while True:
        block = read(position, BLOCK)
        if len(block) < BLOCK:
            raise error(f"it is truncated: it has no end, after {position - start:,} bytes")
        if not any(block):
            return
        header = _parse(block)
        if header is None and position == start:
            raise error("it is no tar")
        if header is None:
            raise error(f"it is corrupt at byte {position:,}, where a header should be")

        size = header.size if long_size is None or not header.isreg() else long_size
        if header.type in _WITHOUT_CONTENT:  # whatever size they state
            size = 0
        data = position + BLOCK
        position = data + -(-size // BLOCK) * BLOCK
        if size < 0 or data + size > end:
            raise error(f"it is truncated: {printable(long_name or header.name)} goes beyond its end")

        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > MOST_HEADER_BYTES:
                raise error(f"a header in it has {size:,} bytes, such a one at most {MOST_HEADER_BYTES:,}")
            content = read(data, size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _decoded(content.rstrip(b"\0"))
                continue
            properties = _properties(content)
            if properties is None or any(key.startswith("GNU.sparse") for key in properties):
                raise error("a header in it is corrupt, or of a sparse file, which is not read")
            long_name = properties.get("path", long_name)
            if "size" in properties:
                if not properties["size"].isdecimal() or len(properties["size"]) > 18:
                    raise error("a header in it states no size")
                long_size = int(properties["size"])
            continue
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        if header.type in _REGULAR:
            yield Member(long_name or header.name, data, size)
        long_name = long_size = None


def _refuse_compressed(path: str, begin: bytes) -> None:
    for mark, (name, command) in _COMPRESSED.items():
        if begin.startswith(mark):
            raise refuse_compressed(path, name, command)


def refuse_compressed(path: str, name: str, command: str = "gunzip") -> UserError:
    """The error for a compressed tar.

    Args:
        path: The file.
        name: What it is compressed by.
        command: What undoes it.
    """
    return UserError(
        f"The tar {printable(path)} is compressed ({name}), so that no image in it can be read without all before it: "
        f"uncompress it, as by `{command}`. Images are compressed already; such a tar is hardly larger."
    )


def _parse(block: bytes) -> tarfile.TarInfo | None:
    """A header; None where the block is none, as its checksum says."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _properties(content: bytes) -> dict[str, str] | None:
    """What an extended header says: records of `LENGTH KEY=VALUE`, each with a line feed; None where it is none."""
    properties: dict[str, str] = {}
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 8)
        digits = content[position:space]
        if space < 0 or not digits.isdigit():
            return None
        length = int(digits)
        record = content[space + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or position + length > len(content):
            return None
        properties[_decoded(key)] = _decoded(value[:-1])
        position += length
    return properties

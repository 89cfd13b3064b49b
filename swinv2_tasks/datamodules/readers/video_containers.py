"""What containers state of their own: how many bytes they have, how players rotate the frames, what they are coded in.

mp4: ISO/IEC 14496-12; Matroska: https://www.rfc-editor.org/rfc/rfc9559; avi: RIFF and OpenDML; wmv: ASF.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from swinv2_tasks.outside_files import open_file


def missing_bytes(path: Path) -> str | None:
    """That a file ends before its container says, where the container says."""
    size = path.stat().st_size
    with open_file(path) as file:
        try:
            expected = _stated_size(file, size)
        except (struct.error, IndexError):
            return None
    if expected is None or expected <= size:
        return None
    return f"it is cut off: {size:,} of at least {expected:,} bytes are there"


def _stated_size(file: BinaryIO, size: int) -> int | None:
    """How many bytes a file has at least, as its container says; None where it does not say."""
    head = file.read(16)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return max((end for _, _, end in _boxes(file, 0, size)), default=0)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_size(file)
    if head[:4] == b"RIFF":
        return _riff_size(file, size)
    if head == b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c":
        return _asf_size(file)
    return None


_TOP_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"moof",
    b"sidx",
    b"styp",
    b"mfra",
    b"uuid",
    b"meta",
}


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Boxes of an mp4: their type, where their content begins and where it ends, which may be after the file."""
    top = start == 0
    while start + 8 <= end:
        file.seek(start)
        length, box_type = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            content += 8
        elif length == 0:
            length = end - start
        if length < content - start or (top and box_type not in _TOP_BOXES):
            return  # what follows the last box is not for us to read
        yield box_type, content, start + length
        start += length


def _matroska_size(file: BinaryIO) -> int | None:
    """Where the segment ends; None for recordings that do not say."""
    file.seek(4)
    header, _ = _element_size(file)
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    length, is_known = _element_size(file)
    return file.tell() + length if is_known else None


def _element_size(file: BinaryIO) -> tuple[int, bool]:
    """The size of an EBML element, and whether it is one: all bits set mean that it is not known."""
    first = file.read(1)[0]
    length = 8 - first.bit_length() + 1
    value = first & ((1 << (8 - length)) - 1)
    for byte in file.read(length - 1):
        value = value << 8 | byte
    return value, value != (1 << 7 * length) - 1


def _riff_size(file: BinaryIO, size: int) -> int | None:
    """Where the last RIFF list of an avi ends; None where one was never closed."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF":
            break
        if length in (0, 0xFFFFFFFF):
            return None
        if start + 8 + length > size:
            return start + 8 + length
        start += 8 + length + length % 2
    return None


def _asf_size(file: BinaryIO) -> int | None:
    """The size in the file properties of a wmv; None for a broadcast."""
    file.seek(0)
    head = file.read(64 << 10)
    properties = head.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")
    if properties < 0:
        return None
    (stated,) = struct.unpack_from("<Q", head, properties + 40)
    (flags,) = struct.unpack_from("<I", head, properties + 88)
    return None if flags & 1 else stated


def excess_frames(path: Path) -> str | None:
    """That an mp4 states more frames than it has bytes: a table for all of them would be made from a single number."""
    size = path.stat().st_size
    with open_file(path) as file:
        if file.read(8)[4:] not in _TOP_BOXES:
            return None
        try:
            stated = sum(_frame_counts(file, size))
        except (struct.error, IndexError):
            return None
    return f"it states {stated:,} frames and samples in {size:,} bytes" if stated > size else None


_TABLES = ("moov", "trak", "mdia", "minf", "stbl")
_FRAGMENTS = ("moof", "traf")


def _frame_counts(file: BinaryIO, size: int) -> Iterator[int]:
    """How many samples each track, and each fragment of a track, of an mp4 states."""
    for *path, box_type, skipped in (
        (*_TABLES, "stsz", 8),
        (*_TABLES, "stz2", 8),
        (*_FRAGMENTS, "trun", 4),
    ):
        for start, _ in _inner(file, 0, size, *(name.encode() for name in (*path, box_type))):
            file.seek(start + skipped)
            (number,) = struct.unpack(">I", file.read(4))
            yield number


_CODECS = {
    "av01": "AV1",
    "v_av1": "AV1",
    "vvc1": "VVC (H.266)",
    "vvi1": "VVC (H.266)",
    "v_mpegi/iso/vvc": "VVC (H.266)",
    "evc1": "EVC (MPEG-5)",
    "lcv1": "LCEVC (MPEG-5)",
    "avs3": "AVS3",
}


def stated_codec(path: Path) -> str | None:
    """What a file says its pictures are coded in, by a name or by the code that stands there; None if it is not found.

    To be asked of files whose pictures FFmpeg does not know: mp4, Matroska, MPEG transport streams.
    """
    size = path.stat().st_size
    with open_file(path) as file:
        head = file.read(64 << 10)
        if head[4:8] in _TOP_BOXES:
            code = _sample_entry(file, size)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            code = b"".join(re.findall(rb"V_[A-Z0-9/._]+", head)[:1])
        elif head[:1] == b"\x47":  # a registration descriptor of MPEG-2
            code = b"".join(re.findall(rb"(?<=\x05\x04)[A-Z0-9]{4}", head)[:1])
        else:
            code = b""
    if not code:
        return None
    text = code.decode("latin-1").strip()
    return _CODECS.get(text.lower(), text if text.isprintable() else None)


def _sample_entry(file: BinaryIO, size: int) -> bytes:
    """The four characters by which an mp4 says what the samples of its first track of pictures are."""
    for track in _inner(file, 0, size, b"moov", b"trak"):
        for media in _inner(file, *track, b"mdia"):
            file.seek(next((start for box_type, start, _ in list(_boxes(file, *media)) if box_type == b"hdlr"), size))
            if file.read(12)[8:] != b"vide":
                continue
            for start, _ in _inner(file, *media, b"minf", b"stbl", b"stsd"):
                file.seek(start + 12)  # past version, flags, the number of entries and the first one's size
                return file.read(4)
    return b""


def _inner(file: BinaryIO, start: int, end: int, *path: bytes) -> Iterator[tuple[int, int]]:
    """Where the contents of all boxes that a path of types leads to begin and end."""
    for box_type, inner_start, inner_end in list(_boxes(file, start, end)):
        if box_type == path[0]:
            yield from _inner(file, inner_start, inner_end, *path[1:]) if path[1:] else [(inner_start, inner_end)]


_TURNS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))


def has_quarter_turns(path: Path) -> bool:
    """Whether the matrices of an mp4 are quarter turns: decord takes flips for turns as well."""
    size = path.stat().st_size
    with open_file(path) as file:
        moov = next(((start, end) for box_type, start, end in _boxes(file, 0, size) if box_type == b"moov"), None)
        if moov is None:
            return False
        for box_type, start, end in list(_boxes(file, *moov)):
            if box_type == b"mvhd" and not _is_turn(file, start, 36):
                return False
            if box_type != b"trak":
                continue
            for inner_type, inner_start, _ in list(_boxes(file, start, end)):
                if inner_type == b"tkhd" and not _is_turn(file, inner_start, 40):
                    return False
    return True


def _is_turn(file: BinaryIO, header: int, matrix: int) -> bool:
    """Whether the matrix of a header is a quarter turn; it stands later by 12 bytes where times have 64 bits."""
    file.seek(header)
    version = file.read(1)
    file.seek(header + matrix + (12 if version == b"\1" else 0))
    a, b, _, c, d = struct.unpack(">5i", file.read(20))
    return tuple(value / 65536 for value in (a, b, c, d)) in _TURNS

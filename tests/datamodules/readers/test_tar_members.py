"""The files in a tar and where they lie: as Python's tarfile has them, and corrupt ones are reported."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from swinv2_tasks.datamodules.readers.tar_members import Member, tar_members
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import ByteRange
from tests.helpers.archives import write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)

FILES = [
    ("a.jpg", b"1" * 700),
    ("empty", b""),
    ("folder/" + "long" * 60 + ".png", b"2" * 512),
    ("é\u2028.txt", b"3"),
    ("last.cls", b"4" * 513),
]


def members_by_tarfile(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        return [Member(info.name, info.offset_data, info.size) for info in tar if info.isfile()]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    files = [(name, content) for name, content in FILES if form != tarfile.USTAR_FORMAT or len(name) < 200]
    path = write_tar(tmp_path / "a.tar", files, format=form)
    with tarfile.open(path, "a", format=form) as tar:
        folder = tarfile.TarInfo("empty folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{kind!r}")
            link.type, link.linkname = kind, "../../etc/passwd" + "x" * 150 * (form != tarfile.USTAR_FORMAT)
            tar.addfile(link)
        tar.addfile(tarfile.TarInfo("after the links"))
    members = [*tar_members(str(path))]
    assert members == members_by_tarfile(path)
    for (name, content), member in zip(files, members, strict=False):
        assert member.name == name
        assert ByteRange(name, str(path), member.offset, member.size).read() == content


def test_a_tar_within_a_tar(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "inner.tar", FILES[:2])
    outer = write_tar(tmp_path / "outer.tar", [("first", b"x" * 1000), ("inner.tar", inner.read_bytes())])
    member = [*tar_members(str(outer))][1]
    nested = [*tar_members(str(outer), member.offset, member.size)]
    assert [entry.name for entry in nested] == ["a.jpg", "empty"]
    assert ByteRange("a.jpg", str(outer), nested[0].offset, nested[0].size).read() == FILES[0][1]


@pytest.mark.parametrize("length", [0, 100, 512, 700, 1024, 1500, 2048])
def test_truncated_tars_are_reported_at_any_length(tmp_path: Path, length: int) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a\.tar: it is truncated.*again"):
        list(tar_members(str(path)))


def test_a_corrupt_header_is_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    content = bytearray(path.read_bytes())
    second = 512 + 1024
    assert content[second : second + 5] == b"empty"
    content[second] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="corrupt at byte 1,536"):
        list(tar_members(str(path)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"x" * 2000), r"compressed \(gzip\).*gunzip"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 1000, r"compressed \(zstd\)"),
        (b"x" * 2000, "it is no tar"),
    ],
    ids=["gzip", "zstd", "text"],  # the time is in the bytes of gzip
)
def test_what_is_no_plain_tar_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(tar_members(str(path)))


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_headers_of_any_size_take_no_memory(tmp_path: Path) -> None:
    """A header that states a gigabyte in a sparse file, and one of a negative size."""
    path = tmp_path / "a.tar"
    path.write_bytes(header("x", 2**30, tarfile.XHDTYPE))
    os.truncate(path, 2**30 + 4096)
    with pytest.raises(UserError, match="a header in it has 1,073,741,824 bytes"):
        list(tar_members(str(path)))

    block = bytearray(header("x", 0, tarfile.REGTYPE))
    block[124:136] = b"\xff" * 8 + struct.pack(">i", -1024)  # in base 256
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(2048))
    with pytest.raises(UserError, match="truncated"):
        list(tar_members(str(path)))


@pytest.mark.parametrize("record", [b"999 path=x\n", b"x path=y\n", b"12 size=-1\n", b"19 GNU.sparse.map=\n"])
def test_corrupt_extended_headers_are_refused(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "a.tar"
    body = record.ljust(512, b"\0")
    path.write_bytes(header("x", len(record), tarfile.XHDTYPE) + body + header("a", 0, tarfile.REGTYPE) + bytes(1024))
    with pytest.raises(UserError, match="a header in it"):
        list(tar_members(str(path)))


def test_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    for name in ("pipe.tar", "missing.tar"):
        with pytest.raises(UserError, match=f"Cannot read the tar .*{name}"):
            list(tar_members(str(tmp_path / name)))


def test_large_sizes_in_extended_headers(tmp_path: Path) -> None:
    """Pax states sizes from 8 GiB on, and any of a writer's choice."""
    info = tarfile.TarInfo("a")
    info.size, info.pax_headers = 5, {"size": "5", "path": "b.jpg"}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"12345"))
    path = tmp_path / "a.tar"
    path.write_bytes(content.getvalue())
    assert [*tar_members(str(path))] == members_by_tarfile(path)

"""A video costs what its bytes account for: not what its header states of frames and their size."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_tasks.datamodules.readers import video_packets
from swinv2_tasks.datamodules.readers.images import MAX_PIXELS
from swinv2_tasks.datamodules.readers.videos import Video, find_corruption
from swinv2_tasks.errors import UserError
from tests.helpers.films import number_of, write_film
from tests.helpers.prices import MOST_MEMORY, call, refusal


def frame_count(path: Path) -> int:
    with Video(path) as video:
        return len(video)


def state(path: Path, box: bytes, skipped: int, value: bytes) -> None:
    """Writes over a part of a box of an mp4."""
    content = bytearray(path.read_bytes())
    start = content.index(box) + 4 + skipped
    content[start : start + len(value)] = value
    path.write_bytes(content)


def billion_frames(path: Path) -> None:
    """All of one size, so that a single number states them."""
    write_film(path)
    state(path, b"stsz", 4, struct.pack(">II", 100, 10**9))
    state(path, b"stsc", 8, struct.pack(">III", 1, 10**9, 1))


def billion_in_a_fragment(path: Path) -> None:
    write_film(path, options={"movflags": "frag_keyframe+empty_moov"})
    state(path, b"trun", 4, struct.pack(">I", 10**9))


VIDEOS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "frames": (billion_frames, "states 1,000,000,000 frames"),
    "fragment": (billion_in_a_fragment, "frames and samples in"),
    "large frames": (lambda path: write_film(path, 1, (2304, 4400)), "4400×2304 pixels, more than the 10,000,000"),
    "pipe": (os.mkfifo, "is a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device"),
    "circle": (lambda path: path.symlink_to(path.name), "does not exist"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_that_states_more_than_it_holds_is_refused(name: str, tmp_path: Path) -> None:
    write, words = VIDEOS[name]
    path = tmp_path / "film.mp4"
    write(path)
    assert words in refusal(frame_count, path)


@pytest.mark.parametrize("side", [16_000, 65_000])
def test_a_header_of_huge_frames_is_refused(side: int, tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.avi", codec="mpeg4")
    content = path.read_bytes()
    header = content.index(b"strf") + 12  # its size, and where width and height stand
    path.write_bytes(content[:header] + struct.pack("<ii", side, side) + content[header + 8 :])
    outcome = call(frame_count, path)  # FFmpeg goes by the stream itself where that states a size
    assert outcome.error in (None, UserError)
    assert outcome.peak < MOST_MEMORY


def test_frames_that_grow_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may state another size for later frames than its file does."""
    path = write_film(tmp_path / "film.mp4")
    assert find_corruption(path) is None
    monkeypatch.setattr(video_packets, "_check_size", lambda stream: None)
    monkeypatch.setattr(video_packets, "MOST_FRAME_PIXELS", 1000)
    video_packets.forget_indices()
    assert find_corruption(path) is not None


def test_frames_of_more_pixels_are_read_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "film.mp4", 2, (2304, 4400))
    with pytest.raises(UserError, match="--max_pixels"):
        Video(path)
    monkeypatch.setenv(MAX_PIXELS, "36000000")
    with Video(path) as video:
        assert [number_of(frame) for frame in video.frames(np.arange(2))] == [0, 1]
    monkeypatch.setenv(MAX_PIXELS, "10000")
    video_packets.forget_indices()
    with pytest.raises(UserError, match="more than the 10,000 that are allowed"):
        Video(path)


def test_a_video_of_too_many_packets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "film.mp4", frames=20)
    monkeypatch.setattr(video_packets, "MOST_PACKETS", 19)
    with pytest.raises(UserError, match="more than 19 packets; cut it"):
        Video(path)
    monkeypatch.setattr(video_packets, "MOST_PACKETS", 20)
    assert frame_count(path) == 20


def test_frames_are_given_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    for numbers in ([3], [0, 5, 7, 19], [7, 3, 3, 12], list(range(20))):
        with Video(path) as video:
            assert [number_of(frame) for frame in video.frames(np.array(numbers))] == numbers

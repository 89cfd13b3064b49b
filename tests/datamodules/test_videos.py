"""Reading videos: the right frames, beside PyAV's, and one clear message for what cannot be read."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from swinv2_tasks.datamodules.videos import Video, list_videos
from swinv2_tasks.errors import UserError
from tests.datamodules.films import count_as, cut_off, number_of, picture, rotate, scramble, write_film, write_sound


def frames_of(path: Path, indices: Any) -> np.ndarray:
    with Video(path) as video:
        return video.frames(indices)


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def pyav_frames(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time in seconds and pixels of all frames, in the order of their times."""
    with av.open(str(path)) as file:
        return [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


def test_frames_come_by_number_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    asked = [19, 0, 7, 7, 6, 5, 13]
    found = frames_of(path, asked)
    assert found.dtype == np.uint8 and found.shape == (7, 48, 64, 3)
    assert numbers(found) == asked
    assert np.abs(found[1].astype(int) - picture(0)).mean() < 3  # RGB, not BGR, and the right way up
    with Video(path) as video:
        assert len(video) == 20


def test_uneven_times_and_a_late_start_change_no_number(tmp_path: Path) -> None:
    times = [700 + 40 * n + (300 if n > 8 else 0) + 7 * (n % 3) for n in range(20)]
    for end in ("mkv", "mp4"):
        path = write_film(tmp_path / f"film.{end}", times=times)
        assert numbers(frames_of(path, range(20))) == list(range(20))
        assert numbers(frames_of(path, [15, 3, 11])) == [15, 3, 11]


def test_headers_that_lie_about_the_number_of_frames(tmp_path: Path) -> None:
    for claimed in (1000, 3):
        path = count_as(write_film(tmp_path / f"film{claimed}.avi", codec="mpeg4"), claimed)
        with Video(path) as video:
            assert len(video) == 20
        assert numbers(frames_of(path, [19, 2])) == [19, 2]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_rotation_that_the_file_asks_for_is_applied(turns: int, tmp_path: Path) -> None:
    path = rotate(write_film(tmp_path / "film.mp4"), turns)
    expected = np.rot90(picture(4), -turns)
    found = frames_of(path, [4])[0]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("width", [16, 24, 48, 70, 72, 100])
def test_narrow_videos_keep_their_three_channels(width: int, tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", frames=5, size=(40, width))
    found = frames_of(path, [3])[0]
    assert found.shape == (40, width, 3)
    assert np.abs(found.astype(int) - picture(3, 40, width)).mean() < 4


def test_every_shared_clip_gives_the_frames_of_pyav_by_time(real_data: Path) -> None:
    files = sorted((real_data / "videos").rglob("*.*"))
    assert len(files) == 24
    rng = np.random.default_rng(0)
    for path in files:
        expected = pyav_frames(path)
        with Video(path) as video:
            assert len(video) == len(expected)
            # The n-th by time is the n-th frame: avi files state times in the order of decoding.
            chosen = np.concatenate([[0, len(expected) - 1], rng.integers(len(expected), size=6)])
            found = video.frames(chosen)
        times = [time for time, _ in expected]
        if path.suffix != ".avi":
            assert times == sorted(times)
        for index, frame in zip(chosen, found, strict=True):
            nearest = min(range(len(times)), key=lambda k, index=index: abs(times[k] - times[index]))
            wanted = index if path.suffix == ".avi" else nearest
            assert np.abs(frame.astype(int) - expected[wanted][1]).mean() < 1, path


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "empty"),
    "folder.mp4": (lambda path: path.mkdir(), "it is a folder"),
    "text.mp4": (lambda path: path.write_text("no video " * 100), "no video of a known kind, or cut off"),
    "cut.mp4": (lambda path: cut_off(write_film(path)), "no video of a known kind, or cut off"),
    "sound.mp4": (write_sound, "only sound"),
    "early_index.mp4": (
        lambda path: cut_off(write_film(path, options={"movflags": "faststart"}), 0.6),
        "no video of a known kind, or cut off",
    ),
    "scrambled.mp4": (
        lambda path: scramble(write_film(path, options={"movflags": "faststart"}), 0.7),
        "its frame [0-9]+ of 20 is damaged or missing",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_told_with_its_path(name: str, tmp_path: Path) -> None:
    write, reason = BROKEN[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=reason) as caught:
        frames_of(path, range(20))
    assert str(path) in str(caught.value) and "Replace the file" in str(caught.value)


def test_a_file_that_was_cut_off_gives_the_frames_that_are_left(tmp_path: Path) -> None:
    path = cut_off(write_film(tmp_path / "film.mkv", frames=40), 0.6)
    with Video(path) as video:
        left = len(video)
        assert 0 < left < 40
        assert numbers(video.frames(range(left))) == list(range(left))


def test_listing(tmp_path: Path) -> None:
    for name in ("b10.mp4", "b2.MKV", "sub/a.avi", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in list_videos(tmp_path)]
    assert names == ["b2.MKV", "b10.mp4", "sub/a.avi"]
    with pytest.raises(UserError, match="a video file, a folder or a glob pattern"):
        list_videos(tmp_path / "nothing")


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_opens(real_data: Path) -> None:
    files = [path for path in sorted((real_data / "videos" / "clips").iterdir()) if path.suffix == ".mp4"]

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024

    sizes = []
    for number in range(2000):
        frames_of(files[number % len(files)], [number % 30])
        if number % 500 == 499:
            gc.collect()
            sizes.append(resident())
    assert sizes[-1] - sizes[0] < 16, sizes  # MiB

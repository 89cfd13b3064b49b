"""Small video files written frame by frame, and broken in every way that a download can break them."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GRAY_STEP = 5
"""By how much each frame is lighter than the one before it."""


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame number n: gray of 5·n + 20, with a white corner at the top left."""
    frame = np.full((height, width, 3), 20 + GRAY_STEP * number, np.uint8)
    frame[: height // 3, : width // 3] = 255
    return frame


def number_of(frame: np.ndarray) -> int:
    """Which frame a decoded one is, by its gray at the bottom right of the middle."""
    height, width = frame.shape[:2]
    return round((float(frame[height * 5 // 12 : height * 7 // 12, width * 5 // 12 : width * 7 // 12].mean()) - 20) / 5)


def write_film(
    path: Path,
    frames: int = 20,
    size: tuple[int, int] = (48, 64),
    times: list[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """A film of ``picture`` frames at 25 per second, or at times in milliseconds; a key frame every 6 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 6
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound track and nothing else."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def rotate(path: Path, quarter_turns: int) -> Path:
    """Writes into an mp4's header that players are to turn its pictures clockwise."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    offset = header + 4 + (20 if content[header] == 0 else 32) + 16
    a, b, c, d = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))[quarter_turns]
    unit = 1 << 16
    content[offset : offset + 36] = struct.pack(">9i", a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def spoil_last_key_frame(path: Path) -> Path:
    """Alters bytes inside the last key frame of a film; its packets stay as long as they were."""
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size and packet.is_keyframe]
        assert packets[-1].pos is not None
        start, end = packets[-1].pos + 20, packets[-1].pos + packets[-1].size - 4
    content = bytearray(path.read_bytes())
    content[start:end] = np.random.default_rng(0).integers(1, 256, end - start, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return path


def count_as(path: Path, frames: int) -> Path:
    """Makes an avi's headers claim another number of frames."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        start = content.index(mark) + offset
        content[start : start + 4] = struct.pack("<I", frames)
    path.write_bytes(content)
    return path

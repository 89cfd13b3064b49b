"""Every codec in every container that takes it, with and without B-frames and open GOPs, written with PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_SIZE = (96, 128)

CODECS: dict[str, tuple[str, str]] = {
    "h264": ("libx264", "mp4 mkv avi mov ts flv"),
    "hevc": ("libx265", "mp4 mkv mov ts"),
    "mpeg4": ("mpeg4", "mp4 mkv avi mov ts"),
    "mpeg2": ("mpeg2video", "mp4 mkv avi mov ts mpg"),
    "mpeg1": ("mpeg1video", "mp4 mkv avi mov ts mpg"),
    "wmv2": ("wmv2", "wmv avi"),
    "vp8": ("libvpx", "webm mkv avi"),
    "vp9": ("libvpx-vp9", "webm mkv mp4"),
    "av1": ("libsvtav1", "mp4 mkv webm"),
    "mjpeg": ("mjpeg", "mp4 mkv avi mov"),
    "prores": ("prores_ks", "mov mkv"),
}
"""Of each codec its encoder, and the containers that take it."""

_WITH_B_FRAMES = ("h264", "hevc", "mpeg4", "mpeg2", "mpeg1")
_HIDDEN_FRAMES = ("vp8", "vp9")


@dataclass(frozen=True)
class Cell:
    """One kind of file."""

    codec: str
    container: str
    b_frames: int
    open_gop: bool

    @property
    def name(self) -> str:
        coding = f"b{self.b_frames}" + ("-open" if self.open_gop else "")
        return f"{self.codec}-{coding}.{self.container}"


def all_cells() -> list[Cell]:
    """The whole matrix; B-frames and open GOPs where a codec has them (of VP8 and VP9, frames that are not shown)."""
    cells = []
    for codec, (_, containers) in CODECS.items():
        for container in containers.split():
            cells.append(Cell(codec, container, 0, False))
            if codec in _WITH_B_FRAMES:
                cells += [Cell(codec, container, 2, False), Cell(codec, container, 2, True)]
            elif codec in _HIDDEN_FRAMES:
                cells.append(Cell(codec, container, 2, False))
    return cells


def missing_encoders() -> list[str]:
    """Encoders of the matrix that PyAV's FFmpeg lacks."""
    missing = []
    for encoder, _ in CODECS.values():
        try:
            av.codec.Codec(encoder, "w")
        except av.codec.codec.UnknownCodecError:
            missing.append(encoder)
    return missing


def picture(number: int, height: int = _SIZE[0], width: int = _SIZE[1]) -> np.ndarray:
    """Frame n: its number in twelve bits, as black and white fields that no codec mistakes, over a moving texture."""
    rng = np.random.default_rng(number)
    texture = rng.integers(90, 166, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frame = np.roll(texture, number * 3, 1)
    for bit in range(12):
        top, left = 8 + 32 * (bit // 4), 8 + 32 * (bit % 4)
        frame[top : top + 16, left : left + 16] = 235 if number >> bit & 1 else 16
    return frame


def number_of(frame: np.ndarray) -> int:
    """Which frame a decoded one is."""
    number = 0
    for bit in range(12):
        top, left = 8 + 32 * (bit // 4), 8 + 32 * (bit % 4)
        number |= int(frame[top + 4 : top + 12, left + 4 : left + 12].mean() > 125) << bit
    return number


def write_cell(folder: Path, cell: Cell, frames: int = 75, gop: int = 12) -> Path:
    """A film of the cell's kind, of pictures 0 … frames − 1."""
    path = folder / cell.name
    encoder = CODECS[cell.codec][0]
    muxer = {"ts": "mpegts", "mkv": "matroska", "mpg": "mpeg", "wmv": "asf"}.get(cell.container, cell.container)
    with av.open(str(path), "w", format=muxer) as file:
        stream = file.add_stream(encoder, rate=25)
        stream.height, stream.width = _SIZE
        stream.pix_fmt = {"prores": "yuv422p10le", "mjpeg": "yuvj420p"}.get(cell.codec, "yuv420p")
        stream.gop_size = gop
        if cell.codec not in ("h264", "hevc", "av1", "prores"):
            stream.bit_rate = 2_000_000
        stream.options = _options(cell, gop)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _options(cell: Cell, gop: int) -> dict[str, str]:
    b_frames = str(cell.b_frames)
    match cell.codec:
        case "h264":
            settings = f"open-gop={int(cell.open_gop)}:scenecut=0:keyint={gop}:min-keyint=1"
            return {"preset": "veryfast", "bf": b_frames, "x264-params": settings}
        case "hevc":
            settings = f"open-gop={int(cell.open_gop)}:scenecut=0:keyint={gop}:bframes={b_frames}:log-level=none"
            return {"preset": "ultrafast", "x265-params": f"{settings}:pools=1:frame-threads=1"}
        case "mpeg4" | "mpeg2" | "mpeg1":
            closed = {"flags": "+cgop", "sc_threshold": "1000000000"}
            return {"bf": b_frames} | (closed if cell.b_frames and not cell.open_gop else {})
        case "vp8" | "vp9":
            hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"}
            visible = {"auto-alt-ref": "0", "lag-in-frames": "0"}
            return {"deadline": "realtime" if not cell.b_frames else "good", "cpu-used": "4"} | (
                hidden if cell.b_frames else visible
            )
        case "av1":
            return {"preset": "12", "svtav1-params": "lp=1"}
        case _:
            return {}

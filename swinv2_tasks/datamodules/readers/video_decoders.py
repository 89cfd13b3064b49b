"""Two decoders of videos, which give the same frames: PyAV and, where its seek is proved right, decord."""

import bisect
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from swinv2_tasks.datamodules.readers.video_packets import (
    NONE,
    CorruptPacket,
    SeekPoint,
    UnreadableVideo,
    VideoIndex,
    decode,
    decode_packet,
    open_video,
    video_stream,
)


class VideoDecoder(Protocol):
    """Reads frames of one open file."""

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Frames uint8 RGB (H, W, 3) by number, which ascend.

        Raises:
            UnreadableVideo: A frame cannot be decoded, or is corrupt.
        """

    def close(self) -> None:
        """Free what the open file takes."""


class _OtherFrames(Exception):
    """What a seek gave is not what sequential decoding gives there."""


class PyAVDecoder:
    """FFmpeg by PyAV. Frames are identified by their presentation times, or counted from the first one.

    Decoding continues where the last frame was, or begins at the last seek point before the frame wanted: then each
    frame must have the time that the index states for its number, else the file is decoded from its start.

    Args:
        path: The file.
        index: Its frames.
    """

    def __init__(self, path: str, index: VideoIndex) -> None:
        self.path = path
        self.index = index
        self._container: av.container.InputContainer | None = None
        self._starts = [point.frame for point in index.seek_points]
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._next: int | None = None  # number of the frame that comes next; None before the first
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._turn: tuple[bool, bool, bool] | None = None

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Frames (H, W, 3) uint8, RGB, by their numbers in the order shown."""
        return [self._rgb(self._frame(number)) for number in numbers]

    def close(self) -> None:
        """Closes the file; a later ``read`` opens it again."""
        self._frames = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def _frame(self, number: int) -> av.VideoFrame:
        last = bisect.bisect_right(self._starts, number) - 1
        point = self.index.seek_points[last] if last >= 0 else None
        goes_back = self._next is None or number < self._next
        try:
            if point is not None and point.frame > 0 and (goes_back or point.frame > (self._next or 0)):
                self._begin(self._frames_from(point), point.frame)
            elif goes_back:
                self._begin(self._all_frames(), 0)
            return self._advance(number)
        except _OtherFrames:
            self._begin(self._all_frames(), 0)
            return self._advance(number)

    def _begin(self, frames: Iterator[av.VideoFrame], number: int) -> None:
        self._frames = frames
        self._next = number

    def _advance(self, number: int) -> av.VideoFrame:
        while True:
            frame = next(self._frames)
            current = self._next or 0
            self._next = current + 1
            if current == number:
                return frame

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        """Every frame, decoded from the file's start."""
        times = self.index.times
        number = 0
        for frame in decode(self.path, self.index.stream):
            if number >= self.index.frames or (times is not None and frame.pts != times[number]):
                raise UnreadableVideo(f"its packets state other frames than are decoded, from frame {number} on")
            yield frame
            number += 1
        raise UnreadableVideo(f"decoding it ends after {number} of {self.index.frames} frames")

    def _frames_from(self, point: SeekPoint) -> Iterator[av.VideoFrame]:
        """The frames from a seek point on.

        Raises:
            _OtherFrames: The packet is not found, or what is decoded from there is not what the index states.
        """
        times = self.index.times
        assert times is not None
        number = point.frame
        for packet in self._packets_from(point):
            try:
                frames = decode_packet(packet)
            except CorruptPacket as error:
                if packet.pts is None or packet.pts >= point.pts:
                    raise _OtherFrames from error
                frames = error.frames
            for frame in frames:
                if number == point.frame and frame.pts is not None and frame.pts < point.pts:
                    continue  # leads the key frame, and needs frames before it
                if number >= self.index.frames or frame.pts != times[number]:
                    raise _OtherFrames
                yield frame
                number += 1
        raise _OtherFrames

    def _packets_from(self, point: SeekPoint) -> Iterator[av.Packet]:
        """The packets from a seek point on, wherever the container's own seek lands before it."""
        if self._container is None:
            self._container = open_video(self.path)
            video_stream(self._container, self.index.stream)
        stream = self._container.streams[self.index.stream]
        # Containers seek by either time, and some land after it.
        for time in (point.pts, point.dts):
            if time == NONE:
                continue
            self._container.seek(time, stream=stream)
            is_found = False
            for packet in self._container.demux(stream):
                # By the presentation time, which no other packet has: after a seek, decoding times may be unknown.
                is_found = is_found or (packet.pts == point.pts and packet.size == point.size)
                if is_found:
                    yield packet
                elif packet.is_keyframe and packet.pts is not None and packet.pts > point.pts:
                    break
            if is_found:
                return
        raise _OtherFrames

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        if self._size is None:
            self._size = (frame.width, frame.height)
            self._turn = _turn(frame)
        width, height = self._size  # a stream may change its size; its frames are of one
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            interpolation=Interpolation.BICUBIC,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        pixels = rgb.to_ndarray()
        transposes, flips_vertically, flips_horizontally = self._turn or (False, False, False)
        if transposes:
            pixels = pixels.transpose(1, 0, 2)
        if flips_vertically:
            pixels = pixels[::-1]
        if flips_horizontally:
            pixels = pixels[:, ::-1]
        return pixels


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether players transpose a frame, then flip it vertically, then horizontally: quarter turns and flips.

    Other display matrices change nothing.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return False, False, False
    # (x, y) is shown at (a·x + c·y, b·x + d·y)
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    if not b and not c:
        return False, d < 0, a < 0
    if not a and not d:
        return True, b < 0, c < 0
    return False, False, False


class DecordDecoder:
    """decord, for files in which its seek is proved right. Where it reports an error, PyAV decides.

    Args:
        path: The file.
        index: Its frames.

    Raises:
        UnreadableVideo: decord cannot open the file, or counts other frames.
    """

    def __init__(self, path: str, index: VideoIndex) -> None:
        self.path = path
        self.index = index
        self._instead: PyAVDecoder | None = None
        decord = import_decord()
        try:
            # One thread: the loader's workers are the parallel ones.
            self._reader: Any = decord.VideoReader(path, num_threads=1)
            keys = self._reader.get_key_indices()
        except (RuntimeError, decord.DECORDError, UnicodeEncodeError) as error:  # names that are no UTF-8, too
            raise UnreadableVideo("decord cannot open it") from error
        if len(self._reader) != index.frames or list(keys) != [point.frame for point in index.seek_points]:
            raise UnreadableVideo("decord counts other frames in it")

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Frames (H, W, 3) uint8, RGB, by their numbers in the order shown; PyAV's where decord fails."""
        if self._instead is None:
            frames = self._try(numbers)
            if frames is not None:
                return frames
            self._instead = PyAVDecoder(self.path, self.index)
        return self._instead.read(numbers)

    def close(self) -> None:
        """Frees the file."""
        self._reader = None  # decord frees what a reader holds only then
        if self._instead is not None:
            self._instead.close()

    def _try(self, numbers: Sequence[int]) -> list[np.ndarray] | None:
        """The frames; None where decord fails, or FFmpeg inside it reports an error, after which it continues."""
        with _stderr_length() as length:
            try:
                frames = [_without_padding(self._reader[number].asnumpy()) for number in numbers]
            except import_decord().DECORDError:
                return None
            return None if length() else frames


@functools.cache
def import_decord() -> Any:
    """decord, imported only where videos are read: it is not there on every system.

    Raises:
        ImportError: It is not installed.
    """
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    return decord


@functools.cache
def has_decord() -> bool:
    """Whether decord can be imported."""
    try:
        import_decord()
    except (ImportError, OSError):
        return False
    return True


@contextmanager
def _stderr_length() -> Iterator[Any]:
    """Keeps what libraries write to standard error, and says how many bytes it is.

    decord has no other way to hear of errors that FFmpeg conceals, and this one misses those that FFmpeg is silent on.
    What it writes is not for users: the verdict is PyAV's.
    """
    written = os.memfd_create("stderr")
    stderr = os.dup(2)
    os.dup2(written, 2)
    try:
        yield lambda: os.fstat(written).st_size
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(written)


def _without_padding(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3). decord takes padded rows of narrow videos for more channels, see its issue 336."""
    height, width, channels = frame.shape
    return frame if channels == 3 else frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)

"""Reading video files: the frames asked for, as a player shows them, or one clear message.

Frame k is frame k of sequential decoding: neither a first timestamp other than zero, nor a varying frame rate, nor a
header without or with a wrong number of frames changes which frame a number means, and nor does what was read before. A
rotation that the file asks for is applied.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from swinv2_tasks.datamodules.readers.frame_folders import FrameFolder
from swinv2_tasks.datamodules.readers.images import (
    files_below,
    has_extension,
    has_image_extension,
    list_files,
    natural_order,
)
from swinv2_tasks.datamodules.readers.video_decoders import DecordDecoder, PyAVDecoder, VideoDecoder, has_decord
from swinv2_tasks.datamodules.readers.video_packets import UnreadableVideo, VideoIndex, decode, index_video
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import open_file
from swinv2_tasks.text import printable

VIDEO_EXTENSIONS: tuple[str, ...] = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
"""File name endings, in lower case, that mark a video inside a folder."""

DecoderChoice = Literal["auto", "pyav", "decord"]
"""Which library decodes. `decord`: only files in which its seek is proved right, others are refused.

`auto` is PyAV for every file at present: where decord would be right, it is slower, since it goes through all packets
at each opening, and it conceals corruption that PyAV reports (docs/video.md).
"""


class Video:
    """An open video; ``len(video)`` is its number of frames. To be used in a ``with`` and closed at once.

    Args:
        path: The file, or a folder whose images are the frames.
        decoder: Which library decodes it.

    Raises:
        UserError: It is missing, empty, a folder without images, without pictures, cut off, corrupt or of no known
            kind; or decord was asked for, and is not installed or not sure to give the frames asked for.
    """

    def __init__(self, path: str | Path, decoder: DecoderChoice = "auto") -> None:
        self.path = str(path)
        self._index: VideoIndex | None = None
        self._decoder: VideoDecoder
        try:
            if Path(path).is_dir():
                self._decoder = folder = FrameFolder(self.path)
                self._frames = len(folder)
            else:
                self._index = _checked_index(Path(path))
                self._decoder = self._open(decoder, self._index)
                self._frames = self._index.frames
        except UnreadableVideo as reason:
            raise unreadable_video(self.path, reason) from reason

    def __len__(self) -> int:
        return self._frames

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._decoder.close()

    @property
    def decoder(self) -> DecoderChoice:
        """Which library decodes this file; PyAV, too, where frames are images, which neither does."""
        return "decord" if isinstance(self._decoder, DecordDecoder) else "pyav"

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in the order asked for: uint8 RGB (n, H, W, 3).

        Each is decoded once, and those between two key frames in one go.

        Raises:
            UserError: A frame cannot be decoded, or is corrupt.
            IndexError: There is no frame of a number.
        """
        numbers, positions = np.unique(np.asarray(indices), return_inverse=True)
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise IndexError(
                f"{printable(self.path)} has frames 0 to {len(self) - 1}, not {numbers[0]} to {numbers[-1]}"
            )
        try:
            frames = self._read(numbers.tolist())
            return frames if np.array_equal(positions, np.arange(len(numbers))) else frames[positions]
        except UnreadableVideo as reason:
            raise unreadable_video(self.path, reason) from reason

    def _read(self, numbers: list[int]) -> np.ndarray:
        """Frames by number, which ascend; as of `frames`. With PyAV none of them is in memory twice."""
        if isinstance(self._decoder, DecordDecoder | FrameFolder) or len(numbers) < 2:
            return np.stack(self._decoder.read(numbers))
        (first,) = self._decoder.read(numbers[:1])
        frames = np.empty((len(numbers), *first.shape), np.uint8)
        frames[0] = first
        for row, number in enumerate(numbers[1:], start=1):
            (frames[row],) = self._decoder.read([number])
        return frames

    def _open(self, choice: DecoderChoice, index: VideoIndex) -> VideoDecoder:
        if choice != "decord":
            return PyAVDecoder(self.path, index)
        if not has_decord():
            raise UserError(
                "data.decoder is decord, which is not installed; its packages are for Linux on x86-64: pip install "
                "decord. Or set data.decoder to auto."
            )
        if not index.decord_seeks:
            raise UserError(
                f"data.decoder is decord, whose seek may give other frames of {printable(self.path)} than those asked "
                "for. Set data.decoder to auto."
            )
        return DecordDecoder(self.path, index)


def unreadable_video(path: str, reason: object) -> UserError:
    """The error that names a video which cannot be read, and why."""
    return UserError(
        f"Cannot read the video {printable(path)}: {reason}. Replace the file, or remove it from the dataset."
    )


def find_corruption(path: str | Path) -> str | None:
    """Why a video is not wholly there or does not decode in full, in words; None if it does.

    Every frame is decoded, and held against what packets state, which is what opening the file goes by.
    """
    try:
        if Path(path).is_dir():
            folder = FrameFolder(str(path))
            for number in range(1, len(folder)):
                folder.read([0, number])  # which must be of one size
            return None
        index = _checked_index(Path(path))
        times = [frame.pts for frame in decode(str(path), index.stream)]
    except UnreadableVideo as reason:
        return str(reason)
    if len(times) != index.frames or (index.times is not None and times != index.times.tolist()):
        return f"its packets state {index.frames} frames, of which {len(times)} are decoded"
    return None


def list_videos(source: str | Path) -> list[Path]:
    """The videos that `source` names, as ``list_images`` does for images.

    In a folder that holds images, and no video file, each folder of images is a video.

    Raises:
        UserError: Nothing is there, or nothing that is a video.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = list(files_below(folder))
        of_frames = {file.parent for file in files if has_image_extension(file)}
        if of_frames and not any(map(has_video_extension, files)):
            return sorted(of_frames, key=natural_order)
    return list_files(source, "video", VIDEO_EXTENSIONS)


def has_video_extension(name: str | Path) -> bool:
    """Whether a file of this name is taken for a video."""
    return has_extension(name, VIDEO_EXTENSIONS)


def _checked_index(path: Path) -> VideoIndex:
    if not path.exists():
        raise UnreadableVideo("the file does not exist")
    try:
        open_file(path).close()
    except OSError as error:
        raise UnreadableVideo(str(error.strerror)) from error
    if path.stat().st_size == 0:
        raise UnreadableVideo("the file is empty (0 bytes)")
    return index_video(str(path))

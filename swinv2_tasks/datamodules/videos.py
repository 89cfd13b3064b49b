"""Reading video files with decord: the frames asked for, as a player shows them, or one clear message.

Frames are counted in the order in which they are shown, from the first that the file holds: neither a first timestamp
other than zero, nor a varying frame rate, nor a header without or with a wrong number of frames changes which frame a
number means. A rotation that the file asks for is applied.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from swinv2_tasks.datamodules.images import is_kind, list_files
from swinv2_tasks.errors import UserError

VIDEO_EXTENSIONS: tuple[str, ...] = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
"""File name endings, in lower case, that mark a video inside a folder."""


class Video:
    """An open video file; ``len(video)`` is its number of frames. To be used in a ``with`` and closed at once.

    Args:
        path: The file.

    Raises:
        UserError: It is missing, empty, a folder, without pictures, cut off or nothing that decord knows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        decord = decord_module()
        if (reason := _obvious_reason(Path(path))) is not None:
            raise self._unreadable(reason)
        try:
            # One thread: the loader's workers are the parallel ones.
            self._reader: Any = decord.VideoReader(self.path, num_threads=1)
        except (RuntimeError, decord.DECORDError) as error:
            if "cannot find video stream" in str(error):
                raise self._unreadable("there are no pictures in it, only sound") from error
            raise self._unreadable("it is no video of a known kind, or cut off") from error
        if not len(self):
            raise self._unreadable("it holds no frame")

    def __len__(self) -> int:
        return len(self._reader)

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._reader  # decord frees what a reader holds only then

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in the order asked for: uint8 RGB (n, H, W, 3).

        Each is decoded once, and those between two key frames in one go.

        Raises:
            UserError: A frame cannot be decoded.
        """
        wanted, places = np.unique(np.asarray(indices), return_inverse=True)
        found = []
        for index in wanted.tolist():
            try:
                found.append(_without_padding(self._reader[index].asnumpy()))
            except decord_module().DECORDError as error:
                raise self._unreadable(f"its frame {index} of {len(self)} is damaged or missing") from error
        return np.stack(found)[places]

    def _unreadable(self, reason: str) -> UserError:
        return UserError(
            f"Cannot read the video {self.path}: {reason}. Replace the file, or remove it from the dataset."
        )


def list_videos(source: str | Path) -> list[Path]:
    """The video files that `source` names, as ``list_images`` does for images.

    Raises:
        UserError: Nothing is there, or nothing that is a video.
    """
    return list_files(source, "video", VIDEO_EXTENSIONS)


def has_video_extension(name: str | Path) -> bool:
    """Whether a file of this name is taken for a video."""
    return is_kind(name, VIDEO_EXTENSIONS)


@functools.cache
def decord_module() -> Any:
    """decord, imported only where videos are read: it is not there on every system.

    Raises:
        UserError: It is not installed.
    """
    try:
        import decord
    except ImportError as error:
        raise UserError("Videos need decord, which is there for Linux on x86-64 only: pip install decord.") from error
    decord.logging.set_level(decord.logging.QUIET)  # what is wrong with a file is said once, by us
    return decord


def _obvious_reason(path: Path) -> str | None:
    if not path.exists():
        return "the file does not exist"
    if path.is_dir():
        return "it is a folder"
    return "the file is empty (0 bytes)" if path.stat().st_size == 0 else None


def _without_padding(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3). decord takes padded rows of narrow videos for more channels, see its issue 336."""
    height, width, channels = frame.shape
    return frame if channels == 3 else frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)

"""The image files of a dataset that is converted."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath

from swinv2_tasks.datamodules.readers.images import MOST_FILE_BYTES
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import StoredFile
from swinv2_tasks.text import printable

_UNSAFE = re.compile(r"[^\w.()+-]+")
"""What lists of names, separated by spaces and line ends, do not hold."""


class Copier:
    """Copies images into folders, each under a name that no other has there, endings aside.

    Layouts go by the stem of an image: `a.jpg` and `a.png` would have one label file.

    Args:
        links: Whether to write links instead of copies.

    Attributes:
        number: How many images were copied.
        renamed: Names of images that are called otherwise now, and their new ones.
    """

    def __init__(self, links: bool) -> None:
        self._links = links
        self._stems: dict[Path, set[str]] = {}
        self.number = 0
        self.renamed: list[tuple[str, str]] = []

    def copy(self, image: str | Path, folder: Path, name: str | None = None) -> str:
        """Copies an image.

        Args:
            image: The file.
            folder: Where to; it is there.
            name: What it is called, with folders in it that are left out; None: as the file.

        Returns:
            Its new name.

        Raises:
            UserError: It cannot be read or written.
        """
        before = str(name if name is not None else Path(image).name)
        new = _new_name(PurePosixPath(before), self._stems.setdefault(folder, set()))
        try:
            if isinstance(image, StoredFile):
                self._copy_stored(image, folder / new)
            elif self._links:
                os.symlink(os.path.abspath(image), folder / new)
            else:
                shutil.copyfile(image, folder / new)
        except OSError as error:
            raise UserError(f"Cannot copy {printable(image)} to {printable(folder)}: {error.strerror}.") from error
        self.number += 1
        if new != PurePosixPath(before).name:
            self.renamed.append((before, new))
        return new

    def _copy_stored(self, image: StoredFile, target: Path) -> None:
        """Copies an image that lies within another file.

        Raises:
            OSError: It cannot be read or written.
            UserError: A link to it is asked for.
        """
        if self._links:
            raise UserError(
                f"{printable(image)} lies within a file, to whose parts there are no links: leave out --links."
            )
        target.write_bytes(image.read(MOST_FILE_BYTES))


def _new_name(name: PurePosixPath, taken: set[str]) -> str:
    """A name for an image, whose stem is noted as taken.

    Args:
        name: What it was called, with the folders that it was in.
        taken: Stems that others have, in lower case.
    """
    ending = name.suffix
    stem = _UNSAFE.sub("_", name.name.removesuffix(ending))[:200] or "image"
    if stem.lower() in taken:
        parts = [_UNSAFE.sub("_", part) for part in name.parent.parts if part not in ("/", "..", ".")]
        stem = "_".join([*parts, stem])[-200:]
    number, free = 2, stem
    while free.lower() in taken:
        free = f"{stem}_{number}"
        number += 1
    taken.add(free.lower())
    return free + _UNSAFE.sub("_", ending)

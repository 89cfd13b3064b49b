"""Checks of files: whether they are there and decode in full, and are what their names say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from swinv2_tasks.commands.check.facts import Facts
from swinv2_tasks.commands.check.findings import Findings
from swinv2_tasks.outside_files import StoredFile, file_on_disk

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
"""The endings of each format's files."""

EMPTY = "the file is empty"
"""How the reader's reason begins for a file without content."""

_CUT_OFF = ("truncated", "cut off", "premature end", "has no end", "unexpected end")


def missing_file(path: str, facts: Facts) -> str | None:
    """There is no such file."""
    return None if os.path.exists(file_on_disk(path)) else "there is no such file"


def empty_file(path: str, facts: Facts) -> str | None:
    """It has no content."""
    if isinstance(path, StoredFile):
        return "0 bytes" if facts.reason.startswith(EMPTY) else None
    return "0 bytes" if os.path.isfile(path) and os.path.getsize(path) == 0 else None


def truncated_file(path: str, facts: Facts) -> str | None:
    """Its end is not there."""
    return facts.reason if any(words in facts.reason.lower() for words in _CUT_OFF) else None


def unreadable_file(path: str, facts: Facts) -> str | None:
    """It does not decode."""
    return facts.reason


UNREADABLE: dict[str, Callable[[str, Facts], str | None]] = {
    "missing_file": missing_file,
    "empty_file": empty_file,
    "truncated_file": truncated_file,
    "unreadable_file": unreadable_file,
}
"""Why a file cannot be read, the first that holds."""


def wrong_extension(path: str, facts: Facts) -> str | None:
    """Its ending is that of another format."""
    endings = EXTENSIONS.get(facts.format)
    ending = Path(path).suffix.lower()
    if endings is None or not ending or ending in endings:
        return None
    return f"it is {facts.format}, not {ending}"


def check_file(findings: Findings, split: str, path: str, facts: Facts) -> None:
    """Adds what is wrong with a file of a sample."""
    if facts.reason:
        for name, check in UNREADABLE.items():
            if (detail := check(path, facts)) is not None:
                findings.add(name, split, path, detail)
                return
    if (detail := wrong_extension(path, facts)) is not None:
        findings.add("wrong_extension", split, path, detail, is_drawn=True)

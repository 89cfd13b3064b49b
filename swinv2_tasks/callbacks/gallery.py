"""The gallery of a prediction: a page of pictures with what is predicted of them, filtered by class and by score."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from swinv2_tasks.callbacks.output_names import short_names
from swinv2_tasks.child_processes import available_cores, decode_in_processes
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import embed, reduce, write_page
from swinv2_tasks.progress import count_words
from swinv2_tasks.text import printable, shorten

GALLERY = "gallery.html"

MOST_SAMPLES = 500
"""On a page; of more, these many are spread evenly."""

MOST_BYTES = 18_000_000
"""Of all pictures, as the page has them: with its text it stays below 20 MB."""

SIDE = 640
"""Pixels of a picture's longer side, where there is room for all."""

MOST_LABELS = 40
"""Labels of a sample, of which the first five are shown, at most."""

PATIENCE = 5.0
"""Seconds that pictures are reduced in this process, after which other processes take the rest."""

MOST_PROCESSES = 8

MOST_SECONDS = 60.0
"""That a picture may take in another process."""


class Label(NamedTuple):
    """A class that is predicted of a sample."""

    name: str
    score: float
    """In [0, 1]: how confident the prediction is, or what share of the image the class has."""
    number: int = 1
    """How many objects of the class there are."""

    @property
    def text(self) -> str:
        """A line of a caption."""
        return f"{f'{self.number} ' if self.number > 1 else ''}{shorten(self.name)} {self.score:.0%}"


@dataclass(frozen=True)
class GallerySample:
    """A predicted file, as a gallery shows it."""

    path: str
    draw: Callable[[], Image.Image]
    """Its picture, RGB of any size; raises a UserError where there is none any more. It can be pickled."""
    labels: Sequence[Label] = ()
    """By which samples are filtered, the highest scores first."""
    lines: Sequence[str] = ()
    """What else is said of it."""
    truth: str | None = None
    """The class that it is known to be of."""
    is_right: bool | None = None
    """Whether that is the predicted one; None where it is not known."""


def choose_samples(total: int) -> list[int]:
    """Which of so many samples a page shows, spread evenly."""
    shown = min(total, MOST_SAMPLES)
    return [int((k + 0.5) * total / shown) for k in range(shown)]


def write_gallery(path: Path, samples: Sequence[GallerySample], total: int, title: str, score_name: str) -> None:
    """Writes a gallery.

    Args:
        path: the file, of at most 20 MB.
        samples: those that are shown.
        total: how many there are.
        title: of the page.
        score_name: what the scores of labels are.

    Raises:
        UserError: it cannot be written.
    """
    side, room = room_of(len(samples))
    urls = _encode_all([_Job(position, sample.draw, side, room) for position, sample in enumerate(samples)])

    classes = _sort_classes(samples)
    index_of = {name: index for index, name in enumerate(classes)}
    names = short_names([sample.path for sample in samples])
    missing = urls.count("")
    values = {
        "title": printable(title),
        "notes": _notes(len(samples), total, missing),
        "score_name": score_name,
        "classes": [shorten(name) for name in classes],
        "has_truth": any(sample.is_right is not None for sample in samples),
        "samples": [_sample_values(*sample, index_of=index_of) for sample in zip(samples, names, urls, strict=True)],
    }
    write_page(path, "callbacks/gallery.html", values, "callbacks/gallery.js")


def room_of(samples: int) -> tuple[int, float]:
    """Pixels of a picture's longer side, and bytes of its JPEG: data URLs take 4 bytes for 3."""
    room = MOST_BYTES * 3 / 4 / max(1, samples)
    return (SIDE if room > 60_000 else SIDE // 2), room


class _Job(NamedTuple):
    """A picture to encode."""

    position: int
    draw: Callable[[], Image.Image]
    side: int
    most_bytes: float


def _encode_all(jobs: Sequence[_Job]) -> list[str]:
    """Pictures as data URLs, where there are many slow ones in several processes; empty where one cannot be read."""
    urls: list[str] = []
    started = time.monotonic()
    while len(urls) < len(jobs) and time.monotonic() - started < PATIENCE:
        urls.append(_encode(jobs[len(urls)]))

    rest = jobs[len(urls) :]
    urls += [""] * len(rest)
    if rest:
        workers = min(MOST_PROCESSES, available_cores(), len(rest))
        for job, outcome in decode_in_processes(_encode, rest, workers, MOST_SECONDS):
            urls[job.position] = outcome.value or ""
    return urls


def _encode(job: _Job) -> str:
    """A picture as a data URL; empty where it cannot be read."""
    try:
        image = job.draw()
    except (UserError, OSError):
        return ""
    return embed(reduce(image, job.side), job.most_bytes)[0]


def _sort_classes(samples: Iterable[GallerySample]) -> list[str]:
    """The classes of all samples' labels, by their names."""
    return sorted({label.name for sample in samples for label in sample.labels[:MOST_LABELS]}, key=str.casefold)


def _notes(shown: int, total: int, missing: int) -> list[str]:
    notes = [count_words(total, "prediction")]
    if shown < total:
        notes = [f"{shown:,} of {total:,} predictions, spread evenly; the other files have them all"]
    if missing:
        notes.append(f"{count_words(missing, 'picture')} could not be read any more, shown in gray")
    return notes


def _sample_values(sample: GallerySample, name: str, url: str, index_of: dict[str, int]) -> dict[str, Any]:
    """What the template says of a sample."""
    labels = sample.labels[:MOST_LABELS]
    return {
        "name": printable(name),
        "path": printable(sample.path),
        "url": url,
        "labels": json.dumps([[index_of[label.name], round(label.score, 4)] for label in labels]),
        "texts": [label.text for label in labels[:5]],
        "more": max(0, len(labels) - 5),
        "lines": [printable(line) for line in sample.lines],
        "truth": "" if sample.truth is None else shorten(sample.truth),
        "frame": {None: "", True: "right", False: "wrong"}[sample.is_right],
    }

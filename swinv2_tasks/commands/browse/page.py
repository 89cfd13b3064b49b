"""What the page of samples shows: names, labels and images, with a text for whoever does not see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinv2_tasks.commands.browse.drawing import Draw, Sample, Section
from swinv2_tasks.commands.check.datasets import TaskName
from swinv2_tasks.pages import write_page
from swinv2_tasks.text import printable

MOST_LEGEND = 24
"""Lines of a legend."""


def write_samples(
    path: Path, task: TaskName, root: str, note: str, is_augmented: bool, sections: Sequence[Section]
) -> None:
    """Writes the page.

    Args:
        path: The file.
        task: Of the dataset.
        root: The dataset's folder.
        note: What is shown.
        is_augmented: Whether samples are drawn several times, as the model gets them.
        sections: The samples of each split.

    Raises:
        UserError: It cannot be written.
    """
    values = {
        "title": f"data browse {task}",
        "task": task,
        "root": printable(root),
        "note": printable(note),
        **_styles(task, is_augmented),
        "sections": [_section_values(task, root, section) for section in sections],
    }
    write_page(path, "commands/browse/page.html", values)


def _styles(task: TaskName, is_augmented: bool) -> dict[str, Any]:
    """How much room a sample has, its draws, and the pictures of each."""
    rows: dict[TaskName, str] = {"coco": "tall", "ade20k": "two", "kinetics": "frames"}
    if is_augmented:
        rows["simmim"] = "two"
    has_wide_draws = task in ("ade20k", "kinetics")
    return {
        "is_wide": is_augmented or has_wide_draws or task == "coco",
        "draws_class": "draws" if is_augmented and not has_wide_draws else "stack",
        "row_class": rows.get(task, ""),
    }


def _section_values(task: TaskName, root: str, section: Section) -> dict[str, Any]:
    return {
        "split": section.split,
        "count": f"{len(section.samples):,} of {section.total:,}",
        "notes": [printable(note) for note in section.notes],
        "samples": [_sample_values(task, root, sample) for sample in section.samples],
    }


def _sample_values(task: TaskName, root: str, sample: Sample) -> dict[str, Any]:
    path, folder = Path(sample.file), Path(root).expanduser()
    name = printable(path.name)
    titles = [name]
    if len(sample.draws) > 1:
        titles = [f"{name}, draw {number}" for number in range(1, len(sample.draws) + 1)]
    return {
        "file": printable(path.relative_to(folder) if path.is_relative_to(folder) else path),
        "reason": printable(sample.reason),
        "draws": [_draw_values(task, title, draw) for title, draw in zip(titles, sample.draws, strict=False)],
    }


def _draw_values(task: TaskName, title: str, draw: Draw) -> dict[str, Any]:
    lines = [printable(line) for line in draw.lines]
    texts = _describe(task, title, len(draw.pictures), lines)
    legend = [(printable(text), "#{:02x}{:02x}{:02x}".format(*color)) for text, color in draw.legend]
    more = len(legend) - MOST_LEGEND
    return {
        "pictures": [{"text": text, "url": url} for text, url in zip(texts, draw.pictures, strict=True)],
        "lines": lines,
        "legend": legend[:MOST_LEGEND],
        "more": f"and {more} more" if more > 0 else "",
    }


def _describe(task: TaskName, title: str, pictures: int, lines: Sequence[str]) -> list[str]:
    """What each picture of a sample shows, in words."""
    if task == "kinetics":
        return [f"{title}: frame {number} of {pictures} shown" for number in range(1, pictures + 1)]
    if task == "ade20k":
        return [title, f"{title}, under the colors of its classes"]
    if task == "simmim":
        return [title, f"{title}, with its mask"][:pictures]
    return [f"{title}: {', '.join(lines)}"]

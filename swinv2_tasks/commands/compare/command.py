"""``swinv2-tasks compare``: what differs between runs, in settings, curves, classes and samples, on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from swinv2_tasks.commands.compare import classification, detection, segmentation
from swinv2_tasks.commands.compare.general import curves_section, scores_section, settings_section
from swinv2_tasks.commands.report.blocks import Section
from swinv2_tasks.commands.report.page import write_sections
from swinv2_tasks.commands.report.run import Run, Split, read_run
from swinv2_tasks.errors import ArgumentsError
from swinv2_tasks.files import prove_writable
from swinv2_tasks.text import printable, say

DifferenceSections = Callable[[Run, Run, Split], list[Section]]
"""Makes the sections of a task: how a second run differs from a first one in an evaluation."""

SECTIONS: dict[str, DifferenceSections] = {
    "ClassificationTask": classification.difference_sections,
    "VideoClassificationTask": classification.difference_sections,
    "DetectionTask": detection.difference_sections,
    "SegmentationTask": segmentation.difference_sections,
}
"""By the task's class."""


def compare(runs: Sequence[str], output: str = "compare.html") -> None:
    """Writes one page of how runs differ: settings, scores, curves, classes, and samples that one of them gets right.

    Differences are those from the first run. Where both have written what they predicted of the same samples, they come
    with an interval: of 95 of 100 draws of the samples, with replacement.

    Args:
        runs: folders of two runs or more, of one task.
        output: the page.

    Raises:
        ArgumentsError: there are fewer than two runs.
        UserError: a folder is none of a run, what it holds cannot be read, or the page cannot be written.
    """
    if len(runs) < 2:
        raise ArgumentsError("compare takes two runs or more, as in swinv2-tasks compare runs/a/0 runs/b/0")
    folders = [Path(run).expanduser() for run in runs]
    contents = [read_run(folder) for folder in folders]
    path = Path(output).expanduser()
    prove_writable(path.parent, "--output")
    names = name_runs(folders)
    write_sections(path, "Runs compared", " · ".join(names), build_sections(contents, names))
    say(f"comparison: {printable(path)}")


def build_sections(runs: Sequence[Run], names: Sequence[str]) -> list[Section]:
    """What the page shows of runs with these names."""
    sections = [scores_section(runs, names), settings_section(runs, names)]
    if (curves := curves_section(runs, names)) is not None:
        sections.append(curves)
    first = runs[0]
    for run, name in zip(runs[1:], names[1:], strict=True):
        title = f"{name} against {names[0]}"
        if run.task != first.task:
            note = f"Their tasks differ ({run.task}, {first.task}), so that no samples are compared."
            sections.append(Section(title, [], note))
            continue
        common = [split for split in first.splits if split in run.splits]
        if not common:
            sections.append(Section(title, [], "They evaluated different splits, so that no samples are compared."))
        if run.task in SECTIONS:
            for split in common:
                for section in SECTIONS[run.task](first, run, split):
                    sections.append(Section(f"{title}: {section.title}", section.blocks, section.note))
    return sections


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Names of runs by which they are told apart: the shortest ends of their paths that differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(2, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len({*names}) == len(names):
            return names
    return [f"{'/'.join(own[-2:])} ({number})" for number, own in enumerate(parts, start=1)]

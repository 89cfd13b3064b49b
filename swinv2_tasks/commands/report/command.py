"""``swinv2-tasks report``: one page of a run, which fit, validate and test write by themselves as they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from swinv2_tasks.callbacks.run_report import REPORT
from swinv2_tasks.commands.report import classification, detection, segmentation, simmim
from swinv2_tasks.commands.report.blocks import Section
from swinv2_tasks.commands.report.general import curves_section, result_section, run_section
from swinv2_tasks.commands.report.page import write_sections
from swinv2_tasks.commands.report.run import Run, Split, read_run
from swinv2_tasks.files import prove_writable
from swinv2_tasks.text import command_word, printable, say

EvaluationSections = Callable[[Run, Split], list[Section]]
"""Makes the sections of a task's evaluation, of what it has written."""

SECTIONS: dict[str, EvaluationSections] = {
    "ClassificationTask": classification.evaluation_sections,
    "DetectionTask": detection.evaluation_sections,
    "SegmentationTask": segmentation.evaluation_sections,
    "SimMIMTask": simmim.evaluation_sections,
    "VideoClassificationTask": classification.evaluation_sections,
}
"""By the task's class."""


def report(run: str, output: str | None = None, attention: bool = False, bias: bool = False) -> None:
    """Writes one page of what a run has learned: scores, curves, tables, figures and examples.

    fit, validate and test write it by themselves as report.html in the run's folder. It is made of what these have
    written there; images that have moved since are gray.

    Args:
        run: folder of a run, as runs/imagenet/0 or runs/imagenet/validate_0.
        output: the page; default: report.html in the run's folder.
        attention: whether Grad-CAM of mistakes and right predictions is drawn; loads the model and reads files.
        bias: whether the position bias of the trained and the present windows is drawn; loads the model.

    Raises:
        UserError: it is none, what it holds cannot be read, its checkpoint cannot be loaded where that is needed, or
            the page cannot be written.
    """
    folder = Path(run).expanduser()
    path = folder / REPORT if output is None else Path(output).expanduser()
    content = read_run(folder)
    prove_writable(path.parent, "--output")
    write_report(content, path, _model_sections(content, attention, bias))
    say(f"report: {printable(path)}")


def _model_sections(run: Run, attention: bool, bias: bool) -> list[Section]:
    """The sections for which the model is needed."""
    if not (attention or bias):
        return []
    from swinv2_tasks.commands.report.attention import attention_section
    from swinv2_tasks.commands.report.bias import bias_section
    from swinv2_tasks.commands.report.trained_model import load_model

    model = load_model(run)
    sections = [attention_section(run, split, model) for split in run.splits] if attention else []
    return [*sections, bias_section(run, model)] if bias else sections


def write_run_report(folder: Path) -> None:
    """Writes the page of a run that ends, into its folder.

    Raises:
        UserError: as for ``report``.
    """
    write_report(read_run(folder), folder / REPORT)


def write_report(run: Run, path: Path, further: Sequence[Section] = ()) -> None:
    """Writes the page of a run.

    Args:
        run: its files.
        path: the page.
        further: sections that are more than what the run has written.

    Raises:
        UserError: what the run holds cannot be read, or the page cannot be written.
    """
    sections = [result_section(run)]
    if run.task in SECTIONS:
        for split in run.splits:
            first, *others = SECTIONS[run.task](run, split)
            note = " ".join(filter(None, [_describe_validation(run), first.note]))
            sections += [replace(first, note=note), *others]
    sections += further
    sections += [section for section in (curves_section(run), run_section(run)) if section is not None]
    folder = run.folder.resolve()
    started = str(run.starts[0].get("time", "")) if run.starts else ""
    write_sections(path, f"{folder.parent.name}/{folder.name}", " · ".join(filter(None, [run.task, started])), sections)


def _describe_validation(run: Run) -> str:
    """Which validation of a training the sections of its task are of, where that is not the best one."""
    steps = [row["step"] for row in run.metrics if run.monitor in row and "step" in row]
    if run.split is not None or not steps or run.best_step in (None, steps[-1]):
        return ""
    command = f"swinv2-tasks validate --ckpt_path {command_word(run.folder)}"
    return f"Of the newest validation, which is not that of the best epoch: {command} reports that one."

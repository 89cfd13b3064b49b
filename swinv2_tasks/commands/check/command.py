"""The check of a dataset: it is opened, its files are measured, the checks look at both, and a report is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_tasks.commands.check.charts import Chart, class_charts, count_chart, histogram
from swinv2_tasks.commands.check.classes import check_classes
from swinv2_tasks.commands.check.datasets import Dataset, Sample, TaskName, read_dataset
from swinv2_tasks.commands.check.duplicates import Item, check_duplicates
from swinv2_tasks.commands.check.facts import Facts, Media, Task
from swinv2_tasks.commands.check.files import check_file
from swinv2_tasks.commands.check.findings import SEVERITIES, Findings, as_json, describe
from swinv2_tasks.commands.check.masks import check_label_map, check_unpaired
from swinv2_tasks.commands.check.measuring import measure_files
from swinv2_tasks.commands.check.page import write_page
from swinv2_tasks.commands.check.pictures import middle_frame
from swinv2_tasks.commands.check.sizes import check_image, check_modes, check_video
from swinv2_tasks.files import replace_file
from swinv2_tasks.progress import count_words
from swinv2_tasks.text import command_word, printable, say

JOURNAL = "measured.jsonl"
"""What was measured of each file, in the folder of the report: a rerun resumes from it."""

UNITS: dict[TaskName, str] = {
    "imagenet": "image",
    "coco": "object",
    "ade20k": "label map",
    "kinetics": "video",
    "simmim": "image",
}
"""What is counted of each class."""


def check_dataset(
    task: TaskName,
    root: str,
    data: Any,
    folder: Path,
    workers: int,
    seconds: float,
    json_file: str | None = None,
    faults: Mapping[str, str] | None = None,
) -> Findings:
    """Checks a dataset, prints what was found, and writes the report.

    Args:
        task: Of the dataset.
        root: Its folder.
        data: Its datamodule.
        folder: Where check.html, check.json and the journal go.
        workers: Processes that read.
        seconds: Time after which a file counts as hung.
        json_file: Another name for check.json.
        faults: Files that are known not to decode, with the reasons; these are not read.

    Raises:
        UserError: The dataset has no layout that is known, or the report cannot be written.
    """
    findings = Findings()
    dataset = read_dataset(task, data, findings)
    number = sum(map(len, dataset.samples.values()))
    parts = [f"{len(samples):,} {split}" for split, samples in dataset.samples.items()]
    classes = count_words(len(dataset.class_names), "class", "classes")
    say(f"{printable(root)}: {', '.join(parts) or 'no samples'}; {classes}")

    facts = {Task(path, "video"): Facts(reason=reason) for path, reason in (faults or {}).items()}
    tasks = [file for file in _tasks(dataset) if file not in facts]
    facts |= measure_files(tasks, folder / JOURNAL, workers, seconds)

    media: Media = "video" if task == "kinetics" else "image"
    _check_samples(findings, dataset, facts)
    check_classes(findings, dataset.class_names, dataset.counts)
    items = [
        Item(split, sample.path, sample.labels, facts[_task(dataset, sample)])
        for split, samples in dataset.samples.items()
        for sample in samples
        if not facts[_task(dataset, sample)].reason
    ]
    check_duplicates(findings, items)

    mean, deviation = channel_statistics([item.facts for item in items])
    table = _table(dataset, number, mean, deviation)
    results = {
        "task": task,
        "root": root,
        "splits": {split: len(samples) for split, samples in dataset.samples.items()},
        "classes": [
            {"name": name, **{split: counts[index] for split, counts in dataset.counts.items()}}
            for index, name in enumerate(dataset.class_names)
        ],
        "mean": mean,
        "std": deviation,
        "totals": {severity: findings.total(severity) for severity in SEVERITIES},
        "checks": as_json(findings),
    }
    for path in [folder / "check.json", *([Path(json_file).expanduser()] if json_file is not None else [])]:
        replace_file(path, lambda unfinished: unfinished.write_text(json.dumps(results, indent=1) + "\n", "utf-8"))
    charts = _charts(dataset, [item.facts for item in items])
    show = middle_frame if task == "kinetics" else dataset.reader.picture
    write_page(folder / "check.html", task, root, findings, table, charts, show)

    for line in describe(findings):
        say(line)
    if mean:
        of_images = count_words(len(items), media)
        say(f"mean {_listed(mean)}, deviation {_listed(deviation)} of {of_images}: --data.mean, --data.std")
    say(f"page: {command_word(folder / 'check.html')}")
    return findings


def _task(dataset: Dataset, sample: Sample) -> Task:
    """How the file of a sample is measured."""
    return Task(sample.path, "video") if dataset.task == "kinetics" else Task(sample.path, "image", dataset.reader)


def _tasks(dataset: Dataset) -> list[Task]:
    """The files to measure, each once."""
    tasks: dict[Task, None] = {}
    map_media: Media = "colored label map" if dataset.coding is not None and dataset.coding.has_colors else "label map"
    for samples in dataset.samples.values():
        for sample in samples:
            tasks[_task(dataset, sample)] = None
            if sample.label_map is not None:
                tasks[Task(sample.label_map, map_media)] = None
    return list(tasks)


def _check_samples(findings: Findings, dataset: Dataset, facts: Mapping[Task, Facts]) -> None:
    """Adds what is wrong with each file, and with its labels beside it."""
    map_media: Media = "colored label map" if dataset.coding is not None and dataset.coding.has_colors else "label map"
    images: list[tuple[str, str, Facts]] = []
    pairs: list[tuple[str, str]] = []
    for split, samples in dataset.samples.items():
        counts: Counter[int] = Counter()
        sizes = dataset.objects[split].images if split in dataset.objects else {}
        for sample in samples:
            measured = facts[_task(dataset, sample)]
            check_file(findings, split, sample.path, measured)
            if dataset.task == "ade20k":
                counts.update(sample.labels)
            if sample.label_map is not None:
                pairs.append((sample.path, sample.label_map))
                label_map = facts[Task(sample.label_map, map_media)]
                counts.update([*check_label_map(findings, split, pairs[-1], measured, label_map, dataset.coding)])
            if measured.reason:
                continue
            if dataset.task == "kinetics":
                check_video(findings, split, sample.path, measured, dataset.clip_frames)
                continue
            images.append((split, sample.path, measured))
            check_image(findings, split, sample.path, measured)
            size = (measured.width, measured.height)
            if sizes.get(sample.path, size) != size:
                width, height = sizes[sample.path]
                detail = f"annotated {width}×{height}, it is {size[0]}×{size[1]}"
                findings.add("annotated_size_differs", split, sample.path, detail, is_drawn=True)
        if dataset.task == "ade20k":
            dataset.counts[split] = counts
    check_modes(findings, images)
    if pairs:
        check_unpaired(findings, pairs)


def channel_statistics(facts: Sequence[Facts]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of the values as read, each image counted alike; none without."""
    measured = [entry for entry in facts if entry.mean]
    if not measured:
        return [], []
    mean = np.mean([entry.mean for entry in measured], axis=0)
    square = np.mean([entry.square for entry in measured], axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.round(4).tolist(), deviation.round(4).tolist()


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4f}' for value in values)}]"


def _table(dataset: Dataset, number: int, mean: list[float], deviation: list[float]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [(split, f"{len(samples):,}") for split, samples in dataset.samples.items()]
    rows.append(("all", f"{number:,}"))
    if dataset.class_names:
        rows.append(("classes", f"{len(dataset.class_names):,}"))
    if mean:
        rows += [("mean of RGB" if len(mean) == 3 else "mean", _listed(mean)), ("deviation", _listed(deviation))]
    return rows


def _charts(dataset: Dataset, facts: Sequence[Facts]) -> list[Chart]:
    """The statistics of a dataset."""
    charts: list[Chart | None] = [*class_charts(dataset.class_names, dataset.counts, f"{UNITS[dataset.task]}s")]
    for split, objects in dataset.objects.items():
        charts.append(histogram(f"objects of an image, {split}", objects.numbers))
        charts.append(histogram(f"square root of a box's area in pixels, {split}", objects.sides, True))
    charts.append(histogram("shorter side in pixels", [min(entry.width, entry.height) for entry in facts], True))
    charts.append(histogram("width / height", [entry.width / entry.height for entry in facts if entry.height], True))
    if dataset.task == "kinetics":
        charts.append(histogram("frames of a video", [entry.frames for entry in facts], True))
    else:
        modes = Counter(f"{entry.format} {entry.mode}".strip() for entry in facts)
        charts.append(count_chart("formats and modes", modes))
    return [chart for chart in charts if chart is not None and chart.bars]

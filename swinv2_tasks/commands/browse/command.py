"""The page of samples: which are chosen, how they are drawn, what is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_tasks.callbacks.batch_pictures import SamplePicture, draw_samples
from swinv2_tasks.commands.browse.choice import choose, find_class
from swinv2_tasks.commands.browse.drawing import Sample, Section, draw_section, room_of
from swinv2_tasks.commands.browse.page import write_samples
from swinv2_tasks.commands.browse.stored import labels_of, open_split, split_names
from swinv2_tasks.commands.check.datasets import TaskName
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.loader import BatchPlan, sample_id
from swinv2_tasks.errors import ArgumentsError, FaultyFiles, UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.progress import count_words
from swinv2_tasks.seeding import derive_seed
from swinv2_tasks.text import command_word, printable, say

PAGE = "browse.html"

MOST_BROWSED = 200
"""Samples of a split."""

DRAWS = 4
"""How often each sample is augmented."""

MOST_MIXED = 16
"""Samples of a batch of augmented ones at most: those that may be mixed with each other."""


@dataclass(frozen=True)
class Choice:
    """What is to be shown."""

    number: int
    """Samples of each split, at most."""
    seed: int
    """Of the choice, and of the augmentation."""
    is_augmented: bool
    split: Split | None
    class_name: str | None


def browse_dataset(
    task: TaskName, root: str, data: Any, folder: Path, choice: Choice, json_file: str | None = None
) -> None:
    """Writes a page of a dataset's samples.

    Args:
        task: Of the dataset.
        root: Its folder.
        data: Its datamodule.
        folder: Where browse.html goes.
        choice: What is to be shown.
        json_file: A file for a list of what is shown.

    Raises:
        FaultyFiles: Some samples cannot be read; the page says which and why.
        UserError: There is nothing to show, or labels are not in order.
    """
    class_index = None if choice.class_name is None else find_class(data, choice.class_name)
    if choice.is_augmented:
        sections = _draw_augmented(task, data, choice, class_index)
    else:
        sections = _draw_stored(task, data, choice, class_index)
    number = sum(len(section.samples) for section in sections)
    if not number:
        of_class = "" if choice.class_name is None else f" of the class {printable(choice.class_name)}"
        raise UserError(f"There are no samples{of_class} in {printable(root)}.")

    write_samples(folder / PAGE, task, root, _note(choice), choice.is_augmented, sections)
    if json_file is not None:
        _write_list(Path(json_file).expanduser(), task, root, choice, sections)
    _report(sections)
    say(f"page: {command_word(folder / PAGE)}")
    faulty = {sample.file: sample.reason for section in sections for sample in section.samples if sample.reason}
    if faulty:
        raise FaultyFiles(
            f"{len(faulty):,} of {count_words(number, 'sample')} cannot be read, as listed above and on the page",
            faulty,
        )


# ---- what is drawn


def _draw_stored(task: TaskName, data: Any, choice: Choice, class_index: int | None) -> list[Section]:
    """Samples of each split as their files have them."""
    splits = split_names(task, data)
    if choice.split is not None and choice.split not in splits:
        raise ArgumentsError(
            f"data browse {task}: --split {choice.split}: no such split; there is {', '.join(splits) or 'none'}."
        )
    chosen = []
    for split in splits if choice.split is None else [choice.split]:
        samples = open_split(task, data, split)
        chosen.append((samples, *_choose(split, samples.dataset, choice, class_index)))

    room = room_of(task, sum(len(indices) for _, _, indices in chosen))
    for samples, section, indices in chosen:
        plans = [BatchPlan([index], [0], 0) for index in indices]  # drawing takes no random numbers
        draw_section(section, indices, samples, plans, list, room, data.num_workers)
    return [section for _, section, _ in chosen]


def _draw_augmented(task: TaskName, data: Any, choice: Choice, class_index: int | None) -> list[Section]:
    """Training samples as the model gets them: by the dataset and the collate function of training."""
    if choice.split not in (None, "train"):
        raise ArgumentsError(
            f"data browse {task}: --split {choice.split}: only training samples are augmented. Leave out --augmented, "
            "or --split."
        )
    data.setup("fit")
    dataset = data.train_dataset
    section, indices = _choose("train", dataset, choice, class_index)
    size = min(MOST_MIXED, data.batch_size)
    plans = [plan for draw in range(DRAWS) for plan in _augmenting_plans(indices, size, choice.seed, draw)]
    room = room_of(task, DRAWS * len(indices))
    draw_section(section, indices, dataset, plans, partial(_draw_batch, data), room, data.num_workers)
    return [section]


def _augmenting_plans(indices: Sequence[int], size: int, seed: int, draw: int) -> list[BatchPlan]:
    """Batches of samples for a draw, each time with others beside them, and with random numbers of their own.

    They are of about one size: a last one of a single sample could not be mixed with others.
    """
    if not indices:
        return []
    order = np.random.default_rng([seed, draw]).permutation(np.array(indices))
    groups = [group.tolist() for group in np.array_split(order, -(-len(indices) // size))]
    return [
        BatchPlan(group, [derive_seed(seed, draw, index) for index in group], derive_seed(seed, draw, group[0], 1))
        for group in groups
    ]


def _draw_batch(data: Any, samples: list[Any]) -> list[SamplePicture]:
    names = [str(name) for name in data.class_names]
    return draw_samples(data.train_collate(samples), data.mean, data.std, names, len(samples))


def _choose(split: Split, dataset: Any, choice: Choice, class_index: int | None) -> tuple[Section, list[int]]:
    """The samples of a split that are to be drawn, and their indices."""
    number = len(dataset)
    indices, unread = choose(labels_of(dataset), number, choice.number, choice.seed, class_index)
    notes = [f"{count_words(unread, 'sample')} could not be read when the class was looked for"] if unread else []
    return Section(split, number, [Sample(sample_id(dataset, index)) for index in indices], notes), indices


# ---- what is reported


def _note(choice: Choice) -> str:
    """What the page shows, in a line."""
    what = "Samples with their labels, as the files have them"
    if choice.is_augmented:
        what = f"{DRAWS} draws of each training sample, as the model gets them"
    of_class = "" if choice.class_name is None else f"; those that show {choice.class_name}"
    return f"{what}{of_class} (seed {choice.seed})."


def _report(sections: Sequence[Section]) -> None:
    """Says how many samples are shown, what is smaller than usual, and which cannot be read."""
    samples = [sample for section in sections for sample in section.samples]
    for section in sections:
        say(f"{section.split}: {len(section.samples):,} of {count_words(section.total, 'sample')}")
        for note in section.notes:
            say(f"  {note}")
    draws = [draw for sample in samples for draw in sample.draws]
    if reduced := sum(draw.is_reduced for draw in draws):
        say(f"{reduced:,} of {len(draws):,} drawings are smaller than usual, as a page has 20 MB at most")
    for sample in samples:
        if sample.reason:
            say(f"  {printable(sample.file)}: {printable(sample.reason)}")


def _write_list(path: Path, task: TaskName, root: str, choice: Choice, sections: Sequence[Section]) -> None:
    """Writes which samples are shown, with what stands below them; what several draws have in common once."""
    samples = [
        {
            "split": section.split,
            "file": sample.file,
            "labels": [*dict.fromkeys(line for draw in sample.draws for line in draw.lines)],
            "reason": sample.reason,
        }
        for section in sections
        for sample in section.samples
    ]
    content = {"task": task, "root": root, "augmented": choice.is_augmented, "seed": choice.seed, "samples": samples}
    text = json.dumps(content, indent=1) + "\n"
    replace_file(path, lambda unfinished: unfinished.write_text(text, "utf-8"))

"""Samples drawn and encoded by DataLoader workers: those that cannot be read are noted, and stop nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from swinv2_tasks.callbacks.batch_pictures import MOST_FRAMES, SamplePicture
from swinv2_tasks.callbacks.segmentation import LegendEntry
from swinv2_tasks.commands.check.datasets import TaskName
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.loader import BatchLoader, BatchOrder, BatchPlan, Fault, FaultPolicy, sample_id
from swinv2_tasks.pages import embed, reduce
from swinv2_tasks.progress import WorkProgress

MOST_BYTES = 18_000_000
"""Of all pictures, as the page has them: with its text it stays below 20 MB."""

PICTURES: dict[TaskName, int] = {"imagenet": 1, "coco": 1, "ade20k": 2, "kinetics": MOST_FRAMES, "simmim": 2}
"""Pictures of a sample at most."""

SIDES: dict[TaskName, int] = {"imagenet": 320, "coco": 512, "ade20k": 480, "kinetics": 240, "simmim": 320}
"""Pixels of a picture's longer side."""


class Draw(NamedTuple):
    """A sample as it is drawn once."""

    pictures: list[str]
    """Data URLs."""
    lines: list[str]
    legend: list[LegendEntry]
    is_reduced: bool
    """Whether there was too little room for pictures of the usual size."""


@dataclass
class Sample:
    """A sample on the page."""

    file: str
    draws: list[Draw] = field(default_factory=list)
    reason: str = ""
    """Why it could not be read."""


@dataclass
class Section:
    """Samples of a split."""

    split: Split
    total: int
    """How many the split has."""
    samples: list[Sample]
    notes: list[str]


class Room(NamedTuple):
    """What pictures may take."""

    side: int
    """Pixels of their longer side."""
    most_bytes: float
    """Of each, as JPEG."""


def room_of(task: TaskName, samples: int) -> Room:
    """What there is for each picture of so many samples: data URLs take 4 bytes for 3."""
    return Room(SIDES[task], MOST_BYTES * 3 / 4 / max(1, samples * PICTURES[task]))


class _Order(BatchOrder):
    """Batches that are chosen."""

    def __init__(self, plans: Sequence[BatchPlan]) -> None:
        batch_size = max((len(plan.indices) for plan in plans), default=1)
        super().__init__(len(plans), batch_size, rank=0, world_size=1, seed=0, drop_last=False, shuffle=False)
        self._plans = plans

    def __len__(self) -> int:
        return len(self._plans)

    def plans(self, first: int = 0) -> Iterator[BatchPlan]:
        return iter(self._plans[first:])


class _Numbered(Dataset):
    """Samples with their indices."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def sample_id(self, index: int) -> str:
        """As the dataset calls it."""
        return sample_id(self.dataset, index)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]


def draw_section(
    section: Section,
    indices: Sequence[int],
    dataset: Any,
    plans: Sequence[BatchPlan],
    draw_batch: Callable[[list[Any]], list[SamplePicture]],
    room: Room,
    num_workers: int,
) -> None:
    """Draws the samples of a section, as often as plans have them.

    Args:
        section: Its samples get what is drawn, or why they could not be read.
        indices: Of the section's samples in the dataset.
        dataset: What plans are of.
        plans: Batches.
        draw_batch: Draws the samples of a batch.
        room: What pictures may take.
        num_workers: DataLoader workers.
    """
    samples = dict(zip(indices, section.samples, strict=True))
    faults: list[Fault] = []
    policy = FaultPolicy("skip", None)
    policy.report = faults.append
    collate = partial(_draw_numbered, draw_batch=draw_batch, room=room)
    loader = BatchLoader(_Numbered(dataset), _Order(plans), collate, min(num_workers, len(plans)), policy)
    number = 0
    try:
        with WorkProgress(f"Drawing {section.split}", sum(len(plan.indices) for plan in plans)) as progress:
            for draws in loader:
                number += len(draws)
                for index, draw in draws:
                    samples[index].draws.append(draw)
                progress.update(number + len(faults), len(faults))
    finally:
        loader.close()
    for fault in faults:
        samples[fault.sample_index].reason = fault.reason


def _draw_numbered(
    numbered: list[tuple[int, Any]], draw_batch: Callable[[list[Any]], list[SamplePicture]], room: Room
) -> list[tuple[int, Draw]]:
    """The samples of a batch, drawn and encoded, with their indices."""
    pictures = draw_batch([sample for _, sample in numbered])
    return [(index, _encode(picture, room)) for (index, _), picture in zip(numbered, pictures, strict=True)]


def _encode(picture: SamplePicture, room: Room) -> Draw:
    encoded = [embed(reduce(image, room.side), room.most_bytes) for image in picture.images]
    is_reduced = any(is_smaller for _, is_smaller in encoded)
    return Draw([url for url, _ in encoded], picture.lines, [*picture.legend], is_reduced)

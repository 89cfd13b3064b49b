"""On how many samples a score rests, and which were left out."""

from __future__ import annotations

import functools
import json
import logging
import math
import operator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from swinv2_tasks.batches import SampleCounts, task_data
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.files import replace_file

log = logging.getLogger("swinv2_tasks")


class EvaluatedSamples(Callback):
    """Says at the end of an evaluation that left samples out on how many it rests, and names those left out.

    It also writes val_samples.json or test_samples.json. In the course of a training it is said again only when other
    samples are left out than before. Where `data.faulty_samples` is `error` none can be, and nothing is written.

    Args:
        folder: where to write: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reported: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the samples that a validation left out, unless it is the check before training."""
        if not trainer.sanity_checking:
            self._report(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the samples that a test left out."""
        self._report(trainer, "test")

    def _report(self, trainer: Any, split: str) -> None:
        counts = task_data(trainer).evaluated_samples(split)
        if counts is None:
            return
        counts = sum_over_processes(counts)
        if not trainer.is_global_zero:
            return

        number = math.ceil(counts.number / counts.samples_per_file)
        scored = number - len(counts.left_out)
        content = {"scored": scored, "of": number, "left_out": dict(counts.left_out)}
        text = json.dumps(content, indent=2) + "\n"
        replace_file(self.folder / f"{split}_samples.json", lambda file: file.write_text(text, "utf-8"))

        if counts.left_out and (trainer.state.fn != "fit" or set(counts.left_out) != self._reported):
            self._reported = set(counts.left_out)
            log.warning(
                "%s: the scores are of %d of %d samples; left out%s, since they could not be read: %s",
                split,
                scored,
                number,
                "" if counts.samples_per_file == 1 else " in whole or in part",
                abbreviate(list(counts.left_out), 20),
            )


def sum_over_processes(counts: SampleCounts) -> SampleCounts:
    """What all processes have read together; to be called by all of them."""
    if not torch.distributed.is_initialized():
        return counts
    of_processes: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_processes, counts)
    return functools.reduce(operator.add, of_processes)


def gather_on_first(value: Any) -> list[Any]:
    """What each process has, on the first one, in their order; nothing on others. To be called by all of them."""
    if not torch.distributed.is_initialized():
        return [value]
    is_first = torch.distributed.get_rank() == 0
    of_processes: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
    torch.distributed.gather_object(value, of_processes)
    return of_processes or []

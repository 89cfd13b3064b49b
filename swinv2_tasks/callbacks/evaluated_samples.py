"""On how many samples a score rests, and which were left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.loader import ReadSamples
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
        self._told: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, "test")

    def _report(self, trainer: Any, kind: str) -> None:
        data = trainer.datamodule
        if not isinstance(data, BaseDataModule) or data.faults.policy == "error":
            return
        read = of_all_processes(data.read_samples(kind))
        if not trainer.is_global_zero:
            return
        # Several samples may be parts of one video.
        parts = getattr(getattr(data, f"{kind}_dataset"), "parts", 1)
        number = -(-read.number // parts)
        scored = number - len(read.left_out)
        content = {"scored": scored, "of": number, "left_out": read.left_out}
        text = json.dumps(content, indent=2) + "\n"
        replace_file(self.folder / f"{kind}_samples.json", lambda file: file.write_text(text))
        if read.left_out and (trainer.state.fn != "fit" or set(read.left_out) != self._told):
            self._told = set(read.left_out)
            log.warning(
                "%s: the scores are of %d of %d samples; left out%s, since they could not be read: %s",
                kind,
                scored,
                number,
                "" if parts == 1 else " in whole or in part",
                abbreviate(list(read.left_out), 20),
            )


def of_all_processes(read: ReadSamples) -> ReadSamples:
    """What all processes have read together; to be called by all of them."""
    if not torch.distributed.is_initialized():
        return read
    shares: list[ReadSamples] = [ReadSamples()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, read)
    return sum(shares, ReadSamples())

"""The first batch of a training, as the model gets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule

from swinv2_tasks.batches import batches_of
from swinv2_tasks.callbacks.batch_pictures import arrange, draw_samples
from swinv2_tasks.files import replace_file

FIRST_BATCH = "first_batch.png"


class FirstBatch(Callback):
    """Draws the first training batch as first_batch.png: what is wrong with the data or its augmentation shows here.

    Drawn are the samples of the first process, after augmentation, with their labels, once in a run. Without a
    datamodule that states `mean` and `std`, and of batches that are none of `batches.py`, nothing is drawn.

    Args:
        folder: the run's folder.
        samples: how many, at most.
    """

    def __init__(self, folder: Path, samples: int = 16) -> None:
        self.file, self.samples = folder / FIRST_BATCH, samples

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draws the batch that a training begins with."""
        is_first = batch_idx == 0 and trainer.current_epoch == 0 and trainer.global_step == 0
        if not is_first or not trainer.is_global_zero:
            return
        mean, std = (getattr(trainer.datamodule, name, None) for name in ("mean", "std"))
        if mean is None or std is None:
            return
        names = [str(name) for name in getattr(pl_module, "class_names", None) or ()]
        pictures = draw_samples(batches_of(batch)[0], mean, std, names, self.samples)
        if pictures:
            sheet = arrange(pictures)
            replace_file(self.file, lambda path: sheet.save(path, "PNG"))

"""What the datamodules of all tasks share: loaders, normalisation and the statement of classes."""

from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, default_collate

from swinv2_tasks.errors import UserError
from swinv2_tasks.records import Recorded


class BaseDataModule(Recorded, LightningDataModule):
    """Loaders around the datasets that a subclass makes in `setup`.

    A subclass sets `train_dataset`, `val_dataset`, `test_dataset` and `predict_dataset`, where needed `collate` and
    `train_collate`, and states its classes. Datasets yield one sample each; the collate functions turn a list of
    samples into one of the batches of `batch.py`, inside the workers.

    Args:
        batch_size: Samples per batch and process.
        num_workers: Loading processes of each loader; 0 loads in the main process.
        mean: What the images were normalised with: subtracted from RGB in [0, 1] …
        std: … and what divided the difference.

    Raises:
        UserError: An argument is out of its range.
    """

    train_dataset: Dataset | None = None
    val_dataset: Dataset | None = None
    test_dataset: Dataset | None = None
    predict_dataset: Dataset | None = None

    def __init__(
        self, batch_size: int, num_workers: int, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise UserError(f"data.batch_size={batch_size}, data.num_workers={num_workers}; expected at least 1 and 0.")
        if min(std) <= 0:
            raise UserError(f"data.std is {tuple(std)}; expected three values above 0.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.mean = mean
        self.std = std
        self.collate: Callable[[list[Any]], Any] = default_collate
        self.train_collate: Callable[[list[Any]], Any] = default_collate

    @property
    def class_names(self) -> list[str]:
        """Readable names, in the order of the class indices."""
        raise NotImplementedError

    @property
    def class_ids(self) -> list[str] | list[int]:
        """The dataset's own ids, in the order of the class indices."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_ids)

    @property
    def train_samples(self) -> int:
        """Number of training samples, over all processes. Known after `setup("fit")`."""
        return len(cast(Sized, _made(self.train_dataset)))

    def train_batches(self, world_size: int = 1) -> int:
        """Batches of an epoch in each of `world_size` processes. Known after `setup("fit")`.

        Lightning's sampler repeats a few samples so that all processes get equally many; the incomplete batch at the
        end is dropped.

        Raises:
            UserError: There are fewer samples than one batch of each process takes.
        """
        samples = -(-self.train_samples // world_size)
        if samples < self.batch_size:
            raise UserError(
                f"data.batch_size is {self.batch_size}, but there are only {samples} training samples per process and "
                f"incomplete batches are dropped: nothing would be trained. Set data.batch_size to {samples} or less."
            )
        return samples // self.batch_size

    def train_dataloader(self) -> DataLoader:
        self.train_batches(self.trainer.world_size if self.trainer else 1)  # complains rather than train on nothing
        return self._loader(self.train_dataset, self.train_collate, train=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val_dataset, self.collate)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_dataset, self.collate)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict_dataset, self.collate)

    def _loader(self, dataset: Dataset | None, collate: Callable[[list[Any]], Any], train: bool = False) -> DataLoader:
        # A generator of the loader's own: order and augmentation follow from the seed of the run alone, not from how
        # many random numbers something else drew before. Processes must not augment alike, hence the rank.
        rank = self.trainer.global_rank if self.trainer else 0
        return DataLoader(
            _made(dataset),
            batch_size=self.batch_size,
            shuffle=train,
            drop_last=train,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**62 + rank),
        )


def _made(dataset: Dataset | None) -> Dataset:
    if dataset is None:
        raise RuntimeError("This dataset does not exist yet: call the datamodule's setup(stage) first.")
    return dataset

"""What the datamodules of all tasks share: loaders, normalization and the statement of classes."""

import logging
from collections.abc import Callable, Sized
from dataclasses import replace
from math import inf
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import Dataset, default_collate

from swinv2_tasks.batches import SampleCounts, TaskData
from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules.class_sampling import BalancedOrder, RepeatFactorOrder, SampleClasses, Sampling
from swinv2_tasks.datamodules.loader import BatchLoader, BatchOrder, FaultPolicy, FileOrder
from swinv2_tasks.datamodules.readers.array_images import MOST_CHANNELS
from swinv2_tasks.datamodules.readers.channels import ImageReader
from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.datamodules.transforms.classification import check
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import Recorded
from swinv2_tasks.records import mapping, require, text, values, whole
from swinv2_tasks.text import say

log = logging.getLogger("swinv2_tasks")

FaultChoice = Literal["error", "skip"]
"""What happens on samples that cannot be read."""

MOST_WORKERS = 8
"""DataLoader workers of a loader at most, where no setting says how many."""

MOST_STATED_WORKERS = 1024
"""DataLoader workers of a loader at most, where a setting says how many: each is a process."""

LARGEST_BATCH = 100_000
"""Samples of a batch at most."""


STATE = mapping({"seed": whole(0, 2**64), "faults": values(text)})
"""What a resumed training must know of its data."""


class BaseDataModule(Recorded, LightningDataModule, TaskData):
    """Loaders around the datasets that a subclass makes in `setup`.

    A subclass sets `train_dataset`, `val_dataset`, `test_dataset` and `predict_dataset`, where needed `collate` and
    `train_collate`, and states its classes. Datasets yield one sample each; the collate functions turn a list of
    samples into one of the batches of `batches.py`, inside the workers.

    What a dataset draws from the global generators of torch, NumPy and Python is reproducible: they are seeded for each
    sample and for each batch. A dataset with `sample_id(index)` has its samples named so in messages.

    Args:
        batch_size: Samples per batch and process.
        num_workers: DataLoader workers of each loader; 0 loads in the main process. None: as many as cores are there
            for each device of the run, at most 8.
        mean: What the images were normalized with: subtracted from values in [0, 1], per channel …
        std: … and what divided the difference.
        faulty_samples: What happens on a sample that cannot be read: `error` stops, `skip` leaves it out of its batch.
            None: `skip` in prediction, which lists them, else `error`.
        faulty_budget: How many different samples `skip` may leave out in a run before it stops. None: 10, in prediction
            any number.
        channels: Channels of the images.
        value_range: The values of image files that become 0 and 1; None: by the type of the values.
        exif_rotation: Whether images are rotated as their files say.

    Raises:
        UserError: An argument is out of its range.
    """

    batch_size: int
    train_dataset: Dataset | None = None
    val_dataset: Dataset | None = None
    test_dataset: Dataset | None = None
    predict_dataset: Dataset | None = None
    image_channels: int = 3
    size_setting = "image_size"
    eval_batch_size: int | None = None
    """Samples per batch and process in evaluation and prediction; None: as many as in training."""
    train_groups: list[int] | None = None
    """Which group each training sample belongs to, when batches should be of one group; set in `setup`."""
    train_permute: Callable[[np.random.Generator], np.ndarray] | None = None
    """Draws an epoch's order of the training samples, where not any is as likely; set in `setup`."""
    train_classes: SampleClasses | None = None
    """Which classes each training sample shows, where that is known without reading them; set in `setup`."""
    _epoch_samples: int | None = None

    def __init__(
        self,
        batch_size: int,
        num_workers: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        faulty_samples: FaultChoice | None = None,
        faulty_budget: int | None = None,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        exif_rotation: bool = True,
    ) -> None:
        super().__init__()
        check("batch_size", batch_size, 1, LARGEST_BATCH)
        check("num_workers", num_workers or 0, 0, MOST_STATED_WORKERS)
        check("channels", channels, 1, MOST_CHANNELS)
        check_normalization(mean, std, channels)
        if value_range is not None and not -inf < value_range[0] < value_range[1] < inf:
            raise UserError(f"data.value_range is {[*value_range]}; expected two numbers, the lower one first.")
        if faulty_budget is not None and faulty_budget < 0:
            raise UserError(f"data.faulty_budget is {faulty_budget}; expected a number of samples, at least 0.")
        self.batch_size = batch_size
        self._stated_workers = num_workers
        self.channels = self.image_channels = channels
        self.reader = ImageReader(channels, value_range, exif_rotation)
        self.mean = mean
        self.std = std
        self.faults = FaultPolicy(faulty_samples or "error", 10 if faulty_budget is None else faulty_budget)
        self.predict_faults = FaultPolicy(faulty_samples or "skip", faulty_budget)
        self._seed: int | None = None
        self._loaders: dict[str, BatchLoader] = {}
        self.collate: Callable[[list[Any]], Any] = default_collate
        self.train_collate: Callable[[list[Any]], Any] = default_collate

    @property
    def num_workers(self) -> int:
        """DataLoader workers of each loader: as the setting says, else as many as there are cores for.

        What is read does not depend on it.
        """
        if self._stated_workers is not None:
            return self._stated_workers
        trainer: Any = self.trainer
        devices = trainer.num_devices if trainer else 1  # of this machine
        return min(MOST_WORKERS, available_cores() // devices)

    @property
    def patch_side(self) -> int:
        """The longest side of the model's patches in pixels; 1 where no trainer says what the model is."""
        backbone = getattr(getattr(self.trainer, "lightning_module", None), "backbone", None)
        return max(getattr(backbone, "patch_size", (1,)))

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
        """Number of different training samples, over all processes. Known after `setup("fit")`."""
        return len(cast(Sized, _existing(self.train_dataset)))

    @property
    def epoch_samples(self) -> int:
        """Number of training samples in an epoch: more than there are, where some are repeated."""
        return self.train_samples if self._epoch_samples is None else self._epoch_samples

    def sample_by_class(self, sampling: Sampling, repeat_threshold: float) -> None:
        """Lets the order of training samples go by their classes, which is said; called in `setup`.

        Args:
            sampling: How often an epoch has each sample.
            repeat_threshold: Share of the samples below which `repeat_factor` repeats a class.

        Raises:
            UserError: Nothing says which classes the samples show.
        """
        if sampling == "uniform":
            return
        if self.train_classes is None:
            raise UserError(
                f"data.sampling is {sampling}, but the training samples are in shards, which show their classes only "
                "when they are read. Take the folder that they were written from, or data.sampling uniform."
            )
        classes = self.train_classes
        order = BalancedOrder(classes) if sampling == "balanced" else RepeatFactorOrder(classes, repeat_threshold)
        self.train_permute, self._epoch_samples = order, len(order)
        self.is_sampled_by_class = True
        rank_zero_only(say)(order.describe(self.class_names))

    def train_batches(self, world_size: int = 1) -> int:
        """Batches of an epoch in each of `world_size` processes. Known after `setup("fit")`.

        What does not fill a batch of every process is dropped, other samples in each epoch.

        Raises:
            UserError: There are fewer samples than one batch of each process takes.
        """
        batches = self.epoch_samples // (self.batch_size * world_size)
        if not batches:
            raise UserError(
                f"data.batch_size is {self.batch_size} on {world_size} process{'es' * (world_size > 1)}, but there are "
                f"only {self.train_samples} training samples and incomplete batches are dropped: nothing would be "
                f"trained. Set data.batch_size to {max(1, self.train_samples // world_size)} or less."
            )
        return batches

    @property
    def seed(self) -> int:
        """Seed of the run, from which order and augmentation follow: torch's at first use, the first process's."""
        if self._seed is None:
            seed = torch.initial_seed() % 2**63
            self._seed = self.trainer.strategy.broadcast(seed) if self.trainer else seed
        return self._seed

    @property
    def record(self) -> dict[str, Any]:
        """The datamodule's class and arguments, as checkpoints record them."""
        return {"class": type(self).__name__, "init_args": self.init_args}

    def share_faults(self) -> None:
        """Shares with the other processes which samples could not be read."""
        self.faults.share()

    @property
    def skipped_samples(self) -> dict[str, str]:
        """Names of the training samples that were left out so far, and why."""
        return dict(self.faults.skipped)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know; Lightning puts it into checkpoints."""
        return {"seed": self.seed, "faults": dict(self.faults.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed and the skipped samples of the training that is resumed.

        Raises:
            UserError: it is no such state.
        """
        require(state_dict, STATE, "the checkpoint is corrupt: of the state of its data,")
        if self.train_dataset is not None:  # not when evaluating
            self._seed = state_dict["seed"]
            self.faults.skipped.update(state_dict["faults"])

    def train_dataloader(self) -> BatchLoader:
        """The loader of augmented training batches; incomplete ones are dropped."""
        self.train_batches(self.trainer.world_size if self.trainer else 1)  # raises rather than train on nothing
        return self._loader("train", self.train_dataset, self.train_collate)

    def val_dataloader(self) -> BatchLoader:
        """The loader of the validation samples, in order and each once over all processes."""
        return self._loader("val", self.val_dataset, self.collate)

    def test_dataloader(self) -> BatchLoader:
        """The loader of the test samples, in order and each once over all processes."""
        return self._loader("test", self.test_dataset, self.collate)

    def predict_dataloader(self) -> BatchLoader:
        """The loader of the files to predict; all samples of a file come in one process."""
        dataset: Any = _existing(self.predict_dataset)
        rank, world_size = self._rank_and_world_size()
        batch_size = self.eval_batch_size or self.batch_size
        parts = _samples_per_file(dataset)
        order = FileOrder(len(dataset) // parts, parts, batch_size, rank, world_size, self.seed)
        return self._new_loader("predict", order, self.collate, self.predict_faults)

    def teardown(self, stage: str) -> None:
        """End the workers of all loaders, rather than leave that to the collection of garbage."""
        for loader in self._loaders.values():
            loader.close()

    def worker_death(self, error: BaseException) -> UserError | None:
        """The error that explains the death of one of the loaders' workers; None for other errors."""
        for loader in self._loaders.values():
            if (explained := loader.explain_worker_death(error)) is not None:
                return explained
        return None

    def train_sample_ids(self, batch: int) -> list[str]:
        """Names of the samples in one of the running epoch's training batches of this process, from 0."""
        return self._loaders["train"].sample_ids(batch)

    def evaluated_samples(self, split: str) -> SampleCounts | None:
        """What this process has read of a split; None where the first sample that cannot be read stops the run."""
        if self.faults.policy == "error":
            return None
        counts = self._loaders[split].counts if split in self._loaders else SampleCounts()
        return replace(counts, samples_per_file=_samples_per_file(getattr(self, f"{split}_dataset")))

    def mention_left_out(self, augmentation: Augmentation) -> None:
        """Says in a line what an augmentation does not do to images that are not RGB."""
        if names := augmentation.left_out(self.channels):
            rank_zero_only(log.warning)(
                "data.augmentation: %s left out, as it changes the colors of RGB images; these have %d channel%s",
                *(" and ".join(names), self.channels, "s" * (self.channels != 1)),
            )

    def needs_validation(self, stage: str) -> bool:
        """Whether a stage reads validation data: not a training that makes no validation."""
        trainer: Any = self.trainer
        return stage != "fit" or trainer is None or trainer.limit_val_batches != 0

    def missing_validation(self, path: object, settings: str | None) -> UserError:
        """The error for validation data that are not there, where the training data are.

        Args:
            path: Where they should be.
            settings: The settings that name others; None where there are no such.
        """
        trainer: Any = self.trainer
        in_fit = trainer is not None and trainer.state.fn == "fit"
        remedies = [] if settings is None else [f"name others with {settings}"]
        remedies.append("set a share of the training data aside with --data.val_share 0.1")
        if in_fit:
            remedies.append("train without validation: --trainer.limit_val_batches 0")
        advice = "; or ".join(remedies)
        return UserError(f"There are no validation data {path}. {advice[0].upper()}{advice[1:]}.")

    def _loader(self, split: str, dataset: Dataset | None, collate: Callable[[list[Any]], Any]) -> BatchLoader:
        trainer: Any = self.trainer
        train = split == "train"
        rank, world_size = self._rank_and_world_size()
        # Overfitting on a few batches means the same ones in each epoch.
        shuffle = train and not (trainer and trainer.overfit_batches)
        samples = self.epoch_samples if shuffle else len(cast(Sized, _existing(dataset)))
        batch_size = self.batch_size if train else self.eval_batch_size or self.batch_size
        groups = self.train_groups if shuffle else None
        permute = self.train_permute if shuffle else None
        order = BatchOrder(samples, batch_size, rank, world_size, self.seed, train, shuffle, groups, permute)
        return self._new_loader(split, order, collate, self.faults)

    def _new_loader(
        self, split: str, order: BatchOrder, collate: Callable[[list[Any]], Any], faults: FaultPolicy
    ) -> BatchLoader:
        dataset = _existing(getattr(self, f"{split}_dataset"))
        cores = available_cores()
        if self.num_workers > cores and not self._loaders:
            rank_zero_only(log.warning)(
                "data.num_workers is %d, but this process may use %d core%s: reading may get slower. Without the "
                "setting, workers follow the cores.",
                *(self.num_workers, cores, "s" * (cores > 1)),
            )
        self._loaders[split] = BatchLoader(dataset, order, collate, self.num_workers, faults)
        return self._loaders[split]

    def _rank_and_world_size(self) -> tuple[int, int]:
        trainer: Any = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Refuses means and deviations that are not one for each channel.

    Raises:
        UserError: There are others; or a deviation that nothing can be divided by.
    """
    for name, entries in (("mean", mean), ("std", std)):
        if len(entries) != channels:
            raise UserError(
                f"data.{name} has {len(entries)} value{'s' * (len(entries) != 1)}, data.channels is {channels}: "
                "state data.mean and data.std with a value for each channel. docs/data.md, Channels, says how to "
                "compute them."
            )
    if not (min(std) > 0 and max(std) < inf):
        raise UserError(f"data.std is {tuple(std)}; expected values above 0.")


def _samples_per_file(dataset: Any) -> int:
    """As how many samples a dataset reads each file; one, where it says nothing else by `parts`."""
    return getattr(dataset, "parts", 1)


def _existing(dataset: Dataset | None) -> Dataset:
    if dataset is None:
        raise RuntimeError("This dataset does not exist yet: call the datamodule's setup(stage) first.")
    return dataset

"""What is used of Lightning beyond its public interface, and nowhere else; a test names what is gone."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import DataLoader


class TrainingLoader(NamedTuple):
    """What a trainer's loaders say of an epoch; None where they do not."""

    batches: int | None
    """Batches in each process."""

    batch_size: int | None
    """Samples per batch and process, of one loader alone."""


def describe_training_loader(trainer: Any) -> TrainingLoader:
    """Makes the training loader, as the trainer's own ``estimated_stepping_batches`` does, and asks it."""
    loop = trainer.fit_loop
    loop.setup_data()
    combined = loop._combined_loader
    loaders = [] if combined is None else combined.flattened
    batches = None if loop.max_batches == float("inf") else int(loop.max_batches)
    batch_size = _batch_size(loaders[0]) if len(loaders) == 1 else None
    if trainer.ckpt_path is not None:
        # Loaders that keep a state get it as the loop makes them, once the checkpoint has been read: again, that is.
        loop._combined_loader = None
    return TrainingLoader(batches, batch_size)


def _batch_size(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader):
        return None
    return loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)

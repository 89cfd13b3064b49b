"""What all augmentations are: settings of a datamodule, which checkpoints record."""

from swinv2_tasks.hyperparameters import Recorded


class Augmentation(Recorded):
    """What training does to samples before the model sees them, as settings that build it; each task has a contract.

    Arguments of a subclass are plain values (numbers, text, lists of them), which configs state and checkpoints record.
    What it builds runs in DataLoader workers. It draws from the global generators of torch, NumPy or Python, which are
    seeded for each sample, so that a training can be resumed exactly.
    """

    def left_out(self, channels: int) -> list[str]:
        """Names of operations that are left out of images of so many channels, as they are of RGB; by default none.

        Args:
            channels: Of the images.
        """
        return []

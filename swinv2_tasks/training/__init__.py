"""What a training needs whatever its task: optimizers, losses, guards, resuming, processes, its folder."""

from swinv2_tasks.training.losses import PixelCrossEntropy
from swinv2_tasks.training.multi_label_losses import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    BinaryFocalLoss,
    MultiLabelLoss,
)
from swinv2_tasks.training.optim import (
    CosineSchedule,
    EpochCosineSchedule,
    LinearSchedule,
    Schedule,
    StepSchedule,
    parameter_groups,
)

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "BinaryFocalLoss",
    "CosineSchedule",
    "EpochCosineSchedule",
    "LinearSchedule",
    "MultiLabelLoss",
    "PixelCrossEntropy",
    "Schedule",
    "StepSchedule",
    "parameter_groups",
]

"""Tasks that bring optimizers and schedulers of their own, as users write them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from swinv2_tasks.tasks import ClassificationTask


class OneCycle(ClassificationTask):
    """A schedule that cannot continue after its end."""

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.01)
        scheduler = OneCycleLR(optimizer, max_lr=0.01, total_steps=self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Plateau(ClassificationTask):
    """A learning rate that follows a metric of the validation."""

    interval, monitor, patience = "epoch", "val/loss", 0

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.02)
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=self.patience, threshold=0.5)
        settings = {"scheduler": scheduler, "interval": self.interval, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": settings}


class PatientPlateau(Plateau):
    """One whose metric need not be there at the first epochs' ends."""

    def configure_optimizers(self) -> Any:
        optimizers = super().configure_optimizers()
        optimizers["lr_scheduler"]["strict"] = False
        return optimizers


class PlateauOfSteps(Plateau):
    interval, monitor, patience = "step", "train/loss", 1


class Plain(ClassificationTask):
    """No schedule at all."""

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


class Manual(ClassificationTask):
    """Steps by its own code."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, step_size=4, gamma=0.5)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return loss


class NeverStepping(Manual):
    """Steps by a plain optimizer, of which Lightning knows nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        loss = ClassificationTask.training_step(self, batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class TwoOptimizers(Manual):
    """One for the backbone, one for the head."""

    def configure_optimizers(self) -> Any:
        return [AdamW(self.backbone.parameters(), lr=0.01), SGD(self.head.parameters(), lr=0.1)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizers: Any = self.optimizers()
        loss = ClassificationTask.training_step(self, batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss

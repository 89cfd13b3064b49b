"""What model and data must agree on, settled between their settings or as they are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.cli.config_files import init_args
from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.tasks import DetectionTask
from swinv2_tasks.text import say


def take_channels(settings: Any) -> None:
    """Sets ``model.backbone.in_channels`` to ``data.channels``, unless it says something else than the default.

    Not as an argument linked to another: configs would lose what they state for data of one's own.
    """
    backbone = init_args(init_args(settings["model"]).get("backbone"))
    channels = init_args(settings["data"]).get("channels")
    if channels is not None and backbone.get("in_channels") == 3:
        backbone["in_channels"] = channels


def masks_to_read(model: dict[str, Any], data: dict[str, Any]) -> bool | None:
    """What ``data.masks`` is for these settings: false where the detector has no mask branch."""
    stated = init_args(data).get("masks")
    return stated and init_args(init_args(model).get("detector")).get("masks", stated)


def stuff_classes_to_read(model: dict[str, Any], data: dict[str, Any]) -> int | None:
    """What ``data.stuff_classes`` is for these settings: those of the detector, 0 without a semantic branch."""
    stated = init_args(data).get("stuff_classes")
    detector = init_args(model).get("detector")
    return stated if detector is None else init_args(detector).get("stuff_classes", 0)


class DetectorBuilder:
    """Builds a detector after its data: without a mask branch where the training data have boxes alone, which is said.

    Args:
        config: of the command; it then says what was built.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.data: CocoDataModule | None = None

    @property
    def builders(self) -> dict[type, Callable[..., Any]]:
        """What makes objects of which classes."""
        return {CocoDataModule: self.build_data, DetectionTask: self.build_task}

    def build_data(self, cls: type[CocoDataModule], **arguments: Any) -> CocoDataModule:
        """The data."""
        self.data = cls(**arguments)
        return self.data

    def build_task(self, cls: type[DetectionTask], **arguments: Any) -> DetectionTask:
        """The task.

        Raises:
            UserError: the annotations cannot be read.
        """
        detector = arguments["detector"]
        if detector.masks and self.data is not None and not self.data.has_training_masks:
            arguments["detector"] = type(detector)(**detector.init_args | {"masks": False})
            self.data.masks = False
            init_args(init_args(self.config["model"])["detector"])["masks"] = False
            init_args(self.config["data"])["masks"] = False
            rank_zero_only(say)("the data have no masks: the detector learns boxes alone (model.detector.masks false)")
        return cls(**arguments)

"""The model of a run, and its files as this model gets them: for the parts of a report that need the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor

from swinv2_tasks import tasks
from swinv2_tasks.callbacks.batch_pictures import to_picture
from swinv2_tasks.cli.configs import TASKS
from swinv2_tasks.cli.parser import instantiate
from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.text import printable
from swinv2_tasks.weights.runs import find_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A run's model."""

    checkpoint: Path
    task: Any
    """On the CPU, in eval mode, with the windows of the run."""
    config: Mapping[str, Any]
    """The run's config, parsed."""


def load_model(run: Run) -> TrainedModel:
    """Loads the best checkpoint of a training, or the one that an evaluation was of.

    Raises:
        UserError: it is not there or cannot be read; or the run is of a task of another package.
    """
    if run.task not in TASKS:
        raise UserError(
            f"{printable(run.folder)} is a run of {printable(run.task)}: only this package's tasks are looked into, so "
            "leave out --attention and --bias"
        )
    path = _checkpoint_of(run)
    # As parsed, nothing is imported that a config may not name.
    config = run_as(ParseOnlyCLI, "validate", [f"--config={run.folder / 'config.yaml'}"]).config["validate"]
    task: BaseTask = getattr(tasks, run.task).load_from_checkpoint(path)
    backbone = _settings(_settings(config["model"].as_dict()).get("backbone"))
    if backbone.get("window_size") is not None:  # of an evaluation it may be another than the checkpoint's
        task.backbone.set_window(backbone["window_size"])
    return TrainedModel(path, task.eval(), config)


def _checkpoint_of(run: Run) -> Path:
    if run.split is None:
        return find_checkpoint(run.folder)[0]
    stated = run.summary.get("checkpoint")
    if stated is None:
        raise UserError(
            f"{printable(run.folder)} names no checkpoint in its summary.json, which --attention and --bias need: "
            "evaluate one of a training, as swinv2-tasks validate --ckpt_path runs/imagenet"
        )
    path = Path(str(stated))
    if not path.exists():
        raise UserError(
            f"the checkpoint that {printable(run.folder)} is of, {printable(path)}, is gone: --attention and --bias "
            "cannot do without it"
        )
    return path


def _settings(part: Any) -> dict[str, Any]:
    """The arguments in a part of a config; none of what has none."""
    settings = part.get("init_args") if isinstance(part, Mapping) else None
    return dict(settings) if isinstance(settings, Mapping) else {}


class Reader:
    """Reads files as a run's evaluation has, one by one.

    Args:
        model: the run's model.

    Raises:
        UserError: the data are read by another package's datamodule.
    """

    def __init__(self, model: TrainedModel) -> None:
        self._data = instantiate("data", LightningDataModule, model.config["data"].as_dict())
        if not isinstance(self._data, BaseDataModule):
            raise UserError(
                f"--attention reads files by this package's datamodules, and {type(self._data).__name__} is none: "
                "derive it from BaseDataModule, or leave out --attention"
            )

    def read(self, path: str) -> Tensor | None:
        """An image (C, H, W), or the middle one of a video's clips (C, T, H, W); None of what cannot be read any more.

        Args:
            path: as the run's tables name it.
        """
        if not Path(path).is_file():  # nor is it a pattern
            return None
        data: Any = self._data
        try:
            data.source = path
            data.setup("predict")
            samples = data.predict_dataset
            sample = samples[len(samples) // 2]
        except (UserError, OSError, ValueError, MemoryError, IndexError):  # of a file that has changed since
            return None
        return sample["clip"][len(sample["clip"]) // 2] if "clip" in sample else sample["image"]

    def draw(self, image: Tensor) -> Image.Image:
        """What an image (C, H, W) looks like before it is normalized."""
        return to_picture(image, self._data.mean, self._data.std)

"""Loggers of other tools, by name, beside the run's own; and images for all that take them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

MODULES: dict[str, tuple[str, str]] = {
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "trackio": ("trackio", "trackio"),
    "comet": ("comet_ml", "comet-ml"),
}
"""The module that each logger needs, and the package that brings it."""


def check_loggers(names: Sequence[str]) -> None:
    """Makes sure that there are loggers of these names, and the packages that they need.

    Raises:
        UserError: there is none, or a package is not installed.
    """
    for name in names:
        if name not in MODULES:
            raise UserError(f"--log {name}: there is no such logger; there are {', '.join(MODULES)}")
        module, package = MODULES[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"--log {name} needs the package {package}: pip install {package}")


def build_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """The loggers of these names, which ``check_loggers`` knows.

    Where they send what they log, and to whose account, is set as their own pages say, in the environment: WANDB_MODE,
    MLFLOW_TRACKING_URI, COMET_API_KEY. Without that MLflow and Trackio write to this machine alone.

    Args:
        names: of the loggers.
        folder: the run's folder; the name of the one above it is the project's, both are the run's.

    Raises:
        UserError: a logger cannot start.
    """
    return [_build(name, folder) for name in dict.fromkeys(names)]


def _build(name: str, folder: Path) -> Logger:
    try:
        return _BUILDERS[name](folder)
    except Exception as error:  # of a tool that is not ours: no server, no account, a store that it has given up
        raise UserError(f"--log {name} cannot start: {printable(error)[:300]}") from error


def _build_wandb(folder: Path) -> Logger:
    return WandbLogger(name=_run_name(folder), save_dir=folder, project=folder.parent.name)


def _build_mlflow(folder: Path) -> Logger:
    local = f"sqlite:///{folder.parent.parent.absolute() / 'mlflow.db'}"  # beside all runs
    uri = os.environ.get("MLFLOW_TRACKING_URI", local)
    images = (
        str(folder.parent.parent.absolute() / "mlflow_images") if uri == local else None
    )  # not in the working folder
    return MLFlowLogger(folder.parent.name, _run_name(folder), tracking_uri=uri, artifact_location=images)


def _build_trackio(folder: Path) -> Logger:
    return TrackioLogger(folder.parent.name, _run_name(folder))


def _build_comet(folder: Path) -> Logger:
    return CometLogger(project=folder.parent.name, name=_run_name(folder))


def _run_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


_BUILDERS: dict[str, Callable[[Path], Logger]] = {
    "wandb": _build_wandb,
    "mlflow": _build_mlflow,
    "trackio": _build_trackio,
    "comet": _build_comet,
}


class TrackioLogger(Logger):
    """Logs to Trackio (https://github.com/gradio-app/trackio), for which Lightning has no logger.

    Args:
        project: name of the project.
        run: name of the run.
    """

    def __init__(self, project: str, run: str) -> None:
        super().__init__()
        self._project, self._run = project, run
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """The project's name."""
        return self._project

    @property
    def version(self) -> str:
        """The run's name."""
        return self._run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun when it is first asked for."""
        import trackio

        if self._experiment is None:
            self._experiment = trackio.init(project=self._project, name=self._run, resume="allow")
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs values of a step."""
        self.experiment.log({name: float(value) for name, value in metrics.items()}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None  # it is called again as the training is torn down


def log_image(logger: Any, name: str, image: Image.Image, step: int) -> None:
    """Gives an image to a logger; nothing to one that takes none.

    Args:
        logger: any of Lightning's.
        name: what the image is called.
        image: RGB.
        step: of the training.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [image])
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=name.replace("/", "_"), step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(image, name=name, step=step)
    elif isinstance(logger, TrackioLogger):
        import trackio

        logger.experiment.log({name: trackio.Image(image)}, step=step)

"""fit, validate, test and predict: one LightningCLI for all tasks, and the folders that its runs write.

A run's folder is ``runs/NAME/VERSION``: config.yaml, metrics.csv, TensorBoard events, checkpoints, pictures.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks import datamodules, tasks
from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.checkpoint_files import read_checkpoint
from swinv2_tasks.callbacks import ClassificationPredictions, LearningCurve, Throughput
from swinv2_tasks.errors import UserError
from swinv2_tasks.records import recorded_arguments, task_record

RUN_DIR = "SWINV2_TASKS_RUN_DIR"
"""Environment variable by which a run's first process tells those that it starts where the run writes."""


class TasksArgumentParser(LightningArgumentParser):
    """Lets a backbone be given as one of the size factories, which are functions."""

    def print_usage(self, file: Any = None) -> None:
        """Prints nothing: 150 lines of options would bury the message of a mistake. --help shows them."""

    def add_function_arguments(self, *args: Any, linked_targets: set[str] | None = None, **kwargs: Any) -> list[str]:
        # jsonargparse 4.53 passes linked_targets on to functions, whose method does not take it; ours have none.
        return super().add_function_arguments(*args, **kwargs)


class TasksCLI(LightningCLI):
    """LightningCLI with this package's run folders, checkpoints and pictures."""

    folder: Path

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except Exception:
            self._remove_failed_start()
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="name of the run's folder in --runs")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--output", type=str | None, default=None, help="folder for predictions; default: the run's"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.auto_insert_metric_name": False})
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        # Lightning would build whatever classes the checkpoint's hyper_parameters name.
        checkpoint = self.config[self.config.subcommand]["ckpt_path"]
        if checkpoint is not None:
            task_record(read_checkpoint(checkpoint).contents, checkpoint)  # complains

    def before_instantiate_classes(self) -> None:
        config = self._config
        config["weights_only"] = True  # left open, Lightning trusts pickles that come from a URL
        weights = config["ckpt_path"] or (config["model"].get("init_args") or {}).get("weights")
        if self.subcommand == "predict":
            config["return_predictions"] = False  # they are written as they come
            if not weights:
                raise UserError(
                    "predict needs a trained model: --ckpt_path CHECKPOINT of a run, or --model.weights FILE"
                )
        elif self.subcommand != "fit" and not weights:
            untrained = f"{self.subcommand}: neither --ckpt_path nor --model.weights is given: the model is untrained"
            rank_zero_only(print)(untrained)

    @property
    def _config(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._config
        # Model and data stand by now: most mistakes end before there is a folder.
        self.folder = folder = _run_folder(Path(config["runs"]) / config["name"])
        if config["trainer"]["logger"] in (None, True):
            place: Any = {"save_dir": folder.parent.parent, "name": folder.parent.name, "version": folder.name}
            kwargs["logger"] = [CSVLogger(**place, flush_logs_every_n_steps=50), TensorBoardLogger(**place)]
        try:
            trainer: Any = super().instantiate_trainer(default_root_dir=str(folder), **kwargs)
        except (TypeError, ValueError) as error:
            raise UserError(f"the trainer cannot be set up so: {error}") from error
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")  # not in the config, which may start further runs
            if isinstance(callback, RichProgressBar) and callback.theme == RichProgressBarTheme():
                callback.theme = dataclasses.replace(callback.theme, metrics_format=".4g")  # for small learning rates
        trainer.callbacks += [Throughput(), LearningCurve()]
        if isinstance(self.model, tasks.ClassificationTask):
            trainer.callbacks.append(ClassificationPredictions(config["output"]))
        # Checkpoints come after what others log at the end of an epoch.
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, ModelCheckpoint))
        self.model.run_name = config["name"]
        return trainer

    @rank_zero_only
    def _remove_failed_start(self) -> None:
        """Removes the folder of a run that ended before its first training step or its evaluation was done."""
        folder, trainer = getattr(self, "folder", None), getattr(self, "trainer", None)
        if folder is not None and (trainer is None or trainer.global_step == 0):
            shutil.rmtree(folder, ignore_errors=True)  # the mistake that ended the run is what matters

    def after_fit(self) -> None:
        if self.trainer.is_global_zero:
            print(f"run: {self.folder}")
            checkpoint: Any = self.trainer.checkpoint_callback
            if checkpoint is not None and checkpoint.best_model_path:
                print(
                    f"best: {checkpoint.best_model_path}, {checkpoint.monitor} {float(checkpoint.best_model_score):.4f}"
                )


def run(command: str, arguments: Sequence[str]) -> TasksCLI:
    """Runs fit, validate, test or predict with the command line's arguments.

    Raises:
        UserError: for a mistake in configs, data or checkpoints.
    """
    arguments = [*arguments]
    for index, argument in enumerate(arguments):
        if argument in ("--config", "-c") and index + 1 < len(arguments):
            arguments[index + 1] = str(find_config(arguments[index + 1]))
        elif argument.startswith("--config="):
            arguments[index] = f"--config={find_config(argument.removeprefix('--config='))}"
    _quieten()
    with tempfile.TemporaryDirectory() as scratch:
        if not any(argument.startswith(("--config", "-c")) for argument in arguments):
            checkpoint = _value(arguments, "--ckpt_path")
            if checkpoint and command != "fit":
                config = Path(scratch) / "config.yaml"
                config.write_text(yaml.safe_dump(config_from_checkpoint(checkpoint, predict=command == "predict")))
                arguments = [f"--config={config}", *arguments]
            elif not any(argument.partition("=")[0].endswith(("help", "-h")) for argument in arguments):
                also = "" if command == "fit" else ", or --ckpt_path CHECKPOINT, which brings its own"
                raise UserError(f"{command} needs --config CONFIG{also}. Configs: {', '.join(known_configs())}.")
        try:
            return TasksCLI(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=TasksArgumentParser,
                parser_kwargs={"prog": "swinv2-tasks"},
                args=[command, *arguments],
                run=True,
            )
        except MisconfigurationException as error:  # Lightning's word for a mistake in the trainer's settings
            raise UserError(str(error)) from error


def _quieten() -> None:
    """Hides what Lightning says about its own code and its maker's services: nothing that a user could act on."""
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(lambda record: "Tip: " not in record.getMessage())


def _value(arguments: Sequence[str], option: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def shipped_configs() -> Path:
    """The folder of configs that come with the package."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def known_configs() -> list[str]:
    """Names by which configs can be given: those in ./configs and those shipped."""
    folders = (Path("configs"), shipped_configs())
    return sorted({str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*.yaml")})


def find_config(name: str) -> Path:
    """The config of a name: a path, else one in ./configs, else one that comes with the package.

    Raises:
        UserError: when there is none, with the nearest and all known names.
    """
    for candidate in (Path(name), Path("configs") / name, shipped_configs() / name):
        if candidate.is_file():
            return candidate
    near = difflib.get_close_matches(name, known_configs(), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"no config {name!r}: not a file, nor in ./configs, nor shipped.{hint} Known: {', '.join(known_configs())}."
    )


def config_from_checkpoint(path: str, *, predict: bool = False) -> dict[str, Any]:
    """The config that a checkpoint carries: its own model and data, named by this package's classes only.

    Args:
        path: a checkpoint of a run.
        predict: classes are then stated by the checkpoint, so that the dataset need not be there.

    Raises:
        UserError: when the file is no checkpoint of a run, or names classes that are not this package's.
    """
    record = task_record(read_checkpoint(path).contents, path)
    task, data = record["task"], record["data"]
    if task["class"] not in tasks.__all__ or data is None or data["class"] not in datamodules.__all__:
        raise UserError(
            f"{path} was made with {task['class']} and {data and data['class']}, which are not both this package's; "
            "give the run's config with --config."
        )
    with torch.device("meta"):
        SwinTransformerV2.from_config(record["backbone"])  # refuses any position bias but this package's
    backbone = {**record["backbone"], "position_bias": f"swinv2_tasks.backbone.{record['backbone']['position_bias']}"}
    backbone_config = {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": backbone}
    data_args = recorded_arguments(getattr(datamodules, data["class"]), data["init_args"], path)
    if predict:
        data_args["class_names"] = [str(class_id) for class_id in record["classes"]["ids"]]
    task_args = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in recorded_arguments(getattr(tasks, task["class"]), task["init_args"], path).items()
        if name not in ("num_classes", "weights")
    }
    return {
        "name": Path(record["name"]).name,  # a file does not choose folders outside --runs
        "model": {
            "class_path": f"swinv2_tasks.tasks.{task['class']}",
            "init_args": {"backbone": backbone_config, **task_args},
        },
        "data": {"class_path": f"swinv2_tasks.datamodules.{data['class']}", "init_args": data_args},
    }


@rank_zero_only
def _make_folder(parent: Path) -> Path:
    """The next free number in ``parent``, made at once, so that two runs never share a folder."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            taken = [int(entry.name) for entry in parent.iterdir() if entry.name.isdecimal()]
            folder = parent / str(max(taken, default=-1) + 1)
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # another run was faster
            return folder
    except OSError as error:
        raise UserError(f"cannot make a folder for this run in {parent} (--runs, --name): {error.strerror}") from error


def _run_folder(parent: Path) -> Path:
    """This run's folder; processes that the first one started find it in the environment."""
    if RUN_DIR in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(os.environ[RUN_DIR])
    # Other ranks under an outer launcher write nothing and are told where checkpoints lie by the first.
    folder = _make_folder(parent) or parent / "0"
    os.environ[RUN_DIR] = str(folder)
    return folder

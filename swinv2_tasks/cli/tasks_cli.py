"""fit, validate, test and predict: one LightningCLI for all tasks, and how runs are set up and resumed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    ModelCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.multiprocessing import ProcessRaisedException

from swinv2_tasks.backbone.swin_v2 import blocks_on_meta_device
from swinv2_tasks.batches import task_data
from swinv2_tasks.callbacks import (
    Console,
    EvaluatedSamples,
    FirstBatch,
    LastValidation,
    LearningCurve,
    LoggedSamples,
    RunReport,
    Throughput,
)
from swinv2_tasks.callbacks.notices import filter_warnings, quiet_lightning
from swinv2_tasks.callbacks.prediction_folder import PROGRESS, bad_files, prove_writable
from swinv2_tasks.child_processes import TIMEOUT, restored_timeout, timeout_seconds, without_working_folder
from swinv2_tasks.cli.agreement import DetectorBuilder, masks_to_read, stuff_classes_to_read, take_channels
from swinv2_tasks.cli.allowed import check_names, restrict_imports, take_allowed
from swinv2_tasks.cli.arguments import (
    Option,
    as_list,
    find_checkpoints,
    find_ckpt_path,
    find_configs,
    find_resumed_run,
    join_options,
    name_model_and_data,
    name_positional,
    new_option,
    order_options,
    split_options,
    values_of,
)
from swinv2_tasks.cli.config_files import WHICH_CONFIGS, explain_file
from swinv2_tasks.cli.configs import config_from_checkpoint, state_class_names
from swinv2_tasks.cli.parser import ParsedTrainer, TasksArgumentParser
from swinv2_tasks.cli.refusals import option_setting
from swinv2_tasks.cli.released import name_classes, state_classes
from swinv2_tasks.cli.settings import full_class_names
from swinv2_tasks.cli.trainer_checks import check_callbacks, check_strategy
from swinv2_tasks.cli.trainer_settings import check_devices, check_folders, check_linked, check_numbers, explain_refusal
from swinv2_tasks.datamodules.readers.images import MAX_PIXELS, restored_limit
from swinv2_tasks.errors import (
    ArgumentsError,
    Interrupted,
    NothingToDo,
    Refused,
    UserError,
    exception_in,
    find_user_error,
)
from swinv2_tasks.files import replace_file
from swinv2_tasks.hyperparameters import task_record
from swinv2_tasks.stopping import lead, stops
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.text import command_word, printable, say, show_warnings
from swinv2_tasks.training.chosen_loggers import build_loggers, check_loggers
from swinv2_tasks.training.lightning_internals import (
    CheckpointCheckingCLI,
    ParseOnly,
    is_restoring,
    leave_signals_to_us,
    limit_collectives,
)
from swinv2_tasks.training.process_watch import ProcessWatch, collective_timeout
from swinv2_tasks.training.recorded_state import unrestorable
from swinv2_tasks.training.run_checkpoint import (
    AtomicCheckpointIO,
    RunCheckpoint,
    StopInValidation,
    complete_save,
    newest_intact,
)
from swinv2_tasks.training.run_folder import (
    RUN_DIR,
    OutputFolder,
    check_name,
    claim_folder,
    describe_finished,
    find_requeued_run,
    holds_results,
    lock,
    open_folder,
    run_folder,
    unlock,
)
from swinv2_tasks.training.run_loggers import EventsLogger, MetricsLogger
from swinv2_tasks.training.run_record import RunRecord
from swinv2_tasks.training.strategies import ShardedStrategy
from swinv2_tasks.weights.files import find_corruption, read_contents
from swinv2_tasks.weights.runs import command_of

SINGLE_LABEL_MONITOR = "val/top1"
MULTI_LABEL_MONITOR = "val/map"
"""What the best checkpoint is best by, in configs of classification; and where several labels hold for a sample."""


class WholeConfig(SaveConfigCallback):
    """Writes the run's config.yaml atomically, without the checkpoint that a run is resumed from."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes config.yaml into the run's folder."""
        config = self.config.clone()
        folder = Path(trainer.default_root_dir)
        if Path(config["ckpt_path"] or "").is_relative_to(folder):
            config["ckpt_path"] = None
        text = self.parser.dump(config, skip_none=False)
        replace_file(folder / "config.yaml", lambda file: file.write_text(text, encoding="utf-8"))


class Start(NamedTuple):
    """What is known before the arguments are parsed."""

    resume: Path | None
    """Folder of the run to resume; None starts a new one."""
    scratch: Path
    """Folder for files of this command alone, which is removed as it ends."""
    allowed: Sequence[str]
    """Modules of classes that configs may name, beside those that they always may."""
    write_report: Callable[[Path], None] | None = None
    """Writes the report of a run, given its folder."""


class TasksCLI(CheckpointCheckingCLI):
    """LightningCLI with this package's run folders, checkpoints and figures.

    Args:
        args: the command and its arguments.
        start: what is known before they are parsed.
    """

    folder: Path
    output: OutputFolder | None = None
    """What --output names; None in a training, and where the run has a folder in --runs."""

    status = 0
    """The exit status."""

    def __init__(self, args: list[str], start: Start) -> None:
        self.arguments, self.resume, self.scratch, self.allowed, self.write_report = args, *start
        self.resumed_step = 0
        stops.end_by_force_with(self._end_by_force)
        lead()
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                trainer_class=ParsedTrainer,
                save_config_callback=WholeConfig,
                save_config_kwargs={"save_to_log_dir": False},
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=TasksArgumentParser,
                parser_kwargs={"prog": "swinv2-tasks"},
                args=args,
                run=True,
            )
        except Exception as error:
            cause = self._worker_death(error) or self._other_process(error) or self._spawned_process(error)
            cause = cause or self._failed_restoring(error)
            self._end_other_processes()
            self._remove_failed_start()
            if cause is not None:
                raise cause from error
            raise
        except (KeyboardInterrupt, SystemExit, Interrupted):
            self._end_other_processes()
            self._remove_failed_start()
            raise

    def _worker_death(self, error: Exception) -> BaseException | None:
        """The error of a dead DataLoader worker, which torch reports wherever the main process happens to be."""
        return task_data(self).worker_death(error) if isinstance(error, RuntimeError) else None

    def _other_process(self, error: Exception) -> UserError | None:
        """The error of a process that this one has started, where this one only failed since that is gone."""
        if not isinstance(error, RuntimeError) or not self._processes:
            return None
        for _ in range(50):  # it has closed its connections, but may not have ended yet
            for number, process in enumerate(self._processes, start=1):
                if process.poll() not in (None, 0):
                    status = process.returncode
                    cause = "with an error, reported above" if status > 0 else f"by signal {-status}"
                    return UserError(f"process {number} of this run ended {cause}")
            time.sleep(0.1)
        return None

    @staticmethod
    def _spawned_process(error: Exception) -> BaseException | None:
        """The exception of a process that was spawned or forked, which arrives as text."""
        return exception_in(str(error)) if isinstance(error, ProcessRaisedException) else None

    def _failed_restoring(self, error: Exception) -> UserError | None:
        """The error of a checkpoint whose contents Lightning, torch or a callback cannot take over."""
        is_explained = isinstance(error, OSError | MemoryError) or find_user_error(error) is not None
        if is_explained or not is_restoring(error):
            return None
        return unrestorable(str(self._config["ckpt_path"]), error)

    def _end_other_processes(self) -> None:
        """Ends the processes that this one has started: they would wait for it forever."""
        for process in self._launched:
            process.kill()

    def _end_by_force(self) -> None:
        """Does what little can be done where the main thread hangs."""
        self._end_other_processes()
        self._remove_failed_start()

    @property
    def _launched(self) -> list[Any]:
        """The processes that this one has started, in whichever way."""
        launcher = getattr(getattr(getattr(self, "trainer", None), "strategy", None), "launcher", None)
        return [*getattr(launcher, "procs", [])]

    @property
    def _processes(self) -> list[subprocess.Popen]:
        """Those started as this one was; torch sees to those that are spawned or forked."""
        return [process for process in self._launched if isinstance(process, subprocess.Popen)]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's options and the callbacks of checkpoints, and links model and data."""
        self.parsers = [*getattr(self, "parsers", ()), parser]  # one per command
        parser.add_argument("--name", type=str, default="run", help="name of the run's folder in --runs")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="folder for what validate, test or predict write; default: a new one in --runs",
        )
        parser.add_argument(
            "--max_pixels",
            type=int | None,
            default=None,
            help="pixels of an image or a frame at most; default: 134217728, of videos 10000000",
        )
        parser.add_argument(
            "--timeout",
            type=float | None,
            default=None,
            help="seconds that a DataLoader worker or another process may be silent; default: 600",
        )
        parser.add_argument(
            "--log",
            type=list[str],
            default=[],
            help="loggers beside metrics.csv and TensorBoard: wandb, mlflow, trackio, comet",
        )
        parser.add_argument(
            "--log_samples",
            type=int,
            default=4,
            help="samples of each validation that loggers get as an image, with what is predicted; 0: none",
        )
        parser.add_argument(
            "--report", type=bool, default=True, help="whether fit, validate and test write report.html in the end"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.auto_insert_metric_name": False,
                # A file of the same name in a run's folder is of that run: a resumed one writes it again.
                "checkpoint.enable_version_counter": False,
                # As a validation ends, so that last.ckpt, written next, knows the best score.
                "checkpoint.save_on_train_epoch_end": False,
            }
        )
        parser.add_lightning_class_args(RunCheckpoint, "save")
        parser.add_argument(
            "--guard.max_skipped_steps",
            type=int,
            default=0,
            help="steps with a non-finite loss or gradient that are left out before the training stops",
        )
        # What model and data must agree on is stated once.
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments(("model", "data"), "data.init_args.masks", masks_to_read)
        parser.link_arguments(("model", "data"), "data.init_args.stuff_classes", stuff_classes_to_read)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments.

        Raises:
            ArgumentsError: they are refused; the message says which, and what to type instead.
        """
        try:
            super().parse_arguments(parser, args)
        except Refused as refusal:
            command, *arguments = args
            defaults = self.parsers[list(self.subcommands()).index(command)].get_defaults()
            message = explain_refusal(command, split_options(arguments), defaults.as_flat(), str(refusal))
            raise ArgumentsError(message) from refusal

        settings = self.config[self.config.subcommand]
        check_numbers(settings)
        for name, value in settings.items():  # of configs: arguments have been expanded before
            if isinstance(value, str) and value.startswith("~/"):
                settings[name] = os.path.expanduser(value)
        if self.config.subcommand == "fit" or settings["ckpt_path"] is None:  # or the checkpoint has them
            take_channels(settings)
        if settings["ckpt_path"] is not None:  # of a config: a folder among the arguments has been found before
            settings["ckpt_path"], message = find_ckpt_path(self.config.subcommand, settings["ckpt_path"])
            if message:
                rank_zero_only(say)(printable(message))

    def check_checkpoint(self, path: str) -> None:
        """Refuses what is no checkpoint of a run, or is corrupt.

        Raises:
            UserError: it is so.
        """
        task_record(read_contents(Path(path)), path)  # raises where it is no checkpoint of a run
        if Path(path).suffix == ".ckpt" and (reason := find_corruption(Path(path))) is not None:
            raise UserError(f"{path} is corrupt: {reason}")

    def before_instantiate_classes(self) -> None:
        """Checks the options that belong together, and finds the checkpoint to resume from."""
        config = self._config
        config["weights_only"] = True  # left open, Lightning trusts pickles that come from a URL
        if config["max_pixels"] is not None:
            if config["max_pixels"] < 1:
                raise UserError(f"max_pixels is {config['max_pixels']}; expected a number of pixels, such as 500000000")
            os.environ[MAX_PIXELS] = str(config["max_pixels"])  # for DataLoader workers and other processes as well
        if config["timeout"] is not None:
            os.environ[TIMEOUT] = str(config["timeout"])  # likewise
        timeout_seconds()  # raises
        check_loggers(config["log"])
        check_folders(config["trainer"])
        check_devices(config["trainer"])
        name, kept = config["checkpoint"]["filename"], config["checkpoint"]["save_top_k"]
        if kept not in (0, 1) and name is not None and "{" not in name:
            raise UserError(
                f"checkpoint.save_top_k is {kept}, but all would have the name {name}: put the epoch into "
                f"checkpoint.filename, as in '{name}-{{epoch}}'"
            )
        parent = Path(config["runs"]) / config["name"]
        if self.resume is None:  # which has its folder
            check_name(config["name"])
        if self.subcommand == "fit" and self.resume is None and config["ckpt_path"] is None:
            self.resume = find_requeued_run(parent, self.arguments)
        if self.resume is not None:
            self._find_checkpoint()
        weights = config["ckpt_path"] or (config["model"].get("init_args") or {}).get("weights")
        if self.subcommand == "predict":
            config["return_predictions"] = False  # they are written as they come
            if not weights:
                raise UserError(
                    "predict needs a trained model: --ckpt_path CHECKPOINT of a run, or --model.weights FILE"
                )
            state_classes(config, self.arguments[1:], self.scratch)
        elif self.subcommand != "fit" and not weights:
            untrained = f"{self.subcommand}: neither --ckpt_path nor --model.weights is given: the model is untrained"
            rank_zero_only(say)(untrained)

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; with a strategy that shards, blocks on the meta device first."""
        strategy = self._config["trainer"]["strategy"]
        sharded = f"{ShardedStrategy.__module__}.{ShardedStrategy.__name__}"
        if self.subcommand == "fit" and self._config["ckpt_path"] is None:
            parser = cast(TasksArgumentParser, self.parser)
            parser.builders = DetectorBuilder(self._config).builders
        with blocks_on_meta_device() if getattr(strategy, "class_path", None) == sharded else nullcontext():
            try:
                super().instantiate_classes()
            except ValueError as error:
                if find_user_error(error) is None and "Does not validate against" in str(error):
                    raise _unbuildable(str(error)) from error
                raise
        if self.subcommand == "fit" or self._config["ckpt_path"] is not None or not isinstance(self.model, BaseTask):
            return
        if self.subcommand == "predict":
            name_classes(self.model, task_data(self))
        self._check_head(self.model.fresh_head)

    def _check_head(self, fresh: str | None) -> None:
        """Refuses to evaluate or predict by chance.

        Raises:
            UserError: weights were loaded, but none for the head.
        """
        if fresh is not None:
            raise UserError(
                f"{self.subcommand}: the head is {fresh}, so all it says would be chance. If the file has a head, "
                "state its classes with data.class_names, or take its own dataset; else train one: swinv2-tasks fit."
            )

    def _find_checkpoint(self) -> None:
        """Takes the newest intact checkpoint of the run that is resumed."""
        assert self.resume is not None
        if (message := describe_finished(self.resume, self._config["trainer"])) is not None:
            raise NothingToDo(message)
        lock(self.resume)
        path, self.resumed_step, messages = newest_intact(self.resume)
        for message in [*messages, f"resuming {self.resume} at step {self.resumed_step} from {path}"]:
            rank_zero_only(say)(message)
        complete_save(path)
        self._config["ckpt_path"] = str(path)

    @property
    def _config(self) -> Any:
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the run's folder, loggers, checkpoints and records."""
        config = self._config
        # Model and data are built by now: most errors of the user are raised before there is a folder.
        self.folder = folder = self.resume or self._make_folder()
        os.environ[RUN_DIR] = str(folder)
        self._keep_class_list()

        if config["trainer"]["logger"] is not False:
            others = self.config_init[self.subcommand]["trainer"]["logger"]
            if others in (None, True):
                others = []
            others = others if isinstance(others, list) else [others]
            kwargs["logger"] = [*self._run_loggers(), *others, *build_loggers(config["log"], folder)]
        plugins = self.config_init[self.subcommand]["trainer"]["plugins"] or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]

        has_bar = any(isinstance(callback, ProgressBar) for callback in self._stated_callbacks())
        bar = config["trainer"]["enable_progress_bar"] is not False and not has_bar
        if not has_bar:
            kwargs["enable_progress_bar"] = False  # Lightning's

        try:
            trainer: Any = super().instantiate_trainer(default_root_dir=str(folder), **kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            reason, remedy = str(error).partition(". ")[0], ""
            if "more than one stateful" in reason:
                remedy = ": leave one out, or let it watch another metric (monitor)"
            raise UserError(f"the trainer cannot be set up so: {reason}{remedy}.") from error
        leave_signals_to_us(trainer)
        limit_collectives(trainer.strategy, collective_timeout())
        check_strategy(trainer, self.model)
        check_callbacks(trainer)

        for callback in trainer.callbacks:
            self._set_up_callback(callback)
        resumed_from = Path(config["ckpt_path"]) if self.resume else None
        record = RunRecord(folder, resumed_from, self.resumed_step, self.arguments)
        # The record says last of all that the run is finished: one that was killed before is resumed.
        trainer.callbacks += [FirstBatch(folder), LearningCurve(), record, Throughput(), LastValidation()]
        if self.write_report is not None and config["report"]:
            trainer.callbacks.append(RunReport(folder, self.write_report))
        trainer.callbacks.append(LoggedSamples(config["log_samples"]))
        if not has_bar:
            trainer.callbacks.append(Console(bar))
        trainer.callbacks.append(EvaluatedSamples(folder))
        # Checkpoints come after what others log at the end of an epoch, and the last one holds the state of the others.
        trainer.callbacks.sort(
            key=lambda callback: isinstance(callback, Checkpoint) + isinstance(callback, RunCheckpoint)
        )

        watch = ProcessWatch()
        (saving,) = (callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint))
        trainer.callbacks[:0] = [watch, StopInValidation(saving, watch)]

        self.model.run_name = config["name"]
        self.model.run_folder, self.model.output = folder, config["output"]
        self.model.max_skipped_steps = config["guard"]["max_skipped_steps"]
        return trainer

    def _make_folder(self) -> Path:
        """The folder that this run writes to: a new one in --runs, or what --output names.

        Raises:
            UserError: it cannot be made or written to, or is another run's.
        """
        config = self._config
        if self.subcommand == "fit" or config["output"] is None:
            return run_folder(Path(config["runs"]) / config["name"], str(self.subcommand))

        results = Path(config["output"])
        if self.subcommand == "predict":
            progress = results / PROGRESS  # out of the way: the results alone are to be seen
            folder = progress / "run"
            output = OutputFolder(results, progress)
            prove_writable([results, progress, folder])
            lock(folder)  # the one around it is the journal's, which locks it in a process that may be another
            self.output = output
            return folder

        if (other := command_of(results)) not in (None, self.subcommand):
            raise UserError(f"--output: {results} holds what {other} has written; name another folder")
        results = results.absolute()
        output = OutputFolder(results, results)
        open_folder(results, "--output")
        self.output = output
        return results

    def _keep_class_list(self) -> None:
        """Copies a class list that only this command has into its folder, so that its config can be used again."""
        data = self._config["data"].get("init_args") or {}
        names = data.get("class_names")
        if not isinstance(names, str) or Path(names).parent != self.scratch:
            return
        kept = self.folder / Path(names).name
        data["class_names"] = str(kept)
        rank_zero_only(replace_file)(kept, lambda file: shutil.copyfile(names, file))

    def _set_up_callback(self, callback: Any) -> None:
        """Gives a callback the run's folder."""
        checkpoints = self.folder.absolute() / "checkpoints"
        if isinstance(callback, ModelCheckpoint):
            if self.subcommand == "fit" and callback.monitor == SINGLE_LABEL_MONITOR and self._is_multi_label():
                callback.monitor = MULTI_LABEL_MONITOR
                if self._config["checkpoint"]["monitor"] == SINGLE_LABEL_MONITOR:  # for config.yaml
                    self._config["checkpoint"]["monitor"] = MULTI_LABEL_MONITOR
                rank_zero_only(say)(
                    f"checkpoint.monitor is {MULTI_LABEL_MONITOR}, as samples of several labels have no top-1"
                )
            if callback.dirpath is None:
                callback.dirpath = str(checkpoints)  # not in the config, which may start further runs
            elif self.subcommand == "fit":
                claim_folder(Path(callback.dirpath), self.folder)

        if isinstance(callback, RunCheckpoint):
            callback.folder = checkpoints
            config = self.folder / "config.yaml"
            allow = "".join(f" --allow {module}" for module in self.allowed)
            callback.resume_command = f"swinv2-tasks fit --config {command_word(config)} --resume{allow}"

    def _is_multi_label(self) -> bool:
        """Whether several classes may hold for a sample, as the model is told or else the data say."""
        stated = getattr(self.model, "multi_label", None)
        return bool(task_data(self).multi_label if stated is None else stated)

    def _stated_callbacks(self) -> list[Any]:
        """The callbacks that the config names."""
        stated = self.config_init[self.subcommand]["trainer"]["callbacks"] or []
        return stated if isinstance(stated, list) else [stated]

    def _run_loggers(self) -> list[Logger]:
        """What writes the run's metrics.csv and TensorBoard events."""
        resumed_step = None if self.resume is None else self.resumed_step
        return [MetricsLogger(self.folder, resumed_step), EventsLogger(self.folder, resumed_step)]

    @rank_zero_only
    def _remove_failed_start(self) -> None:
        """Removes the folder of a run that ended before its first training step or its evaluation was done."""
        if self.output is not None:
            self.output.remove_additions()
            unlock(self.folder)
            return

        folder, trainer = getattr(self, "folder", None), getattr(self, "trainer", None)
        early = trainer is None or trainer.global_step == 0  # so it is, too, where other processes have trained
        if folder is not None and early and self.resume is None and not holds_results(folder):
            shutil.rmtree(folder, ignore_errors=True)  # the error that ended the run is what matters
            with suppress(OSError):  # other runs are in them
                folder.parent.rmdir()
                folder.parent.parent.rmdir()

    def after_fit(self) -> None:
        """Ends as a signal asks for that came as the training was over."""
        stops.undefer()
        stops.obey()

    def after_validate(self) -> None:
        """Lets other processes write to the folder."""
        unlock(self.folder)

    def after_test(self) -> None:
        """Lets other processes write to the folder."""
        unlock(self.folder)

    def after_predict(self) -> None:
        """Sets the exit status: files that could not be predicted, which are listed by then, make it a failure."""
        unlock(self.folder)
        if self.trainer.is_global_zero:
            predictions = Path(self._config["output"] or self.folder / "predictions")
            self.status = int(bad_files(predictions) > 0)


def _unbuildable(message: str) -> UserError:
    """The error for an object that cannot be made of the settings that were parsed, by what the parser says then."""
    lines = [line.strip(" -") for line in message.splitlines() if re.match(r" *- ", line)]
    noise = ("Does not validate", "Expected a", "Not a valid", "a class path", "a dict")
    reasons = [line for line in lines if not line.startswith(noise)]
    reason = re.sub(r"<([\w.]+): .*?>", r"\1", reasons[0]).strip("()") if reasons else "a value of another type"
    named = re.findall(r"Given value: \[?Namespace\(class_path='([\w.]+)'", message)
    name = named[0].rpartition(".")[2] if named else "an object of the config"
    return UserError(f"{name} cannot be made of its settings ({reason}): state all of them, or leave it out.")


class ParseOnlyCLI(ParseOnly, TasksCLI):
    """The command line that only parses its arguments: ``config`` holds what they say."""


CLI = TypeVar("CLI", bound=TasksCLI)


def run(command: str, arguments: Sequence[str], write_report: Callable[[Path], None] | None = None) -> TasksCLI:
    """Runs fit, validate, test or predict with the command line's arguments.

    Args:
        command: which of them.
        arguments: the command line's arguments.
        write_report: writes the report of a run, given its folder; None: there will be none.

    Raises:
        UserError: for an error in configs, data or checkpoints.
    """
    return run_as(TasksCLI, command, arguments, write_report)


def run_as(
    cli: Callable[[list[str], Start], CLI],
    command: str,
    arguments: Sequence[str],
    write_report: Callable[[Path], None] | None = None,
) -> CLI:
    """As ``run``, with a command line of another class.

    Args:
        cli: the class, or what makes it of the command with its arguments, and of what is known before.
        command: fit, validate, test or predict.
        arguments: the command line's arguments.
        write_report: writes the report of a run, given its folder; None: there will be none.

    Raises:
        UserError: for an error in configs, data or checkpoints.
    """
    options, modules = take_allowed(split_options(arguments))
    options, resume = find_configs(name_positional(command, options)), None
    if command == "fit":
        options, resume = find_resumed_run(options)
    for config in values_of(options, "--config"):
        if (fault := explain_file(Path(config))) is not None:
            raise ArgumentsError(fault)
    check_names(options, modules)
    restrict_imports(modules)
    check_linked(options)
    options, notes = order_options(as_list(options, "--log"))
    options, taken = find_checkpoints(command, options)
    _prepare_messages()
    for message in taken:
        rank_zero_only(say)(printable(message))
    for note in notes:
        rank_zero_only(say)(f"note: {note}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch, restored_limit(), restored_timeout():
        if not name_model_and_data(options) and not any(option.is_help for option in options):
            options = [_config_of_checkpoint(command, options, Path(scratch)), *options]
        # Processes find in the working folder only what this one finds there, too.
        hidden = nullcontext() if {"", os.getcwd()} & {*sys.path} else without_working_folder()
        try:
            start = Start(resume, Path(scratch), modules, write_report)
            with hidden:
                return cli([command, *join_options(full_class_names(options))], start)
        except MisconfigurationException as error:  # Lightning's name for an error in the trainer's settings
            raise UserError(str(error)) from error
        except RuntimeError as error:
            if "conditioned on metric" not in str(error):  # as Lightning's EarlyStopping and schedulers say
                raise
            raise UserError(
                f"{str(error).splitlines()[0]} It is not there without a validation: raise trainer.limit_val_batches, "
                "or leave out what watches it"
            ) from error


def _config_of_checkpoint(command: str, options: Sequence[Option], folder: Path) -> Option:
    """Writes the config that the checkpoint of a command carries into a folder, and gives the option that names it.

    Raises:
        UserError: when no checkpoint is given, or the command is one that takes none.
    """
    checkpoints = values_of(options, "--ckpt_path")
    if command == "fit" or not checkpoints:
        overlays = values_of(options, "--config")
        alternative = "" if command == "fit" else ", or --ckpt_path CHECKPOINT, which brings its own"
        if overlays:
            alternative += f"; {', '.join(overlays)} is an overlay, which goes over the config of a task"
        raise UserError(f"{command} needs --config CONFIG{alternative}. {WHICH_CONFIGS}")
    config = folder / "config.yaml"
    root_is_stated = any(option_setting(option) == "data.root" for option in options)
    settings = config_from_checkpoint(checkpoints[0], predict=command == "predict", root_is_stated=root_is_stated)
    names = settings["data"]["init_args"].get("class_names")
    if isinstance(names, list):
        state_class_names(settings["data"], names, folder)
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    precision = settings["trainer"].get("precision", "32-true")
    if precision != "32-true" and not values_of(options, "--trainer.precision"):
        rank_zero_only(say)(f"precision: {precision}, as the checkpoint was trained (--trainer.precision changes it)")
    return new_option("--config", config)


def _prepare_messages() -> None:
    """Shows the warnings of this package, and hides of Lightning's what nobody can act on."""
    filter_warnings()
    quiet_lightning()
    show_warnings()

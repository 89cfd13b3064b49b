"""``swinv2-tasks sweep``: metric, speed and memory of a trained model of any task at many windows and image sizes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, get_type_hints

import yaml

from swinv2_tasks.backbone.swin_v2 import expand_window
from swinv2_tasks.batches import TaskData
from swinv2_tasks.callbacks.figures import save_figure
from swinv2_tasks.cli.arguments import find_checkpoints, join_options, split_options
from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as
from swinv2_tasks.commands.sweep.validation_process import Failure, Measurement, validate_in_child_process
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import Interrupted, UserError, name_signal
from swinv2_tasks.files import replace_file
from swinv2_tasks.inference.segmentation import Inference
from swinv2_tasks.outside_files import load_json, read_json
from swinv2_tasks.progress import WorkProgress, in_words
from swinv2_tasks.tables import TerminalTable, read_table, write_table
from swinv2_tasks.text import label, printable, say
from swinv2_tasks.training.run_folder import open_folder
from swinv2_tasks.weights.files import read_checkpoint

MAIN_METRICS = ("val/top1", "val/real_top1", "val/map", "val/miou", "val/box_ap", "val/loss")
"""The main metrics of tasks; the first one that was measured is shown when no metric was watched."""


class Setting(NamedTuple):
    """A window in tokens and an image size in pixels."""

    window: int
    size: int

    def __str__(self) -> str:
        return f"{self.window}@{self.size}"


Outcomes = dict[Setting, Measurement | Failure]
"""What came of each setting, in the order of the table's rows."""


def sweep(
    arguments: Sequence[str],
    settings: Sequence[tuple[int, int]],
    output: str | None = None,
) -> Outcomes:
    """Evaluates a trained model at windows and sizes, each in a child process, and writes a table and a figure.

    Settings that are in the output folder's sweep.csv already are not evaluated again, unless they failed.

    Args:
        arguments: those of ``validate`` that name the model and its data, such as ``["--ckpt_path", FILE]``.
        settings: windows in tokens and image sizes in pixels; of images that keep their proportions the short side.
        output: folder for sweep.csv, sweep.png, runs and their logs; default: ``sweep`` in the run's folder.

    Returns:
        The measurement or failure of each setting, in the order of ``settings``.

    Raises:
        UserError: there is a mistake in the arguments, the folder holds another sweep, or every setting failed.
    """
    wanted = check_settings(settings)
    options, taken = find_checkpoints("validate", split_options(arguments))  # once: a training may write a better one
    arguments = join_options(options)
    for message in taken:
        say(printable(message))
    model = read_arguments(arguments)
    overrides = {setting: model.arguments_at(setting) for setting in wanted}  # raises before anything is written

    folder = Path(output) if output is not None else model.folder
    table, figure = folder / "sweep.csv", folder / "sweep.png"
    outcomes = _open_sweep(folder, table, model)
    missing = [setting for setting in wanted if not isinstance(outcomes.get(setting), Measurement)]
    if len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} of {len(wanted)} settings are in {printable(table)} already")

    start = time.monotonic()
    left = len(missing)
    try:
        with WorkProgress("", len(missing), unit="settings") as progress:
            for index, setting in enumerate(missing):
                progress.title = str(setting)
                progress.update(index)
                outcome = validate_in_child_process(
                    [*arguments, *overrides[setting], f"--runs={folder / 'runs'}", f"--name={setting}"],
                    _make_folder(folder / "runs" / str(setting)) / "log.txt",
                    partial(_update_progress, progress, index),
                )

                outcomes.pop(setting, None)  # the row of an earlier failure, so that the new one comes last
                outcomes[setting] = outcome
                replace_file(table, lambda file: _write_table(file, outcomes))

                left -= 1
                line = _format_line(setting, outcome, model.metric)
                if left:
                    seconds = (time.monotonic() - start) / (index + 1) * left
                    line += f"  ({index + 1} of {len(missing)}, about {in_words(seconds)} left)"
                say(printable(line))
    except Interrupted as interrupted:
        raise Interrupted(
            f"stopped by {name_signal(interrupted.signal)}: {len(wanted) - left} of {len(wanted)} settings are in "
            f"{printable(table)}. The same command evaluates the others.",
            interrupted.signal,
        ) from interrupted
    finally:
        if any(isinstance(outcome, Measurement) for outcome in outcomes.values()):
            replace_file(figure, lambda file: draw(outcomes, model.metric, file))

    outcomes = {setting: outcomes[setting] for setting in wanted}
    _build_table(outcomes, model.metric).print()
    say(f"{printable(table)}, {printable(figure)}")
    _report_failures(outcomes, folder / "runs")
    return outcomes


def _report_failures(outcomes: Outcomes, runs: Path) -> None:
    """Prints which settings failed, and which samples the others were evaluated without.

    Raises:
        UserError: all settings failed.
    """
    failures = [f"{setting}: {outcome.reason}" for setting, outcome in outcomes.items() if isinstance(outcome, Failure)]
    if len(failures) == len(outcomes):
        raise UserError(
            f"none of {len(failures)} settings could be evaluated (logs: {printable(runs)}). {printable(failures[0])}"
        )

    for failure in failures:
        say(printable(f"failed: {failure}"))
    for name, reason in _left_out_samples(outcomes).items():
        say(printable(f"left out: {name}: {reason}"))


def _measurements(outcomes: Outcomes) -> dict[Setting, Measurement]:
    """The settings that did not fail."""
    return {setting: outcome for setting, outcome in outcomes.items() if isinstance(outcome, Measurement)}


def _left_out_samples(outcomes: Outcomes) -> dict[str, str]:
    """The samples that some settings were evaluated without: the reason for each, by its name."""
    reasons: dict[str, str] = {}
    for measurement in _measurements(outcomes).values():
        reasons |= measurement.left_out
    return reasons


def _update_progress(progress: WorkProgress, settings: int, batches: int, total_batches: int) -> None:
    """Sets how far the sweep is: a number of settings that are done, and the share of the running one."""
    progress.update(settings + batches / total_batches)


def sweep_grid(
    arguments: Sequence[str],
    windows: list[int] | None = None,
    sizes: list[int] | None = None,
    settings: list[str] | None = None,
    output: str | None = None,
) -> None:
    """Evaluates a trained model at many windows and image sizes: metric, speed and memory of each.

    As in: swinv2-tasks sweep --ckpt_path CKPT --windows 8 12 16 --sizes 256 384 512

    Args:
        arguments: those of ``validate`` that name the model and its data.
        windows: window sides in tokens; each is combined with each size.
        sizes: image sides in pixels; the short one where proportions are kept.
        settings: WINDOW@SIZE …, as in 8@256 16@512, instead of both.
        output: folder for sweep.csv and sweep.png; default: `sweep` in the run's folder.

    Raises:
        UserError: there is a mistake in the arguments, or some settings or samples could not be evaluated.
    """
    if settings is not None and (windows is not None or sizes is not None):
        raise UserError("--settings replaces --windows and --sizes: give either it or them")
    if settings is not None:
        wanted = [_parse_setting(text) for text in settings]
    elif not windows or not sizes:
        raise UserError(
            "sweep needs windows and sizes: --windows 8 12 16 --sizes 256 384 512, each with each, or single "
            "settings: --settings 8@256 16@512"
        )
    else:
        wanted = [Setting(window, size) for window in windows for size in sizes]

    outcomes = sweep(arguments, wanted, output)
    if left_out := _left_out_samples(outcomes):
        raise UserError(
            f"{len(left_out)} samples could not be read, for the reasons above: the scores do without them. "
            "Once they are mended, name another --output to evaluate again."
        )
    if failures := len(outcomes) - len(_measurements(outcomes)):
        raise UserError(
            f"{failures} of {len(outcomes)} settings could not be evaluated, for the reasons above; the same command "
            "evaluates them again."
        )


def _parse_setting(text: str) -> Setting:
    """The setting that ``16@512`` stands for."""
    if not re.fullmatch(r"\d+@\d+", text):
        raise UserError(f"--settings: {text!r} is no setting; expected WINDOW@SIZE, as in 16@512")
    window, size = map(int, text.split("@"))
    return Setting(window, size)


def check_settings(settings: Sequence[tuple[int, int]]) -> list[Setting]:
    """Checks windows and sizes.

    Returns:
        The settings in their order, each once.

    Raises:
        UserError: there are none, or a window or size is less than 1.
    """
    unique = [*dict.fromkeys(Setting(*setting) for setting in settings)]
    if not unique:
        raise UserError("there is no setting to evaluate at: name windows in tokens and sizes in pixels")
    if bad := [str(setting) for setting in unique if min(setting) < 1]:
        raise UserError(f"window@size {abbreviate(bad)}: windows are tokens, sizes pixels, both at least 1")
    return unique


# ---- the model


@dataclass(frozen=True)
class SweptModel:
    """A trained model and its data.

    Attributes:
        config: all settings of ``validate``, as plain values.
        weights: file or folder of the checkpoint or weights.
        metric: the metric that its training watched; None where that is not known.
        sets_faulty_samples: whether the arguments set what happens with samples that cannot be read.
    """

    config: dict[str, Any]
    weights: Path
    metric: str | None
    sets_faulty_samples: bool = False

    @property
    def folder(self) -> Path:
        """The default folder of results: in the run's folder; for foreign weights in a folder of the config's name."""
        if self.config["ckpt_path"] is None:
            return Path(self.config["runs"]) / self.config["name"] / "sweep"
        parent = self.weights.parent
        run = parent.parent if parent.name == "checkpoints" else parent
        return run / "sweep"

    @cached_property
    def record(self) -> dict[str, Any]:
        """All that results depend on: {checkpoint, sha256, settings by their dotted names}."""
        irrelevant = ("name", "runs", "output", "save", "checkpoint", "ckpt_path", "verbose")
        relevant = {name: value for name, value in self.config.items() if name not in irrelevant}
        settings = dict(_flatten(relevant))
        settings.pop("model.init_args.weights", None)  # what the checksum is of
        return {"checkpoint": str(self.weights), "sha256": _checksum(self.weights), "settings": settings}

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Differences to the record of an earlier sweep, as sentences."""
        now = self.record
        sentences = []
        if before["sha256"] != now["sha256"]:
            is_same_file = before["checkpoint"] == now["checkpoint"]
            sentences.append(f"the checkpoint {'has changed' if is_same_file else 'was ' + before['checkpoint']}")

        old, new = before["settings"], now["settings"]
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                sentences.append(f"{name} was {old.get(name)!r}, is {new.get(name)!r}")
        return sentences

    def arguments_at(self, setting: Setting) -> list[str]:
        """The arguments with which ``validate`` evaluates at a setting, on one device.

        Raises:
            UserError: the model has no window to set or larger patches than the images, or the data has no size to
                set.
        """
        model, data, trainer = self.config["model"], self.config["data"], self.config["trainer"]
        backbone = (model.get("init_args") or {}).get("backbone")
        if not backbone:
            raise UserError(f"{model['class_path']} has no argument `backbone`: there is no window to change")
        patch = max(_sides(backbone["init_args"].get("patch_size", 4))[-2:])
        if setting.size < patch:
            raise UserError(f"a size of {setting.size} pixels is less than a patch of the model, which has {patch}")

        size_setting, size = self._find_size()
        factor = setting.size / min(_sides(size))
        resized = setting.size if isinstance(size, int) else [int(side * factor + 0.5) for side in size]

        changes = {
            "model.init_args.backbone.init_args.window_size": spatial_window(backbone["init_args"], setting.window),
            f"data.init_args.{size_setting}": resized,
            "trainer.devices": trainer["devices"] if _names_one_device(trainer["devices"]) else 1,
            "trainer.num_nodes": 1,
            "trainer.strategy": "auto",
            "trainer.enable_progress_bar": False,
        }
        if "faulty_samples" in data["init_args"] and not self.sets_faulty_samples:
            # A bad file costs neither a setting nor the sweep; it is reported with each score.
            changes |= {"data.init_args.faulty_samples": "skip", "data.init_args.faulty_budget": 10**9}

        if get_type_hints(resolve_name(model["class_path"]).__init__).get("inference") is Inference:
            inference = Inference(**model["init_args"]["inference"])
            if inference.mode == "slide":
                rescaled = inference.rescale(factor, patch)
                changes["model.init_args.inference.crop_size"] = rescaled.crop_size
                changes["model.init_args.inference.stride"] = rescaled.stride

        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()}
        return [f"--{name}={text}" for name, text in texts.items()]

    def _find_size(self) -> tuple[str, int | list[int]]:
        """Name and value of the data's argument that is the size of images: a side in pixels, or several.

        Raises:
            UserError: there is no such argument, or it leaves images at their own sizes.
        """
        data = self.config["data"]
        datamodule = resolve_name(data["class_path"])
        name = datamodule.size_setting if issubclass(datamodule, TaskData) else None
        if name is None or name not in data["init_args"]:
            raise UserError(
                f"{data['class_path']} does not state by `size_setting` which of its arguments is the size of the "
                "images"
            )
        size = data["init_args"][name]
        if size is None:
            raise UserError(
                f"data.{name} is null, which leaves images at their own sizes: set by --data.{name} which proportions "
                "the sizes are to keep, as in --data.resize [2048,512]"
            )
        return name, size


def spatial_window(backbone: Mapping[str, Any], window: int) -> int | list[list[int]]:
    """A backbone's window with other sides in space; the side in time of a backbone over clips stays.

    Args:
        backbone: the backbone's arguments.
        window: height and width of the window, in tokens.

    Returns:
        The side of a window over images, or (T, H, W) of each stage's window over clips.
    """
    axes = len(_sides(backbone.get("patch_size", 4)))
    if axes == 2:
        return window

    stages = len(backbone.get("depths") or range(4))  # the size factories have no depths to set, and four stages
    windows = expand_window(backbone["window_size"], stages, axes)
    return [[time, window, window] for time, _, _ in windows]


def _sides(value: int | Sequence[int]) -> list[int]:
    """The sides of a square of one number, or the numbers themselves."""
    return [value, value] if isinstance(value, int) else [*value]


def _names_one_device(devices: Any) -> bool:
    """Whether trainer.devices names one device by its number."""
    return isinstance(devices, list) and len(devices) == 1


def read_arguments(arguments: Sequence[str]) -> SweptModel:
    """Reads the trained model and its data from arguments of ``validate``.

    Raises:
        UserError: there is a mistake in the arguments, or they name no trained model.
    """
    cli = run_as(ParseOnlyCLI, "validate", arguments)
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    config = config.get("validate", config)

    checkpoint = config["ckpt_path"]
    weights = checkpoint or (config["model"].get("init_args") or {}).get("weights")
    if weights is None:
        raise UserError("sweep needs a trained model: --ckpt_path CHECKPOINT of a run, or --model.weights FILE")
    if not Path(weights).exists():
        raise UserError(f"{weights} does not exist: there is nothing to evaluate")

    metric = config["checkpoint"]["monitor"]
    if metric is None and checkpoint:
        metric = _read_watched_metric(checkpoint)
    options = ("--data.faulty_samples", "--data.init_args.faulty_samples")
    sets_faulty_samples = any(option.name in options for option in split_options(arguments))
    return SweptModel(config, Path(weights), metric, sets_faulty_samples)


def _read_watched_metric(checkpoint: str) -> str | None:
    """The metric by which the training of a checkpoint chose its best one; None where there was none."""
    callbacks = read_checkpoint(checkpoint).contents.get("callbacks") or {}
    for name, state in callbacks.items():
        if name.startswith("ModelCheckpoint"):
            return state["monitor"]
    return None


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested settings as pairs of a dotted name and a value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _checksum(path: Path) -> str:
    """SHA-256 of the checksums of a file, or of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# ---- the folder of results


def _open_sweep(folder: Path, table: Path, model: SweptModel) -> Outcomes:
    """Claims the folder and reads the outcomes that are in its table already.

    Raises:
        UserError: the folder cannot be written, another process works in it, or it holds another sweep.
    """
    record = folder / "sweep.json"
    if not record.is_file() and not table.is_file():
        open_folder(folder, "--output")
        replace_file(record, lambda file: file.write_text(json.dumps(model.record, indent=2) + "\n"))
        return {}

    try:
        differences = model.differences(read_json(record))
        outcomes = _read_table(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{printable(folder)} holds no sweep that could be resumed ({error}): name another --output"
        ) from error
    if differences:
        raise UserError(
            f"{printable(folder)} holds a sweep of another checkpoint or with other arguments: "
            f"{abbreviate(differences, 3)}. Name another folder by --output, or remove this one."
        )
    open_folder(folder, "--output")
    return outcomes


def _make_folder(folder: Path) -> Path:
    """Makes a folder where it is missing.

    Returns:
        The folder.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {printable(folder)} (--output): {error.strerror}") from error
    return folder


_FIGURES = ("samples", "samples_per_second", "memory_mib", "device")
"""Attributes of a measurement that are columns of the table, beside its metrics."""


def _write_table(path: Path, outcomes: Outcomes) -> None:
    """Writes outcomes to a CSV file, a row per setting."""
    metrics = _metric_names(outcomes)
    columns = ["window", "size", *metrics, *_FIGURES, "left_out", "error"]
    rows: list[list[Any]] = [columns]
    for setting, outcome in outcomes.items():
        row: dict[str, Any] = setting._asdict()
        if isinstance(outcome, Failure):
            row["error"] = outcome.reason
        else:
            row |= outcome.metrics
            row |= {name: getattr(outcome, name) for name in _FIGURES}
            row["left_out"] = json.dumps(outcome.left_out) if outcome.left_out else ""
        rows.append([row.get(column) for column in columns])
    write_table(path, rows)


def _read_table(path: Path) -> Outcomes:
    """Reads the outcomes that ``_write_table`` wrote; none where there is no file.

    Raises:
        ValueError: a cell is not a number that should be one.
        KeyError: a column is missing.
    """
    outcomes: Outcomes = {}
    if not path.is_file():  # the sweep was stopped before its first setting was done
        return outcomes

    for row in read_table(path):
        setting = Setting(int(row["window"]), int(row["size"]))
        if row["error"]:
            outcomes[setting] = Failure(row["error"])
            continue
        outcomes[setting] = Measurement(
            metrics={name: float(cell) for name, cell in row.items() if name.startswith("val/") and cell},
            samples=row["samples"],
            samples_per_second=float(row["samples_per_second"]),
            memory_mib=float(row["memory_mib"]),
            device=row["device"],
            left_out=load_json(row.get("left_out") or "{}"),
        )
    return outcomes


# ---- what is printed and drawn


def _metric_names(outcomes: Outcomes) -> list[str]:
    """Names of the metrics of all outcomes, each once."""
    return [*dict.fromkeys(name for measurement in _measurements(outcomes).values() for name in measurement.metrics)]


def choose_metric(outcomes: Outcomes, watched: str | None) -> str:
    """Chooses the metric to show: the one that the training watched if it was measured, else the task's main one."""
    measured = _metric_names(outcomes)
    for name in (watched, *MAIN_METRICS, *measured):
        if name in measured:
            return name
    return watched or "metric"


def _format_cells(measurement: Measurement, metric: str) -> tuple[str, str, str]:
    """Metric, speed and memory as text."""
    value = measurement.metrics.get(metric)
    decimals = 0 if measurement.samples_per_second >= 100 else 1
    speed = f"{measurement.samples_per_second:,.{decimals}f} {measurement.samples}/s"
    return "" if value is None else f"{value:.4f}", speed, f"{measurement.memory_mib:,.0f} MiB"


def _format_line(setting: Setting, outcome: Measurement | Failure, watched: str | None) -> str:
    """The line that is printed as soon as a setting is done."""
    if isinstance(outcome, Failure):
        return f"{setting!s:10} failed: {outcome.reason}"

    metric = choose_metric({setting: outcome}, watched)
    value, speed, memory = _format_cells(outcome, metric)
    left_out = f"  without {abbreviate([*outcome.left_out])}, which cannot be read" if outcome.left_out else ""
    return f"{setting!s:10} {metric.removeprefix('val/')} {value}  {speed:>15}  {memory:>11}{left_out}"


def _build_table(outcomes: Outcomes, watched: str | None) -> TerminalTable:
    """Builds the table of all settings that is printed at the end."""
    metric = choose_metric(outcomes, watched)
    table = TerminalTable(title=_title(outcomes))
    for column in ("window", "size", metric.removeprefix("val/"), "speed", "memory"):
        table.add_column(column, justify="right")
    for setting, outcome in outcomes.items():
        cells = _format_cells(outcome, metric) if isinstance(outcome, Measurement) else ("failed", "", "")
        table.add_row(str(setting.window), str(setting.size), *cells)
    return table


def _title(outcomes: Outcomes) -> str:
    """Title of table and figure, which names the devices."""
    devices = {measurement.device for measurement in _measurements(outcomes).values()}
    return f"sweep on {', '.join(sorted(devices))}" if devices else "sweep"


def draw(outcomes: Outcomes, watched: str | None, path: Path) -> None:
    """Plots metric, speed and memory over the image size, a line per window.

    Args:
        outcomes: of each setting, at least one of them a measurement; failures are left out.
        watched: the metric; where it was not measured, the task's main one.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # slow to import, needed once

    points = dict(sorted(_measurements(outcomes).items()))
    windows = sorted({setting.window for setting in points})
    sizes = sorted({setting.size for setting in points})

    metric = choose_metric(outcomes, watched)
    metric_label = metric.removeprefix("val/")
    samples = next(iter(points.values())).samples
    panels = {
        metric_label: lambda measurement: measurement.metrics.get(metric, float("nan")),
        f"{samples} per second": lambda measurement: measurement.samples_per_second,
        "peak memory (MiB)": lambda measurement: measurement.memory_mib,
    }

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (text, value_of) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        values = {setting: value_of(measurement) for setting, measurement in points.items()}

        if len(windows) == len(points):  # a window has one point and no line: a gray one joins the points of all
            by_size = sorted(points, key=lambda setting: setting.size)
            axes.plot(
                [setting.size for setting in by_size],
                [values[setting] for setting in by_size],
                color="0.7",
                zorder=1,
            )
        for window in windows:
            line = {setting.size: value for setting, value in values.items() if setting.window == window}
            axes.plot([*line], [*line.values()], marker="o", label=f"window {window}")

        axes.set(xlabel="image size (pixels)", ylabel=label(text), xticks=sizes)
        axes.tick_params(axis="x", rotation=45 if len(sizes) > 6 else 0)
        axes.grid(alpha=0.3)
        if text != metric_label:
            axes.set_ylim(0, 1.1 * max(values.values()))

    figure.axes[0].legend()
    figure.suptitle(label(_title(outcomes), 120), fontsize="medium")
    save_figure(figure, path)

"""``swinv2-tasks sweep``: a trained model of any task at many windows and sizes: its metric, its speed, its memory."""

from __future__ import annotations

import csv
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
from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from swinv2_tasks.backbone.swin_v2 import expand_window
from swinv2_tasks.batches import TaskData
from swinv2_tasks.cli.arguments import split_options
from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as
from swinv2_tasks.commands.progress import in_words
from swinv2_tasks.commands.sweep.validation_process import Failed, Measured, validate_apart
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import Interrupted, UserError, printable
from swinv2_tasks.files import replace_file
from swinv2_tasks.inference.segmentation import Inference
from swinv2_tasks.training.run_folder import open_folder
from swinv2_tasks.weights.files import read_checkpoint

MAIN_METRICS = ("val/top1", "val/real_top1", "val/miou", "val/box_ap", "val/loss")
"""What a task is judged by where nothing else is known."""


class Setting(NamedTuple):
    """A window in tokens and an image size in pixels."""

    window: int
    size: int

    def __str__(self) -> str:
        return f"{self.window}@{self.size}"


Outcomes = dict[Setting, Measured | Failed]


def sweep(
    arguments: Sequence[str],
    settings: Sequence[tuple[int, int]],
    output: str | None = None,
) -> Outcomes:
    """Evaluates a trained model at windows and sizes, each in a process of its own, and writes a table and a plot.

    Settings that are in the output folder's sweep.csv already are not evaluated again, unless they failed.

    Args:
        arguments: what says the model and its data, as ``validate`` takes it: ``["--ckpt_path", FILE]``, say.
        settings: windows in tokens and sizes in pixels; of images that keep their proportions the short side.
        output: folder for sweep.csv, sweep.png, runs and their logs; default: ``sweep`` in the run's folder.

    Returns:
        What came of each setting, in their order.

    Raises:
        UserError: for a mistake in the arguments, a folder that holds another sweep, or when every setting failed.
    """
    wanted = checked_settings(settings)
    swept = read_arguments(arguments)
    overrides = {setting: swept.at(setting) for setting in wanted}  # complains
    folder = Path(output) if output is not None else swept.folder
    table = folder / "sweep.csv"
    found = _begin(folder, table, swept)
    missing = [setting for setting in wanted if not isinstance(found.get(setting), Measured)]
    console = Console()
    if len(missing) < len(wanted):
        _show(console, f"{len(wanted) - len(missing)} of {len(wanted)} settings are in {table} already")
    start, left = time.monotonic(), len(missing)
    try:
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=len(missing))
            for number, setting in enumerate(missing):
                progress.update(bar, completed=number, description=str(setting))
                outcome = validate_apart(
                    [*arguments, *overrides[setting], f"--runs={folder / 'runs'}", f"--name={setting}"],
                    _made(folder / "runs" / str(setting)) / "log.txt",
                    partial(_advance, progress, bar, number),
                )
                found.pop(setting, None)
                found[setting] = outcome
                replace_file(table, lambda file: _write(file, found))
                left -= 1
                seconds = (time.monotonic() - start) / (number + 1) * left
                rest = f"  ({number + 1} of {len(missing)}, about {in_words(seconds)} left)" if left else ""
                _show(console, _line(setting, outcome, swept.metric) + rest)
    except (KeyboardInterrupt, Interrupted):
        _show(
            Console(stderr=True),
            f"stopped: {len(wanted) - left} of {len(wanted)} settings are in {table}. "
            "The same command goes on with the others.",
        )
        raise
    finally:
        if any(isinstance(outcome, Measured) for outcome in found.values()):
            replace_file(folder / "sweep.png", lambda file: draw(found, swept.metric, file))
    outcomes = {setting: found[setting] for setting in wanted}
    console.print(_table(outcomes, swept.metric))
    _show(console, f"{table}, {folder / 'sweep.png'}")
    failures = [f"{setting}: {one.reason}" for setting, one in outcomes.items() if isinstance(one, Failed)]
    if len(failures) == len(outcomes):
        raise UserError(
            f"none of {len(failures)} settings could be evaluated (logs: {printable(folder / 'runs')}). "
            f"{printable(failures[0])}"
        )
    for failure in failures:
        _show(console, f"failed: {failure}")
    for name, reason in _left_out(outcomes).items():
        _show(console, f"left out: {name}: {reason}")
    return outcomes


def _left_out(outcomes: Outcomes) -> dict[str, str]:
    """The samples that some settings were evaluated without, and why."""
    measured = [one for one in outcomes.values() if isinstance(one, Measured)]
    return {name: reason for one in measured for name, reason in one.left_out.items()}


def _show(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _advance(progress: Progress, bar: TaskID, number: int, done: int, of: int) -> None:
    progress.update(bar, completed=number + done / of)


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
        arguments: what says the model and its data, as ``validate`` takes it.
        windows: window sides in tokens; each is combined with each size.
        sizes: image sides in pixels; the short one where proportions are kept.
        settings: WINDOW@SIZE …, as in 8@256 16@512, instead of both.
        output: folder for sweep.csv and sweep.png; default: `sweep` in the run's folder.

    Raises:
        UserError: for a mistake in the arguments, or when some settings or samples could not be evaluated.
    """
    if settings is not None and (windows is not None or sizes is not None):
        raise UserError("--settings takes the place of --windows and --sizes: give either it or them")
    if settings is not None:
        wanted = [_parsed(text) for text in settings]
    elif not windows or not sizes:
        raise UserError(
            "sweep needs windows and sizes: --windows 8 12 16 --sizes 256 384 512, each with each, or single "
            "settings: --settings 8@256 16@512"
        )
    else:
        wanted = [Setting(window, size) for window in windows for size in sizes]
    outcomes = sweep(arguments, wanted, output)
    if left_out := _left_out(outcomes):
        raise UserError(
            f"{len(left_out)} samples could not be read, for the reasons above: the scores do without them. "
            "Once they are mended, name another --output to evaluate anew."
        )
    if failed := sum(isinstance(outcome, Failed) for outcome in outcomes.values()):
        raise UserError(
            f"{failed} of {len(outcomes)} settings could not be evaluated, for the reasons above; the same command "
            "evaluates them again."
        )


def _parsed(text: str) -> Setting:
    if not re.fullmatch(r"\d+@\d+", text):
        raise UserError(f"--settings: {text!r} is no setting; expected WINDOW@SIZE, as in 16@512")
    window, size = map(int, text.split("@"))
    return Setting(window, size)


def checked_settings(settings: Sequence[tuple[int, int]]) -> list[Setting]:
    """The settings, each once.

    Raises:
        UserError: there are none, or a window or size is less than 1.
    """
    found = [*dict.fromkeys(Setting(*setting) for setting in settings)]
    if not found:
        raise UserError("there is no setting to evaluate at: name windows in tokens and sizes in pixels")
    if bad := [str(setting) for setting in found if min(setting) < 1]:
        raise UserError(f"window@size {abbreviate(bad)}: windows are tokens, sizes pixels, both at least 1")
    return found


# ---- what is swept


@dataclass(frozen=True)
class Swept:
    """A trained model and its data.

    Attributes:
        config: all settings of ``validate``, as plain values.
        weights: the checkpoint or weights.
        metric: the metric that its training watched, None where that is not known.
        chooses_faults: whether the arguments say what happens on samples that cannot be read.
    """

    config: dict[str, Any]
    weights: Path
    metric: str | None
    chooses_faults: bool = False

    @property
    def folder(self) -> Path:
        """Where results go by default: the run's folder; of weights of other origin a folder of the config's name."""
        if self.config["ckpt_path"] is None:
            return Path(self.config["runs"]) / self.config["name"] / "sweep"
        parent = self.weights.parent
        return (parent.parent if parent.name == "checkpoints" else parent) / "sweep"

    @cached_property
    def record(self) -> dict[str, Any]:
        """All that results depend on: {checkpoint, sha256, settings by their names}."""
        apart = ("name", "runs", "output", "save", "checkpoint", "ckpt_path", "verbose")
        settings = dict(_flat({name: value for name, value in self.config.items() if name not in apart}))
        settings.pop("model.init_args.weights", None)
        return {"checkpoint": str(self.weights), "sha256": _digest(self.weights), "settings": settings}

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """How this differs from what an earlier sweep wrote down, in words."""
        now, told = self.record, []
        if before["sha256"] != now["sha256"]:
            path = before["checkpoint"]
            told.append(f"the checkpoint {'has changed' if path == now['checkpoint'] else f'was {path}'}")
        old, new = before["settings"], now["settings"]
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return [*told, *(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in changed)]

    def at(self, setting: Setting) -> list[str]:
        """The arguments that make ``validate`` evaluate at a setting, on one device.

        Raises:
            UserError: the model cannot have such a window, or the data no such size.
        """
        model, data, trainer = self.config["model"], self.config["data"], self.config["trainer"]
        backbone = (model.get("init_args") or {}).get("backbone")
        if not backbone:
            raise UserError(f"{model['class_path']} has no argument `backbone`: there is no window to change")
        patch = _sides(backbone["init_args"].get("patch_size", 4))[-2:]
        if setting.size < max(patch):
            raise UserError(
                f"a size of {setting.size} pixels is less than a patch of the model, which has {max(patch)}"
            )
        datamodule = resolve_name(data["class_path"])
        name = datamodule.size_setting if issubclass(datamodule, TaskData) else None
        if name is None or name not in data["init_args"]:
            raise UserError(
                f"{data['class_path']} does not say by `size_setting` which of its arguments is the size of the images"
            )
        now = data["init_args"][name]
        if now is None:
            raise UserError(
                f"data.{name} is null, which leaves images at their own sizes: say by --data.{name} which proportions "
                "the sizes are to keep, as in --data.resize [2048,512]"
            )
        factor = setting.size / min(_sides(now))
        resized = setting.size if isinstance(now, int) else [int(side * factor + 0.5) for side in now]
        changes = {
            "model.init_args.backbone.init_args.window_size": window_in_space(backbone["init_args"], setting.window),
            f"data.init_args.{name}": resized,
            "trainer.devices": trainer["devices"] if _is_one(trainer["devices"]) else 1,
            "trainer.num_nodes": 1,
            "trainer.strategy": "auto",
            "trainer.enable_progress_bar": False,
        }
        if "faulty_samples" in data["init_args"] and not self.chooses_faults:
            # A bad file costs neither a setting nor the sweep; it is told with each score.
            changes |= {"data.init_args.faulty_samples": "skip", "data.init_args.faulty_budget": 10**9}
        if get_type_hints(resolve_name(model["class_path"]).__init__).get("inference") is Inference:
            inference = Inference(**model["init_args"]["inference"])
            grown = inference.rescale(factor, max(patch))
            names = ("crop_size", "stride") if inference.mode == "slide" else ()
            changes |= {f"model.init_args.inference.{name}": getattr(grown, name) for name in names}
        return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]


def window_in_space(backbone: Mapping[str, Any], window: int) -> int | list[list[int]]:
    """The window of a backbone with these arguments that has other sides in space; over clips, time stays as it is."""
    axes = len(_sides(backbone.get("patch_size", 4)))
    if axes == 2:
        return window
    stages = len(backbone.get("depths") or range(4))  # the size factories have no depths to set, and four stages
    return [[time, window, window] for time, _, _ in expand_window(backbone["window_size"], stages, axes)]


def _sides(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value]


def _is_one(devices: Any) -> bool:
    """Whether trainer.devices names one device by its number."""
    return isinstance(devices, list) and len(devices) == 1


def read_arguments(arguments: Sequence[str]) -> Swept:
    """What arguments of ``validate`` say.

    Raises:
        UserError: for a mistake in them, or when they name no trained model.
    """
    cli = run_as(ParseOnlyCLI, "validate", arguments)
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    config = config.get("validate", config)
    checkpoint, weights = config["ckpt_path"], (config["model"].get("init_args") or {}).get("weights")
    model = checkpoint or weights
    if model is None:
        raise UserError("sweep needs a trained model: --ckpt_path CHECKPOINT of a run, or --model.weights FILE")
    if not Path(model).exists():
        raise UserError(f"{model} does not exist: there is nothing to evaluate")
    metric = config["checkpoint"]["monitor"]
    if metric is None and checkpoint:
        callbacks = read_checkpoint(checkpoint).contents.get("callbacks") or {}
        metric = next(
            (state["monitor"] for name, state in callbacks.items() if name.startswith("ModelCheckpoint")), None
        )
    faults = ("--data.faulty_samples", "--data.init_args.faulty_samples")
    chooses_faults = any(option.name in faults for option in split_options(arguments))
    return Swept(config, Path(model), metric, chooses_faults)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of a dotted name and a value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _digest(path: Path) -> str:
    """A checksum of a file, or of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# ---- the folder of results


def _begin(folder: Path, table: Path, swept: Swept) -> Outcomes:
    """Claims the folder and reads what is there already.

    Raises:
        UserError: it cannot be written, another process works in it, or what is there is of another sweep.
    """
    record = folder / "sweep.json"
    if record.is_file() or table.is_file():
        try:
            told, found = swept.differences(json.loads(record.read_text())), _read(table)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{printable(folder)} holds no sweep that could be gone on with ({error}): name another --output"
            ) from error
        if told:
            raise UserError(
                f"{printable(folder)} holds a sweep of another checkpoint or with other arguments: "
                f"{abbreviate(told, 3)}. Name another folder by --output, or remove this one."
            )
        open_folder(folder, "--output")
        return found
    open_folder(folder, "--output")
    replace_file(record, lambda file: file.write_text(json.dumps(swept.record, indent=2) + "\n"))
    return {}


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {printable(folder)} (--output): {error.strerror}") from error
    return folder


_MEASURES = ("samples", "samples_per_second", "memory_mib", "device")


def _write(path: Path, outcomes: Outcomes) -> None:
    measured = [one for one in outcomes.values() if isinstance(one, Measured)]
    metrics = [*dict.fromkeys(name for one in measured for name in one.metrics)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["window", "size", *metrics, *_MEASURES, "left_out", "error"])
        writer.writeheader()
        for setting, one in outcomes.items():
            row: dict[str, Any] = setting._asdict()
            if isinstance(one, Failed):
                row["error"] = one.reason
            else:
                row |= {**one.metrics, **{name: getattr(one, name) for name in _MEASURES}}
                row["left_out"] = json.dumps(one.left_out) if one.left_out else ""
            writer.writerow(row)


def _read(path: Path) -> Outcomes:
    outcomes: Outcomes = {}
    if not path.is_file():  # the first setting was never done
        return outcomes
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            setting = Setting(int(row["window"]), int(row["size"]))
            if row["error"]:
                outcomes[setting] = Failed(row["error"])
                continue
            metrics = {name: float(cell) for name, cell in row.items() if name.startswith("val/") and cell}
            speed, memory = float(row["samples_per_second"]), float(row["memory_mib"])
            left_out = json.loads(row.get("left_out") or "{}")
            outcomes[setting] = Measured(metrics, row["samples"], speed, memory, row["device"], left_out)
    return outcomes


# ---- what is shown


def shown_metric(outcomes: Outcomes, watched: str | None) -> str:
    """The metric that is shown: the one that the training watched if it was measured, else the task's main one."""
    measured = dict.fromkeys(name for one in outcomes.values() if isinstance(one, Measured) for name in one.metrics)
    return next((name for name in (watched, *MAIN_METRICS, *measured) if name in measured), watched or "metric")


def _cells(one: Measured, metric: str) -> tuple[str, str, str]:
    value = one.metrics.get(metric)
    speed = f"{one.samples_per_second:,.{0 if one.samples_per_second >= 100 else 1}f} {one.samples}/s"
    return "" if value is None else f"{value:.4f}", speed, f"{one.memory_mib:,.0f} MiB"


def _line(setting: Setting, outcome: Measured | Failed, watched: str | None) -> str:
    if isinstance(outcome, Failed):
        return f"{setting!s:10} failed: {outcome.reason}"
    metric = shown_metric({setting: outcome}, watched)
    value, speed, memory = _cells(outcome, metric)
    left_out = f"  without {abbreviate([*outcome.left_out])}, which cannot be read" if outcome.left_out else ""
    return f"{setting!s:10} {metric.removeprefix('val/')} {value}  {speed:>15}  {memory:>11}{left_out}"


def _table(outcomes: Outcomes, watched: str | None) -> Table:
    metric = shown_metric(outcomes, watched)
    devices = {one.device for one in outcomes.values() if isinstance(one, Measured)}
    table = Table(title=f"sweep on {', '.join(sorted(devices))}" if devices else "sweep")
    for column in ("window", "size", metric.removeprefix("val/"), "speed", "memory"):
        table.add_column(column, justify="right")
    for setting, one in outcomes.items():
        cells = _cells(one, metric) if isinstance(one, Measured) else ("failed", "", "")
        table.add_row(str(setting.window), str(setting.size), *cells)
    return table


def draw(outcomes: Outcomes, watched: str | None, picture: Path) -> None:
    """Plots metric, speed and memory over the size, a line per window.

    Args:
        outcomes: what came of each setting; those that failed are left out.
        watched: the metric; where it was not measured, the task's main one.
        picture: PNG file to write.
    """
    from matplotlib.figure import Figure  # slow to import, needed once

    metric = shown_metric(outcomes, watched)
    points = {setting: one for setting, one in sorted(outcomes.items()) if isinstance(one, Measured)}
    samples = next(iter(points.values())).samples
    panels = {
        metric.removeprefix("val/"): lambda one: one.metrics.get(metric, float("nan")),
        f"{samples} per second": lambda one: one.samples_per_second,
        "peak memory (MiB)": lambda one: one.memory_mib,
    }
    windows, sizes = (sorted(set(values)) for values in zip(*points, strict=True))
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (label, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        if len(windows) == len(points):  # each window at a size of its own
            by_size = sorted(points, key=lambda setting: setting.size)
            axes.plot([s.size for s in by_size], [value(points[s]) for s in by_size], color="0.7", zorder=1)
        for window in windows:
            line = {setting.size: value(one) for setting, one in points.items() if setting.window == window}
            axes.plot([*line], [*line.values()], marker="o", label=f"window {window}")
        axes.set(xlabel="image size (pixels)", ylabel=label, xticks=sizes)
        axes.tick_params(axis="x", rotation=45 if len(sizes) > 6 else 0)
        axes.grid(alpha=0.3)
        if label != metric.removeprefix("val/"):
            axes.set_ylim(0, 1.1 * max(map(value, points.values())))
    figure.axes[0].legend()
    figure.suptitle(f"sweep on {', '.join(sorted({one.device for one in points.values()}))}", fontsize="medium")
    figure.savefig(picture, dpi=100, format="png")

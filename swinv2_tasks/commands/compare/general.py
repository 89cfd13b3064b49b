"""What is compared of runs of all tasks: scores, settings, learning curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from swinv2_tasks.commands.report.blocks import Chart, Column, Section, Table
from swinv2_tasks.commands.report.charts import draw
from swinv2_tasks.commands.report.general import Points
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.text import label, printable

MOST_CURVES = 12
"""Charts of metrics, the watched ones first."""

OWN = ("name", "runs", "output", "ckpt_path", "report")
"""Settings that say where a run writes, and not what it does."""


def scores_section(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """The scores of each run, at its best epoch, and what it cost."""
    values = [_values_of(run) for run in runs]
    rows: list[list[float | str | None]] = [
        [name, *(of_run.get(name) for of_run in values)] for name in dict.fromkeys(name for of in values for name in of)
    ]
    columns = [Column("score"), *(Column(name, digits=4) for name in names)]
    note = "Of trainings the best epoch, of evaluations the evaluation."
    return Section("Scores", [Table("", columns, rows)], note)


def _values_of(run: Run) -> dict[str, float]:
    summary = run.summary
    metrics = summary.get("last_metrics" if run.split else "best_metrics") or {}
    values = {
        name: value for name, value in metrics.items() if name.startswith(("val/", "test/")) and value is not None
    }
    if run.monitor in values:
        values = {run.monitor: values[run.monitor], **values}
    for name in ("epochs", "steps", "samples_per_second", "wall_seconds"):
        if isinstance(summary.get(name), int | float):
            values[name.replace("_", " ")] = summary[name]
    model = summary.get("model") or {}
    return {**values, **{name: model[name] for name in ("parameters", "macs") if model.get(name) is not None}}


# ---- settings


def settings_section(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """The settings in which configs differ."""
    flat = [dict(flatten(run.config)) for run in runs]
    every = dict.fromkeys(name for settings in flat for name in settings)
    rows: list[list[float | str | None]] = []
    for name in every:
        values = [settings.get(name, "not set") for settings in flat]
        if name.partition(".")[0] not in OWN and any(value != values[0] for value in values):
            rows.append([name, *values])
    note = "" if rows else "Their configs are the same."
    return Section("Settings that differ", [Table("", [Column("setting"), *map(Column, names)], rows)], note)


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their names, as options have them, and their values as text."""
    if isinstance(settings, Mapping) and settings:
        for name, value in settings.items():
            yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(settings, list) and any(isinstance(value, Mapping) for value in settings):
        for number, value in enumerate(settings):
            yield from flatten(value, f"{prefix}[{number}]")
    else:
        text = "null" if settings is None else str(settings).lower() if isinstance(settings, bool) else str(settings)
        yield prefix.replace(".init_args", "").removesuffix(".class_path"), text


# ---- curves


def curves_section(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    """Each metric of the runs over each other; None where none was trained."""
    trained = [(run, name) for run, name in zip(runs, names, strict=True) if run.split is None]
    metrics = dict.fromkeys(metric for run, _ in trained for metric in run.metric_names)
    watched = {run.monitor for run, _ in trained}
    first = [name for name in metrics if name in watched]
    losses = [name for name in ("train/loss", "val/loss") if name in metrics and name not in first]
    others = [name for name in metrics if name not in (*first, *losses)]
    charts: list[Chart] = []
    for metric in [*first, *losses, *others]:
        curves = {name: points for run, name in trained if (points := run.points(metric))}
        if curves and len(charts) < MOST_CURVES:
            text = "; ".join(f"{printable(name)} ends at {points[-1][1]:.4g}" for name, points in curves.items())
            charts.append(Chart(metric, draw(partial(_plot, curves)), text))
    more = len(metrics) - len(charts)
    note = f"{more} more metrics are in the runs' metrics.csv." if more > 0 else ""
    return Section("Learning curves", charts, note) if charts else None


def _plot(curves: Mapping[str, Points], panels: Sequence[Any]) -> None:
    (axes,) = panels
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=label(name), marker="." if len(steps) < 30 else None, linewidth=1.4)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)

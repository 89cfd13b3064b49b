"""What the reports of all tasks say: the result, the learning curves, and what ran on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from swinv2_tasks.commands.report.blocks import Block, Chart, Column, Details, Number, Numbers, Section, Table
from swinv2_tasks.commands.report.charts import INK, draw
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.progress import count_words, in_words
from swinv2_tasks.text import command_word, label, printable

Points = list[tuple[float, float]]
"""Steps, and a value at each."""

MOST_METRICS = 6
"""Curves in the chart of metrics."""


# ---- the result


def result_section(run: Run) -> Section:
    """The scores of an evaluation, or of a training's best epoch, and what it took."""
    blocks: list[Block] = [Numbers("", [*_scores(run), *_costs(run)])]
    if events := run.summary.get("events"):
        rows = [[name, number] for name, number in events.items()]
        blocks.append(Table("Events", [Column("event"), Column("times")], rows, "Details are in events.jsonl."))
    if skipped := run.summary.get("skipped_samples"):
        rows = [[name, reason] for name, reason in skipped.items()]
        blocks.append(Table("Samples left out", [Column("sample"), Column("reason")], rows))
    return Section("Result", blocks, _describe_end(run))


def _describe_end(run: Run) -> str:
    """How the run ended, and which epoch is best, in words."""
    status = str(run.summary.get("status", "without summary.json, as of a run that has not ended, or was killed"))
    if run.split is not None:
        checkpoint = run.summary.get("checkpoint")
        return f"{run.split} of {checkpoint}" if checkpoint else f"{run.split}: {status}"
    parts = [status]
    if "epochs" in run.summary:
        parts.append(f"{count_words(run.summary['epochs'], 'epoch')}, {count_words(run.summary['steps'], 'step')}")
    monitor, best = run.monitor, run.summary.get("best_metrics") or {}
    if monitor in best and best.get("epoch") is not None:
        parts.append(f"{monitor} was best in epoch {int(best['epoch']) + 1}, whose scores these are")
    return "; ".join(parts) + "."


def _scores(run: Run) -> list[Number]:
    """The scores that were logged, the watched one first."""
    values = run.summary.get("last_metrics" if run.split else "best_metrics") or {}
    names = [name for name in values if name.partition("/")[0] in ("val", "test")]
    names.sort(key=lambda name: name != run.monitor)
    return [Number(name, values[name], "watched" if name == run.monitor else "") for name in names]


def _costs(run: Run) -> list[Number]:
    """Time, speed, memory, and what an image costs."""
    summary, model = run.summary, run.summary.get("model") or {}
    numbers = []
    if (seconds := summary.get("wall_seconds")) is not None:
        numbers.append(Number("time", in_words(seconds)))
    if (speed := summary.get("samples_per_second")) is not None:
        numbers.append(Number("samples per second", speed, "training" if run.split is None else run.split))
    memory = summary.get("peak_memory_mib") or {}
    for name, what in (("gpu", "on the GPU"), ("main_process", "main process")):
        if memory.get(name):
            numbers.append(Number("peak memory", f"{memory[name] / 1024:.2f} GiB", what))
    if (parameters := model.get("parameters")) is not None:
        trained = model.get("trained_parameters")
        note = f"{trained:,} trained" if trained not in (None, parameters) else ""
        numbers.append(Number("parameters", parameters, note))
    if model.get("macs") is not None:
        size = "×".join(map(str, model.get("input_size") or []))
        numbers.append(Number("MACs of the backbone", _in_units(model["macs"]), f"for {size} pixels"))
    return numbers


def _in_units(number: float) -> str:
    unit, name = (1e9, "G") if number >= 1e9 else (1e6, "M")
    return f"{number / unit:.4g} {name}"


# ---- learning curves


def curves_section(run: Run) -> Section | None:
    """How the metrics and losses went; None of an evaluation, or where nothing was logged."""
    columns = {name: points for name in run.metric_names if len(points := run.points(name)) > 0}
    if run.split is not None or not columns:
        return None
    losses = [name for name in columns if name.endswith("loss")]
    scores = [name for name in columns if name.startswith(("val/", "test/")) and name not in losses]
    scores = [name for name in scores if max(value for _, value in columns[name]) >= 0]  # COCO's −1 stands for nothing
    scores.sort(key=lambda name: name != run.monitor)
    panels = {
        "Metrics": scores[:MOST_METRICS],
        "Loss": sorted(losses, key=lambda name: name not in ("train/loss", "val/loss"))[:MOST_METRICS],
        "Learning rate": [name for name in columns if name == "lr"],
        "Gradient norm, before clipping": [name for name in columns if name == "grad_norm"],
        "Images per second": [name for name in columns if name == "img/s"],
    }
    charts = [
        Chart(
            title,
            draw(partial(_plot, {name: columns[name] for name in names}, run.best_step)),
            _in_words(names, columns),
        )
        for title, names in panels.items()
        if names
    ]
    more = len(scores) - MOST_METRICS
    note = "The dashed line is the best epoch." if run.best_step is not None else ""
    if more > 0:
        note += f" {more} more metrics are in metrics.csv."
    return Section("Learning curves", charts, note.strip())


def _plot(columns: Mapping[str, Points], best_step: float | None, panels: Sequence[Any]) -> None:
    (axes,) = panels
    for name, points in columns.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=label(name), marker="." if len(steps) < 30 else None, linewidth=1.4)
    if best_step is not None:
        axes.axvline(best_step, color=INK, linestyle="--", linewidth=0.8, alpha=0.6)
    if "grad_norm" in columns and min(value for _, value in columns["grad_norm"]) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if len(columns) > 1:
        axes.legend(fontsize=8)


def _in_words(names: Sequence[str], columns: Mapping[str, Points]) -> str:
    """What a chart of curves shows: where each begins and ends."""
    return "; ".join(
        f"{printable(name)} from {columns[name][0][1]:.4g} to {columns[name][-1][1]:.4g}" for name in names
    )


# ---- what ran


def run_section(run: Run) -> Section:
    """The command, the machine, the versions, and the config."""
    rows: list[list[float | str | None]] = []
    for number, start in enumerate(run.starts, start=1):
        rows += [[name, value] for name, value in _describe_start(start, number if len(run.starts) > 1 else 0)]
    samples = run.summary.get("samples") or {}
    rows += [[f"{split} samples", number] for split, number in samples.items() if number is not None]
    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    return Section("What ran", [Table("", [Column("what"), Column("value")], rows), Details("config.yaml", config)])


def _describe_start(start: Mapping[str, Any], number: int) -> list[tuple[str, str]]:
    """How the run was started, in rows; with its number where it was started more often."""
    packages = start.get("packages") or {}
    gpus = start.get("gpus") or []
    memory = start.get("memory_gib")
    values = {
        "command": " ".join(["swinv2-tasks", *map(command_word, start.get("arguments", ()))]),
        "started": start.get("time"),
        "resumed at step": start.get("resumed_step") or None,
        "commit": start.get("git_commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        "Python": start.get("python"),
        "processor": f"{start.get('processor')}, {start.get('cores')} cores" + (f", {memory} GiB" if memory else ""),
        "GPUs": ", ".join(map(str, gpus)) or "none",
        "processes": start.get("processes"),
        "host": f"{start.get('host')}, {start.get('system')}",
        "seed": start.get("seed"),
    }
    prefix = f"start {number}: " if number else ""
    return [(prefix + name, str(value)) for name, value in values.items() if value is not None]

"""Folders as runs leave them, with what is needed of each: for reports and comparisons."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write_run(
    folder: Path,
    task: str,
    metrics: Sequence[Mapping[str, float]] = (),
    config: Mapping[str, Any] | None = None,
    command: str = "fit",
) -> Path:
    """A run's folder with its config, start, metrics and summary."""
    folder.mkdir(parents=True)
    model = {"class_path": f"swinv2_tasks.tasks.{task}", "init_args": {"num_classes": 2}}
    content = {"model": model, "checkpoint": {"monitor": "val/top1"}, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / "run.json").write_text(json.dumps({"starts": [{"arguments": [command]}]}))
    names = sorted({name for row in metrics for name in row})
    lines = [",".join(names)] + [",".join(str(row.get(name, "")) for name in names) for row in metrics]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    last = metrics[-1] if metrics else {}
    summary = {"status": "finished", "best_metrics": last, "last_metrics": last, "epochs": 2, "steps": len(metrics)}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def read_rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table of a page below a heading."""
    text = page.read_text("utf-8")
    table = text[text.index(heading) :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]

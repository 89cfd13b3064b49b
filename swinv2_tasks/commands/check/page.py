"""The page of a check: one file without scripts, links or requests; all that files say is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinv2_tasks import pages
from swinv2_tasks.commands.check.charts import Chart
from swinv2_tasks.commands.check.findings import SEVERITIES, Check, Finding, Findings
from swinv2_tasks.commands.check.pictures import Show, picture_of
from swinv2_tasks.text import printable

MOST_PICTURED = 12
"""Findings of a check that the page shows."""


def write_page(
    path: Path,
    task: str,
    root: str,
    findings: Findings,
    facts: Sequence[tuple[str, str]],
    charts: Sequence[Chart],
    show: Show,
) -> None:
    """Writes the page.

    Args:
        path: The file.
        task: Of the dataset.
        root: The dataset's folder.
        findings: What was found.
        facts: Names and values of a table at the top.
        charts: The statistics.
        show: Makes the picture of a file.

    Raises:
        UserError: It cannot be written.
    """
    severities = [
        {
            "name": severity,
            "total": f"{findings.total(severity):,}",
            "checks": [
                _check_as_values(name, check, kept, findings.counts[name], show)
                for name, check, kept in findings.by_severity(severity)
            ],
        }
        for severity in SEVERITIES
    ]
    values = {
        "title": f"data check {task}",
        "task": task,
        "root": printable(root),
        "severities": severities,
        "facts": [(name, printable(value)) for name, value in facts],
        "charts": charts,
    }
    pages.write_page(path, "commands/check/page.html", values)


def _check_as_values(name: str, check: Check, kept: Sequence[Finding], number: int, show: Show) -> dict[str, Any]:
    return {
        "name": name,
        "title": check.title,
        "advice": check.advice,
        "count": f"{number:,}",
        "findings": [_as_values(finding, show) for finding in kept[:MOST_PICTURED]],
        "more": f"{number - MOST_PICTURED:,}" if number > MOST_PICTURED else "",
    }


def _as_values(finding: Finding, show: Show) -> dict[str, Any]:
    return {
        "file": printable(finding.file),
        "others": [printable(other) for other in finding.others],
        "detail": printable(finding.detail),
        "picture": picture_of(finding, show),
    }

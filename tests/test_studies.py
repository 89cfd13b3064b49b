"""The studies under benchmarks/ run from one end to the other, in small."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.slow
def test_stability_in_small_is_written_and_finished_runs_are_not_made_again(tmp_path: Path) -> None:
    from benchmarks import stability

    stability.main(["--reduced", f"--output={tmp_path}"])
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    with (tmp_path / "amplitudes.csv").open(newline="") as file:
        amplitudes = list(csv.DictReader(file))
    assert len(runs) == 18 and {run["kind"] for run in runs} == set(stability.KINDS)
    assert len(amplitudes) == sum(sum(map(int, run["depths"].split("-"))) for run in runs)
    assert all(float(row["initial"]) > 0 and float(row["trained"]) > 0 for row in amplitudes)
    assert (tmp_path / "table.md").read_text().count("res-post-norm + cosine") == 1 + 6
    assert Image.open(tmp_path / "stability.png").size[0] > 500

    files = sorted((tmp_path / "runs").iterdir())
    lost, *kept = files
    before = {file: file.stat().st_mtime_ns for file in kept}
    expected = json.loads(lost.read_text())
    lost.unlink()
    stability.main(["--reduced", f"--output={tmp_path}"])
    assert {file: file.stat().st_mtime_ns for file in kept} == before
    assert {**json.loads(lost.read_text()), "seconds": 0} == {**expected, "seconds": 0}

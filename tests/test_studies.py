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


@pytest.mark.slow
def test_label_hunger_in_small_is_written_and_finished_runs_are_not_made_again(tmp_path: Path) -> None:
    from benchmarks import label_hunger
    from tests.tasks.tiny import write_images

    data = write_images(tmp_path / "data", train=8, val=2)
    (tmp_path / "data" / "classes.csv").unlink()
    arguments = [f"--data={data}", f"--output={tmp_path / 'out'}", "--reduced", "--shares", "0.5", "1"]
    label_hunger.main(arguments)
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["start"], row["share"], row["images"]) for row in rows} == {
        (start, share, images) for start in label_hunger.STARTS for share, images in (("0.5", "12"), ("1.0", "24"))
    }
    assert all(0 <= float(row["top1"]) <= 1 for row in rows)
    assert (tmp_path / "out" / "label_hunger.md").read_text().count("±") == 4
    assert Image.open(tmp_path / "out" / "label_hunger.png").size[0] > 400
    runs = sorted((tmp_path / "out" / "runs").glob("*/*"))
    label_hunger.main(arguments)
    assert sorted((tmp_path / "out" / "runs").glob("*/*")) == runs

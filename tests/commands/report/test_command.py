"""Reports of runs: written as these end, again by the command, equal to the files that they are made of."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_tasks.cli.main import main
from tests.helpers.evaluated_runs import write_run
from tests.helpers.processes import run, send_at
from tests.helpers.runs import evaluate, fit, from_last, last_checkpoint, newest_run, read_metrics, user_error
from tests.helpers.tiny_tasks import EACH_TASK, TINY_TASKS


def values(page: Path) -> list[float]:
    """The numbers of a page, in full precision."""
    return [float(text) for text in re.findall(r'data-value="([^"]*)"', page.read_text("utf-8"))]


@pytest.mark.parametrize("name", EACH_TASK)
def test_a_run_is_reported_with_its_own_numbers(name: str, trained_run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = trained_run(name)
    page = tmp_path / "page.html"
    assert main(["report", str(folder), f"--output={page}"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    scores = [value for metric, value in summary["best_metrics"].items() if metric.startswith("val/")]
    assert scores and {*scores} <= {*values(page)}
    assert summary["samples_per_second"] in values(page) and summary["model"]["parameters"] in values(page)
    text = page.read_text("utf-8")
    assert text.count("<svg") >= 3 and "config.yaml" in text and "Gradient norm" in text
    assert page.stat().st_size < 10 * 2**20


def test_fit_validate_and_test_write_reports(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TINY_TASKS["classification"].config(tmp_path, images, trainer={"max_epochs": 1, "limit_train_batches": 2})
    folder = fit(config, tmp_path / "runs", "--report=true")
    assert "report.html" in capsys.readouterr().out
    assert (folder / "report.html").is_file()
    samples = sum(path.is_file() for path in (images / "val").rglob("*"))
    for command in ("validate", "test"):
        evaluation = evaluate(tmp_path / "runs", from_last(folder), "--report=true", command=command)
        assert "report.html" in capsys.readouterr().out
        summary = json.loads((evaluation / "summary.json").read_text())
        logged = {name: value for name, value in read_metrics(evaluation)[-1].items() if "/" in name}
        assert summary["last_metrics"] == logged
        assert {*logged.values()} <= {*values(evaluation / "report.html")}
        assert summary["checkpoint"] == str(last_checkpoint(folder))
        assert summary["samples"] == {"val" if command == "validate" else "test": samples}
        assert main(["report", str(evaluation), f"--output={tmp_path / command}.html"]) == 0


def test_none_is_written_where_none_is_wanted(images: Path, tmp_path: Path) -> None:
    config = TINY_TASKS["classification"].config(tmp_path, images, trainer={"max_epochs": 1, "limit_train_batches": 2})
    assert not (fit(config, tmp_path / "runs") / "report.html").exists()


def test_an_interrupted_training_has_a_report(images: Path, tmp_path: Path) -> None:
    config = TINY_TASKS["classification"].config(
        tmp_path, images, trainer={"callbacks": [{"class_path": "tests.helpers.faults.SendSignal"}]}, report=True
    )
    result = run(["fit", f"--config={config}"], tmp_path, **send_at(4, number=signal.SIGINT))
    assert result.status == 130
    folder = newest_run(tmp_path / "runs")
    assert "interrupted" in (folder / "report.html").read_text("utf-8")
    assert "report.html" in result.output and "To resume: " in result.errors and "Traceback" not in result.errors


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no config.yaml" in user_error(capsys, "report", str(tmp_path))
    assert "no config.yaml" in user_error(capsys, "report", str(tmp_path / "nowhere"))
    (tmp_path / "config.yaml").write_text("[1, 2")
    assert "config.yaml cannot be read" in user_error(capsys, "report", str(tmp_path))
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "run.json").write_text("{}")
    assert "run.json is corrupt" in user_error(capsys, "report", str(tmp_path))
    (tmp_path / "run.json").unlink()
    assert "No such file" in user_error(capsys, "report", str(tmp_path), f"--output={tmp_path / 'no' / 'page.html'}")
    assert not (tmp_path / "report.html").exists()


def test_a_validation_that_is_not_the_best_is_called_so(tmp_path: Path) -> None:
    scores = [{"val/top1": 0.8}, {"val/top1": 0.5}]
    metrics = [{"step": step, "epoch": step, **own} for step, own in enumerate(scores)]
    run = write_run(tmp_path / "run", "ClassificationTask", metrics)
    assert main(["report", str(run)]) == 0
    assert "not that of the best epoch" not in (run / "report.html").read_text()  # as its summary says
    summary = {"status": "finished", "best_metrics": metrics[0], "epochs": 2, "steps": 2}
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "not that of the best epoch" in text and "val/top1 was best in epoch 1" in text

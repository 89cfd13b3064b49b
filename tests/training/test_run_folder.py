"""Folders of runs: named as one folder, each checkpoint folder one run's, and what is in them never removed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.training.run_folder import check_name, claim_folder, holds_results
from tests.helpers.tiny import QUIET, write_config

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]


# ---- names


@pytest.mark.parametrize("name", ["", "  ", ".", "..", "a/b", "../a", "/a", "a/", "a\\b", "..\\a", "a\0b"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_names_that_are_no_folder_are_refused(
    command: str, name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "tiny.yaml", images, name=name)
    before = sorted(tmp_path.rglob("*"))
    assert main([command, f"--config={config}", f"--runs={tmp_path / 'all' / 'runs'}"]) == 1
    errors = capsys.readouterr().err
    assert "--name" in errors and "--runs" in errors and "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_on_the_command_line_counts(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "tiny.yaml", images)
    outside = tmp_path / "outside"
    for name in ("../../outside", str(outside)):
        assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'a' / 'runs'}", f"--name={name}"]) == 1
        assert repr(name) in capsys.readouterr().err
    assert not outside.exists()


@pytest.mark.parametrize("name", ["tiny", "a b", "..a", "a..b", "...", "-", "größe", "1.5"])
def test_other_names_are_fine(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["..", ".", "", "a\\b", "../.."])
def test_a_checkpoint_with_such_a_name_is_evaluated_in_all_runs_folder(
    name: str, trained: Path, tmp_path: Path
) -> None:
    contents = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    contents["swinv2_tasks"]["name"] = name
    torch.save(contents, tmp_path / "named.ckpt")
    runs = tmp_path / "a" / "runs"
    assert main(["validate", f"--ckpt_path={tmp_path / 'named.ckpt'}", f"--runs={runs}", *QUIETLY]) == 0
    assert [str(path.relative_to(runs)) for path in runs.glob("*/*")] == ["run/validate_0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "named.ckpt"]


# ---- a folder of checkpoints elsewhere


def fit(folder: Path, images: Path, *arguments: str) -> int:
    config = write_config(folder / "tiny.yaml", images)
    return main(
        [
            "fit",
            f"--config={config}",
            f"--runs={folder / 'runs'}",
            f"--checkpoint.dirpath={folder / 'kept'}",
            *arguments,
        ]
    )


def test_a_second_run_does_not_write_over_the_checkpoints_of_the_first(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does one in another folder of runs, nor one after the first run's folder was removed."""
    assert fit(tmp_path, images) == 0
    best = tmp_path / "kept" / "best.ckpt"
    before = best.read_bytes()
    for runs in ("runs", "elsewhere"):
        assert fit(tmp_path, images, f"--runs={tmp_path / runs}") == 1
        message = capsys.readouterr().err
        assert str(tmp_path / "kept") in message and str(tmp_path / "runs/tiny/0") in message
        assert "checkpoint.dirpath" in message and "Traceback" not in message
    shutil.rmtree(tmp_path / "runs")
    assert fit(tmp_path, images) == 1
    assert best.read_bytes() == before
    assert not list(tmp_path.glob("*/tiny/*"))


@pytest.mark.slow
def test_a_resumed_run_stays_in_its_own_folder(images: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, images) == 0
    run = tmp_path / "runs" / "tiny" / "0"
    assert main(["fit", f"--resume={run}", "--trainer.max_epochs=4"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert Path(summary["best_checkpoint"]) == tmp_path / "kept" / "best.ckpt"
    assert torch.load(summary["best_checkpoint"], weights_only=True)["global_step"] > 6
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    assert main(["fit", f"--resume={tmp_path / 'copy/tiny/0'}", "--trainer.max_epochs=5"]) == 1  # its original's
    shutil.rmtree(tmp_path / "copy")
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert main(["fit", f"--resume={tmp_path / 'moved/tiny/0'}", "--trainer.max_epochs=5"]) == 0


@pytest.mark.slow
def test_a_run_that_fails_at_its_start_leaves_the_folder_free(images: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, images, "--data.root=nowhere") == 1
    assert fit(tmp_path, images, "--trainer.max_epochs=-1") == 1
    assert fit(tmp_path, images, "--name=another") == 0


def test_checkpoints_of_who_knows_whom_are_not_written_over(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "best.ckpt").write_bytes(b"mine")
    assert fit(tmp_path, images) == 1
    assert "checkpoints already" in capsys.readouterr().err
    assert (tmp_path / "kept" / "best.ckpt").read_bytes() == b"mine"


@pytest.mark.slow
def test_also_those_of_a_callback_in_the_config(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"dirpath": str(tmp_path / "every"), "filename": "step-{step}", "every_n_train_steps": 2}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": arguments}
    config = write_config(tmp_path / "tiny.yaml", images, trainer={"callbacks": [callback]})
    for status in (0, 1):
        assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == status
    assert str(tmp_path / "every") in capsys.readouterr().err
    assert main(["fit", f"--resume={tmp_path / 'runs/tiny/0'}", "--trainer.max_epochs=3"]) == 0


def _claim(folder: Path, run: Path, start: multiprocessing.synchronize.Barrier) -> None:
    start.wait()
    try:
        claim_folder(folder, run)
    except UserError:
        raise SystemExit(3) from None


def test_of_runs_that_start_at_once_one_has_the_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        start = context.Barrier(4)
        runs = [tmp_path / f"run{k}" for k in range(4)]
        for run in runs:
            run.mkdir(exist_ok=True)
        claims = [context.Process(target=_claim, args=(tmp_path / f"kept{attempt}", run, start)) for run in runs]
        for process in claims:
            process.start()
        for process in claims:
            process.join()
        assert sorted(process.exitcode or 0 for process in claims) == [0, 3, 3, 3]


# ---- nothing lost


@pytest.mark.parametrize(
    "name",
    ["checkpoints/last.ckpt", "hpc_ckpt_1.ckpt", "metrics.csv", "weights.safetensors", "nonfinite_step_0_rank_1.json"],
)
def test_what_a_folder_must_not_be_removed_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "run.json").touch()
    assert not holds_results(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert holds_results(tmp_path)


def test_a_folder_of_checkpoints_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"cannot write in .*circle \(checkpoint.dirpath\)"):
        claim_folder(tmp_path / "circle", tmp_path / "run")


def test_a_kept_config_whose_lines_stand_for_millions_is_refused(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "checkpoints"
    run.mkdir()
    folder.mkdir()
    (folder / "last.ckpt").touch()
    lines = ["a0: &a0 [x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12))]
    (run / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        claim_folder(folder, run)

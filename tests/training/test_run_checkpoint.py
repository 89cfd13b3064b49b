"""Checkpoints that a run can rely on: corrupt ones, full disks, runs side by side, clusters that send jobs back."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.training.run_checkpoint import RunCheckpoint, newest_intact
from swinv2_tasks.weights.files import find_corruption
from tests.helpers.processes import run, send_at, start, wait_for
from tests.helpers.tiny import new_task, write_config

RESUME = ("fit", "--config=runs/tiny/0/config.yaml", "--resume")


LONGER = ["--trainer.max_epochs=10"]
"""What lets a finished run be resumed."""


@pytest.fixture
def stopped(trained: Path, images: Path, tmp_path: Path) -> Path:
    """A folder with a run that was trained for 8 epochs of 3 steps, in ``runs/tiny/0``.

    Its checkpoints of the latest steps are last.ckpt (step 24) and previous.ckpt (step 21).
    """
    shutil.copytree(trained.parents[1], tmp_path / "runs")
    return tmp_path


# ---- corrupt checkpoints


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def alter(path: Path) -> None:
    """Turns one bit in the middle of the largest tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [truncate, alter, empty])
def test_a_corrupt_checkpoint_is_told_from_an_intact_one(harm: Any, trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path))
    assert find_corruption(path) is None
    harm(path)
    assert find_corruption(path)


def test_every_altered_tensor_byte_is_found(trained: Path, tmp_path: Path) -> None:
    """A byte in each of 40 places: found, or in the padding between parts, and then what is read is the same."""
    original = (trained / "checkpoints" / "last.ckpt").read_bytes()
    path = tmp_path / "altered.ckpt"
    path.write_bytes(original)
    expected = torch.load(path, weights_only=True)["state_dict"]
    missed = 0
    for offset in range(200, len(original), len(original) // 40):
        path.write_bytes(original[:offset] + bytes([original[offset] ^ 0xFF]) + original[offset + 1 :])
        if find_corruption(path) is None:
            missed += 1
            tensors = torch.load(path, weights_only=True)["state_dict"]
            assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert missed < 20


def test_a_tensor_that_is_marked_as_a_folder_is_found(trained: Path, tmp_path: Path) -> None:
    """By one byte of the directory, which has no checksum; torch would take what the memory holds for the tensor."""
    path = Path(shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/1PK\x01\x02"))
    content[entry + 38] ^= 0x10
    path.write_bytes(content)
    assert "is marked as a folder" in (find_corruption(path) or "")


@pytest.mark.parametrize("harm", [truncate, alter, empty])
def test_the_one_before_a_corrupt_checkpoint_is_taken(
    harm: Any, stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped)
    checkpoints = Path("runs/tiny/0/checkpoints")
    for name in ("last", "best"):
        harm(checkpoints / f"{name}.ckpt")
    assert main([*RESUME, "--trainer.max_epochs=9"]) == 0
    output = capsys.readouterr().out
    assert f"{checkpoints / 'last.ckpt'} is corrupt: " in output
    assert f"resuming runs/tiny/0 at step 21 from {checkpoints / 'previous.ckpt'}" in output
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 27


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_an_altered_checkpoint_is_not_used(
    command: str, stopped: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "runs" / "tiny" / "0" / "checkpoints" / "best.ckpt"
    alter(path)
    arguments = [f"--ckpt_path={path}", f"--runs={stopped / 'runs'}", f"--data.source={images}"]
    config = [f"--config={stopped / 'runs/tiny/0/config.yaml'}"] if command == "fit" else []
    assert main([command, *config, *arguments]) == 1
    assert f"{path} is corrupt: its part " in capsys.readouterr().err


def test_without_an_intact_checkpoint_nothing_is_resumed(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped)
    for path in Path("runs/tiny/0/checkpoints").iterdir():
        alter(path)
    assert main([*RESUME, *LONGER]) == 1
    assert "no intact checkpoint" in capsys.readouterr().err
    shutil.rmtree("runs/tiny/0/checkpoints")
    assert main([*RESUME, *LONGER]) == 1
    assert "runs/tiny/0 has no checkpoint to resume from" in capsys.readouterr().err
    assert Path("runs/tiny/0/config.yaml").is_file()


def test_the_latest_step_is_taken_whatever_the_files_times(stopped: Path) -> None:
    checkpoints = stopped / "runs" / "tiny" / "0" / "checkpoints"
    os.utime(checkpoints / "last.ckpt", (1, 1))
    assert newest_intact(stopped / "runs" / "tiny" / "0")[:2] == (checkpoints / "last.ckpt", 24)


def test_weights_alone_are_no_training_to_resume(stopped: Path) -> None:
    run_folder = stopped / "runs" / "tiny" / "0"
    for path in (run_folder / "checkpoints").iterdir():
        contents = torch.load(path, weights_only=True)
        del contents["optimizer_states"]
        torch.save(contents, path)
    with pytest.raises(UserError, match="only weights"):
        newest_intact(run_folder)


# ---- writing


def fit_with_limit(arguments: list[str], limit: int) -> int:
    """In a child process, since the limit cannot be taken back."""
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        torch.set_num_threads(1)
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint of the colored squares' classifier and half of another."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_with_a_message(images: Path, small_disk: Path) -> None:
    """Then, with more room, the run resumes from the intact checkpoint."""
    write_config(small_disk / "tiny.yaml", images, trainer={"max_epochs": 40})
    ended = run(["fit", "--config=tiny.yaml"], small_disk)
    assert ended.status == 1
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    errors = ended.errors.splitlines()
    assert errors[-1].startswith("swinv2-tasks: ") and (
        "cannot be written" in errors[-1] or "No space left" in errors[-1]
    )
    assert "Traceback" not in ended.errors
    _, step, _ = newest_intact(small_disk / "runs" / "tiny" / "0")
    assert step > 0
    again = run(["fit", "--resume", "runs/tiny/0"], small_disk)
    assert again.status == 0, again.errors
    assert f"at step {step} from" in again.output


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped)
    last = Path("runs/tiny/0/checkpoints/last.ckpt")
    before, size = last.read_bytes(), last.stat().st_size
    assert fit_with_limit([*RESUME, "--trainer.max_epochs=10"], size - 20_000) == 1
    errors = capfd.readouterr().err
    message = errors.splitlines()[-1]
    assert "cannot be written" in message and ".ckpt" in message and "MiB are free" in message
    assert "Traceback" not in errors
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir() if path.name.startswith(".")] == []
    assert main([*RESUME, "--trainer.max_epochs=10"]) == 0  # with space again


def test_leftovers_of_a_killed_writer_go_with_the_next_start(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stopped)
    leftover = Path("runs/tiny/0/checkpoints/.newest.ckpt.0123abcd")
    leftover.mkdir()
    (leftover / "newest.ckpt").write_bytes(b"half")
    leftover.with_name(".newest.ckpt.12345").write_bytes(b"half")  # of an earlier version
    assert main([*RESUME, "--trainer.max_epochs=9"]) == 0
    assert sorted(path.name for path in leftover.parent.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.slow
def test_nothing_else_goes_with_it(stopped: Path, tmp_path: Path) -> None:
    """Neither files of other names, nor any where a link leads to."""
    run_folder, linked, outside = stopped / "runs" / "tiny" / "0", tmp_path / "linked", tmp_path / "outside"
    shutil.copytree(run_folder, linked)
    (linked / "checkpoints").rename(outside)
    (linked / "checkpoints").symlink_to(outside)
    kept = [run_folder / "checkpoints" / ".notes.2024", outside / ".notes.2024", outside / ".best.ckpt.77012345"]
    for path in kept:
        path.write_text("mine")

    for folder in (run_folder, linked):
        assert main(["fit", "--resume", str(folder), "--trainer.max_epochs=9"]) == 0
    assert all(path.read_text() == "mine" for path in kept)


@pytest.mark.parametrize(
    ("option", "saved"), [("--save.every_n_steps=2", [3, 5]), ("--save.every_n_minutes=1e-9", [4, 5])]
)
def test_saving_by_steps_and_by_time(option: str, saved: list[int], images: Path, tmp_path: Path) -> None:
    """Three steps per epoch, saved after the third for its validation; the kill comes before the sixth is."""
    stops = {"class_path": "tests.helpers.faults.SendSignal"}
    write_config(tmp_path / "tiny.yaml", images, trainer={"callbacks": [stops]})
    assert run(["fit", "--config=tiny.yaml", option], tmp_path, **send_at(6)).status == -9
    checkpoints = tmp_path / "runs" / "tiny" / "0" / "checkpoints"
    files = [checkpoints / "previous.ckpt", checkpoints / "last.ckpt"]
    assert [torch.load(path, weights_only=True)["global_step"] for path in files] == saved


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"every_n_minutes": -1.0}])
def test_intervals_of_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        RunCheckpoint(**wrong)


@pytest.mark.slow
def test_the_best_k_are_kept_under_names_of_their_own(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "tiny.yaml", images, trainer={"max_epochs": 5})
    arguments = ["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--checkpoint.save_top_k=2"]
    assert main(arguments) == 1
    assert "put the epoch into checkpoint.filename" in capsys.readouterr().err
    assert main([*arguments, "--checkpoint.filename=best-{epoch}"]) == 0
    assert len(list((tmp_path / "runs/tiny/0/checkpoints").glob("best-*.ckpt"))) == 2


# ---- weights at the end


def test_the_best_weights_are_exported_alone(trained: Path, images: Path, tmp_path: Path) -> None:
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    with safe_open(trained / "weights.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(best["state_dict"])
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in best["state_dict"].items())
    assert (trained / "weights.safetensors").stat().st_size < (trained / "checkpoints" / "best.ckpt").stat().st_size / 2
    task = type(new_task()).load_from_checkpoint(trained / "weights.safetensors")
    assert task.class_ids == ["n01", "n02", "n03"]


@pytest.mark.slow
def test_exported_weights_evaluate_and_predict(trained: Path, images: Path, tmp_path: Path) -> None:
    weights = f"--ckpt_path={trained / 'weights.safetensors'}"
    for command in (["validate", weights], ["predict", weights, f"--data.source={images / 'val'}"]):
        assert main([*command, f"--runs={tmp_path / 'runs'}"]) == 0
    assert (tmp_path / "runs" / "tiny" / "predict_0" / "predictions" / "predictions.csv").is_file()


# ---- runs side by side


@pytest.mark.slow
def test_two_runs_started_at_once_have_folders_of_their_own(images: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", images)
    both = [start(["fit", "--config=tiny.yaml"], tmp_path) for _ in range(3)]
    assert [process.wait().status for process in both] == [0, 0, 0]
    runs = tmp_path / "runs" / "tiny"
    assert sorted(path.name for path in runs.iterdir()) == ["0", "1", "2"]
    assert all((path / "summary.json").is_file() and (path / "metrics.csv").is_file() for path in runs.iterdir())


def test_a_run_that_has_not_ended_is_not_resumed(images: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", images)
    going = start(["fit", "--config=tiny.yaml", "--trainer.max_epochs=500"], tmp_path)
    wait_for((tmp_path / "runs/tiny/0/checkpoints/last.ckpt").exists)
    refused = run(RESUME, tmp_path)
    assert refused.status == 1
    assert "runs/tiny/0 is in use by another process" in refused.errors
    going.signal(signal.SIGKILL)
    assert going.wait().status == -9
    assert run([*RESUME, "--trainer.max_epochs=1000", "--trainer.max_steps=3"], tmp_path).status in (0, 1)  # no longer


# ---- clusters


@pytest.mark.parametrize(
    ("validation", "ended_by"),
    [
        pytest.param(None, signal.SIGKILL, marks=pytest.mark.slow),
        (1, signal.SIGKILL),
        pytest.param(None, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_requeued_job_resumes_in_its_folder(
    validation: int | None, ended_by: int, images: Path, tmp_path: Path
) -> None:
    """SLURM: SIGUSR1 saves and calls scontrol requeue, as Lightning documents; the same command then resumes."""
    write_config(
        tmp_path / "tiny.yaml",
        images,
        trainer={"max_epochs": 3, "callbacks": [{"class_path": "tests.helpers.faults.SendSignal"}]},
    )
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\nkill -{ended_by:d} $PPID\n'
    )  # as the cluster then does
    scontrol.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_LOCALID": "0",
        "SLURM_PROCID": "0",
    }
    job |= {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = ["fit", "--config=tiny.yaml", "--data.batch_size=5"]  # 3 steps per epoch, 3 batches per validation
    where = {} if validation is None else {"validation": validation}
    step = 4 if validation is None else 3
    signals = send_at(step, number=signal.SIGUSR1, **where)
    assert run(command, tmp_path, **job, **signals).status == (-9 if ended_by == signal.SIGKILL else 143)
    assert (tmp_path / "scontrol.log").read_text().split() == ["requeue", "77"]
    checkpoints = [path.name for path in (tmp_path / "runs/tiny/0").glob("hpc_ckpt_*.ckpt")]
    assert checkpoints == (["hpc_ckpt_1.ckpt"] if ended_by == signal.SIGKILL else [])  # what is saved later replaces it
    again = run(command, tmp_path, **job, SLURM_RESTART_COUNT="1")
    assert again.status == 0, again.errors
    resumed = step if ended_by == signal.SIGKILL else step + 1  # SIGTERM leaves time for one more step, which is saved
    assert f"resuming runs/tiny/0 at step {resumed}" in again.output
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == ["0"]
    assert not list((tmp_path / "runs/tiny/0").glob("hpc_ckpt_*"))  # no longer needed
    assert run(command, tmp_path, **job, SLURM_RESTART_COUNT="1").status == 0  # the run is finished: a new one
    assert sorted(path.name for path in (tmp_path / "runs" / "tiny").iterdir()) == ["0", "1"]


# ---- what is not a run to resume


def test_an_evaluation_cannot_be_resumed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    assert main(["validate", f"--ckpt_path={checkpoint}", f"--runs={tmp_path}", "--name=again"]) == 0
    assert main(["fit", "--resume", f"{tmp_path}/again/validate_0"]) == 1
    assert "was made by validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume: which run?"),
        (["--resume", "nowhere"], "nowhere is not of a run"),
        (["--config=imagenet.yaml", "--resume"], "is not of a run"),
        (
            ["--resume=runs/tiny/0", *LONGER, "--data.batch_size=3"],
            "took 1 processes × 6 samples × 1 accumulated = 6 per step",
        ),
        (["--resume", "runs/tiny/0", *LONGER, "--model.backbone.embed_dim=16"], "does not fit the model"),
        (["--resume", "runs/tiny/0", *LONGER, "--model.backbone.depths=[1,2]"], "does not fit the model"),
        (["--resume", "runs/tiny/0", *LONGER, "--model.schedule.layer_decay=0.5"], "parameter group"),
        (["--resume", "runs/tiny/0", *LONGER, "--model.optimizer=torch.optim.SGD"], "went by torch.optim.adamw.AdamW"),
        (["--resume", "runs/tiny/0", "--trainer.max_epochs=4"], "max_epochs=4"),
    ],
)
def test_what_cannot_be_resumed(
    arguments: list[str],
    message: str,
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(stopped)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.ckpt")}
    assert main(["fit", *arguments]) == 1
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert {path: path.read_bytes() for path in Path("runs").rglob("*.ckpt")} == before


def test_a_dataset_of_another_size_is_not_gone_on_with(
    stopped: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped)
    shutil.copytree(images, "images")
    next(Path("images/train/n01").iterdir()).unlink()
    assert main([*RESUME, "--data.root=images", "--trainer.max_epochs=9"]) == 1
    assert "had 18 training samples, the dataset now has 17" in capsys.readouterr().err


@pytest.mark.slow
def test_averaged_weights_are_not_gone_on_with_as_if_trained(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", images)
    assert main(["fit", "--config=tiny.yaml", "--config=overlays/ema.yaml"]) == 0
    config = Path("runs/tiny/0/config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"] = None
    config.write_text(yaml.safe_dump(settings))
    assert main([*RESUME, "--trainer.max_epochs=3"]) == 1
    assert "averages its weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_longer_training_says_what_the_schedule_does(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its learning rates are those of a training planned so from the start."""
    monkeypatch.chdir(stopped)
    assert main([*RESUME, "--trainer.max_epochs=12"]) == 0
    output = capsys.readouterr().out
    assert "now ends after 36 steps instead of 24" in output
    assert main(["fit", "--config=runs/tiny/0/config.yaml", "--runs=runs"]) == 0

    def rates(version: int) -> dict[str, str]:
        lines = [line.split(",") for line in Path(f"runs/tiny/{version}/metrics.csv").read_text().splitlines()]
        step, rate = lines[0].index("step"), lines[0].index("lr")
        return {line[step]: line[rate] for line in lines[1:] if line[rate]}

    resumed, planned = rates(0), rates(1)
    assert len(planned) == 36 and {k: v for k, v in resumed.items() if int(k) >= 24} == {
        k: v for k, v in planned.items() if int(k) >= 24
    }
    assert json.loads(Path("runs/tiny/0/run.json").read_text())["starts"][1]["resumed_step"] == 24


def test_a_run_that_was_moved_keeps_its_best(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stopped)
    shutil.move("runs", "elsewhere")
    checkpoints = Path("elsewhere/tiny/0/checkpoints").absolute()
    assert main(["fit", "--resume", "elsewhere/tiny/0", "--trainer.max_epochs=9"]) == 0
    states = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for name, state in states.items() if name.startswith("ModelCheckpoint"))
    before = json.loads((checkpoints.parent / "summary.json").read_text())["best_metrics"]
    assert state["dirpath"] == str(checkpoints)
    assert state["best_model_path"] == str(checkpoints / "best.ckpt")
    assert list(state["best_k_models"]) == [str(checkpoints / "best.ckpt")]
    assert state["best_model_score"] == pytest.approx(before["val/loss"])
    assert (checkpoints.parent / "weights.safetensors").is_file()


# ---- another number of processes


@pytest.mark.slow
def test_as_many_samples_per_step_resume_with_fewer_processes(images: Path, tmp_path: Path) -> None:
    """Two processes of 3 samples become one of 6, or one of 3 that accumulates two batches: the same samples follow."""
    journal = {"class_path": "tests.helpers.faults.Journal", "init_args": {"folder": "journal"}}
    stops = {"class_path": "tests.helpers.faults.SendSignal"}
    write_config(tmp_path / "tiny.yaml", images, trainer={"max_epochs": 3, "callbacks": [journal, stops]})
    first = ["fit", "--config=tiny.yaml", "--data.batch_size=3", "--save.every_n_steps=1"]
    stopped = run(first, tmp_path, processes=2, **send_at(4, number=signal.SIGTERM))
    assert stopped.status == 143, stopped.errors
    assert run([*first[:3], "--runs=straight"], tmp_path, processes=2).status == 0

    def read_samples(*names: str) -> dict[str, set[str]]:
        """Samples of each epoch's step, over ranks and accumulated batches."""
        samples_of: dict[str, set[str]] = {}
        for name in names:
            for line in (tmp_path / "journal" / name).read_text().splitlines():
                epoch, batch, _, *samples = line.split()
                samples_of.setdefault(f"{epoch} {batch}", set()).update(samples)
        return samples_of

    expected = read_samples("seen_0.txt", "seen_1.txt")
    single = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.accelerator=cpu"]
    refused = run([*RESUME, *single], tmp_path)
    assert refused.status == 1
    assert "took 2 processes × 3 samples × 1 accumulated = 6 per step" in refused.errors
    shutil.rmtree(tmp_path / "journal")
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    again = run([*RESUME, *single, "--data.batch_size=6"], tmp_path)
    assert again.status == 0, again.errors
    assert "samples and their order stay the same" in again.output
    resumed = read_samples("seen_0.txt")
    assert len(resumed) == 5 and all(resumed[key] == expected[key] for key in resumed)
    shutil.rmtree(tmp_path / "journal")
    accumulated = run(["fit", "--resume", "copy/tiny/0", *single, "--trainer.accumulate_grad_batches=2"], tmp_path)
    assert accumulated.status == 0, accumulated.errors
    halves = read_samples("seen_0.txt")
    whole: dict[str, set[str]] = {}
    for key, samples in halves.items():
        epoch, batch = key.split()
        whole.setdefault(f"{epoch} {int(batch) // 2}", set()).update(samples)
    assert whole == resumed

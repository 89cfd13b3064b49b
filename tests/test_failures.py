"""What a machine refuses ends in one message: which file it was, or what ran out, and what helps."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from swinv2_tasks.cli.main import main
from swinv2_tasks.failures import REMEDIES, explain_failure
from tests.helpers.processes import ROOT, run_together, send_at
from tests.helpers.resuming import write_run
from tests.helpers.tiny import new_task, write_config


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """Within it, this process may have no more of something."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def caught(act: Callable[[], object]) -> BaseException:
    """The error that something really raises."""
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


@pytest.mark.parametrize("number", sorted(REMEDIES), ids=errno.errorcode.get)
def test_an_error_of_the_operating_system_names_the_file_and_what_helps(number: int) -> None:
    message = explain_failure(OSError(number, os.strerror(number), "runs/a\x1bb/last.ckpt"))
    assert message is not None
    assert message.startswith("runs/a\\x1bb/last.ckpt: ")
    assert os.strerror(number) in message
    assert len(message.splitlines()) == 1


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cases: dict[str, Callable[[], object]] = {
        "links lead in a circle": lambda: loop.open(),
        "is a folder": lambda: tmp_path.open(),
        "name is too long": lambda: (tmp_path / ("n" * 300)).open(),
        "is missing": lambda: (tmp_path / "nothing").open(),
        "a file, where a folder": lambda: (Path(__file__) / "inside").open(),
    }
    for words, act in cases.items():
        message = explain_failure(caught(act))
        assert message is not None and words in message, (words, message)


def test_too_many_open_files(tmp_path: Path) -> None:
    files = []

    def open_many() -> None:
        for number in range(500):
            files.append((tmp_path / f"{number}").open("w"))

    with limited(resource.RLIMIT_NOFILE, 200):
        error = caught(open_many)
    for file in files:
        file.close()
    message = explain_failure(error)
    assert message is not None
    assert "ulimit -n" in message and "--data.num_workers 0" in message


@pytest.mark.slow
@pytest.mark.parametrize("limit", [12, 20, 32, 64])
def test_a_training_that_may_open_few_files(limit: int, dataset: Callable[[str], Path], tmp_path: Path) -> None:
    """Workers pass each tensor as a file: where these are too few, nothing is to be seen but one line."""
    write_config(tmp_path / "tiny.yaml", dataset("classification"))
    fit = f"{sys.executable} -m swinv2_tasks fit --config tiny.yaml --trainer.max_epochs 1 --data.num_workers 2"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", f"ulimit -n {limit}; {fit}"]
    result = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "Seed set" not in line]
    assert len(lines) == 1 and "ulimit -n 65536" in lines[0] and "--data.num_workers 0" in lines[0], result.stderr


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    code = (
        "import resource\n"
        "from swinv2_tasks.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 500))\n"
        "main(['--version'])\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "500 500"


def test_memory_that_runs_out() -> None:
    for act in (lambda: torch.empty(2**50), lambda: bytearray(2**60)):
        message = explain_failure(caught(act))
        assert message is not None
        assert "memory ran out" in message and "data.batch_size" in message


@pytest.mark.parametrize(
    "text",
    [
        "unable to write to file </torch_12_34_5>: No space left on device (28)",
        "unable to mmap 4096 bytes from file </torch_12_34_5>: Cannot allocate memory (12)",
        "unable to allocate shared memory(shm) for file </torch_12_34_5>: No space left on device (28)",
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_shared_memory_that_is_full(text: str) -> None:
    """As torch's own messages put it."""
    message = explain_failure(RuntimeError(text))
    assert message is not None
    assert "--shm-size" in message and "--data.num_workers 0" in message


def test_a_mistake_of_the_program_is_not_explained_away() -> None:
    for error in (KeyError("x"), RuntimeError("shapes do not match"), TypeError("no"), ValueError("bad")):
        assert explain_failure(error) is None


# ---- by the command line


def call(*arguments: str, folder: Path, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line as a shell does; ``shell`` is put behind it, as in ``> /dev/full``."""
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "swinv2_tasks", *arguments])
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["bash", "-c", f"{words} {shell}"], cwd=folder, env=variables, capture_output=True, timeout=300
    )


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    result = call("configs", folder=tmp_path, shell="> /dev/full")
    assert result.returncode == 1
    assert re.match(rb"swinv2-tasks: .*(printed|standard output).*: No space left on device; make room", result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    result = call("configs", folder=tmp_path, shell="| true; exit ${PIPESTATUS[0]}")
    assert result.returncode in (0, 141)
    assert result.stderr == b""


def test_output_that_is_closed(tmp_path: Path) -> None:
    result = call("configs", folder=tmp_path, shell=">&-")
    assert (result.returncode, result.stderr) == (0, b"")


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
"""A terminal that knows ASCII alone."""


@pytest.mark.slow
def test_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    torch.save(new_task().state_dict(), tmp_path / "tiny.pth")
    result = call("weights", "inspect", "tiny.pth", folder=tmp_path, **PLAIN)
    assert result.returncode == 0, result.stderr
    assert b"Error" not in result.stderr
    assert result.stdout.isascii()


def test_weights_larger_than_files_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(new_task().state_dict(), tmp_path / "tiny.pth")
    for target in ("out.pth", "out.safetensors"):
        with limited(resource.RLIMIT_FSIZE, 8192):
            status = main(["weights", "convert", str(tmp_path / "tiny.pth"), str(tmp_path / target)])
        message = capsys.readouterr().err
        assert status == 1
        assert re.search(rf"{target}: cannot be written .*what was there before is kept", message), message
        assert not (tmp_path / target).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.pth"}


# ---- in trainings


@pytest.mark.slow
def test_a_process_whose_first_one_was_killed_says_so_in_a_line(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", dataset("classification"))
    first, second = run_together(["fit", "--config=tiny.yaml"], folder, **send_at(1, number=9, rank=0))
    assert first.status == -9
    assert second.status == 1
    lines = [line for line in second.errors.splitlines() if "Seed set" not in line]
    assert len(lines) == 1 and "has lost the others of its run" in lines[0]


def mounts(folder: Path, options: str, command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with a small file system in a folder, which nothing else sees; skips where that is not allowed."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    script = f"mount -t tmpfs {options} tmpfs {folder} || exit 99; {command}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], env=variables, capture_output=True, text=True, timeout=300
    )
    if result.returncode == 99:
        pytest.skip("no file system may be mounted here")
    return result


@pytest.mark.slow
def test_a_training_with_little_shared_memory(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", dataset("classification"))
    settings = "--data.num_workers 2 --data.image_size 256 --trainer.max_epochs 1"
    fit = f"cd {tmp_path}; {sys.executable} -m swinv2_tasks fit --config tiny.yaml {settings}"
    result = mounts(Path("/dev/shm"), "-o size=1m", fit)
    assert result.returncode == 1
    assert "--shm-size" in result.stderr and "--data.num_workers 0" in result.stderr
    assert "Traceback" not in result.stderr


WRITERS = {
    "weights": "weights convert {folder}/tiny.pth out.pth --format timm",
    "sample data": "sample-data data",
    "fit": "fit --config {folder}/tiny.yaml --trainer.max_epochs 1",
    "predict": "predict --config {folder}/tiny.yaml --model.weights {folder}/tiny.pth --data.source {images}",
    "data optimize": "data optimize imagenet {images} shards --workers 1",
    "data check": "data check imagenet {images} --output checked",
    "data browse": "data browse imagenet {images} --output browsed",
    "data convert": "data convert {images} table --to csv",
    "sweep": "sweep --config {folder}/tiny.yaml --model.weights {folder}/tiny.pth --sizes 32 --windows 4 --output out",
    "demo": "demo --short true",
}
"""Commands that write, each into the current folder."""


@pytest.mark.slow
@pytest.mark.parametrize("options", ["-o size=16k", "-o ro"], ids=["full", "read-only"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_place_where_nothing_can_be_written(
    name: str, options: str, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    images = dataset("classification")
    write_config(tmp_path / "tiny.yaml", images)
    torch.save(new_task().state_dict(), tmp_path / "tiny.pth")
    place = tmp_path / "place"
    place.mkdir()
    command = WRITERS[name].format(folder=tmp_path, images=images)
    result = mounts(place, options, f"cd {place}; {sys.executable} -m swinv2_tasks {command}")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("swinv2-tasks:")]
    assert len(lines) == 1, result.stderr
    assert re.search(r"No space left on device|Read-only file system|cannot (be written|write|make)", lines[0])

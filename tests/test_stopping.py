"""Every signal that asks to stop ends a command within seconds, on any number of processes; nothing waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.stopping import SIGNALS
from tests.helpers.processes import ROOT, start, wait_for
from tests.helpers.tiny import write_config


def run_python(text: str, *numbers: int, wait: float = 0.0) -> subprocess.CompletedProcess[str]:
    """Runs a program in the package, which gets signals once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for number in numbers:
        process.send_signal(number)
        time.sleep(wait)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


COMMAND = """
import sys, time
from swinv2_tasks import stopping
from swinv2_tasks.cli import main as cli
stopping.END_SECONDS = 2.0
def work(command, arguments):
    print("works", flush=True)
    {work}
cli._run_function = work
sys.exit(cli.main(["configs"]))
"""


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_a_command_ends_with_one_message(number: signal.Signals) -> None:
    ended = run_python(COMMAND.format(work="time.sleep(60)"), number)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert ended.returncode == 128 + number
    assert ended.stderr.strip() == f"swinv2-tasks: stopped by {name}. The same command begins again"


def test_code_that_handles_exceptions_does_not_swallow_a_stop() -> None:
    swallow = "\n    while True:\n        try: time.sleep(60)\n        except Exception: pass"
    assert run_python(COMMAND.format(work=swallow), signal.SIGTERM).returncode == 143


def test_an_error_that_a_swallowed_stop_leads_to_is_a_stop() -> None:
    """So fails an import within which NumPy was about to be imported."""
    swallow = (
        "\n    try: time.sleep(60)\n    except BaseException: pass\n    raise ImportError('cannot load module twice')"
    )
    ended = run_python(COMMAND.format(work=swallow), signal.SIGTERM)
    assert ended.returncode == 143
    assert ended.stderr.strip() == "swinv2-tasks: stopped by SIGTERM. The same command begins again"


def test_a_main_thread_that_hangs_in_c_is_ended_by_force() -> None:
    """It waits for a lock that nobody gives, and swallows all: Python's handlers never come to an end there."""
    hang = """
    while True:
        try:
            print("hangs", flush=True)
            time.sleep(60)
        except BaseException:
            pass"""
    command = COMMAND.replace('print("works", flush=True)', "")  # the first line comes from within the try
    ended = run_python(command.format(work=hang), signal.SIGHUP)
    assert ended.returncode == 129
    assert "without waiting for what it was doing" in ended.stderr and "Traceback" not in ended.stderr


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As ``nohup`` asks for."""
    text = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{COMMAND.format(work='time.sleep(1)')}"
    assert run_python(text, signal.SIGHUP).returncode == 0


def test_a_signal_sent_twice_at_once_is_one_stop() -> None:
    """To a process and to its group, say: a training still saves."""
    work = """
    stopping.stops.defer()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        time.sleep(0.1)
    stopping.stops.undefer()
    stopping.stops.obey()"""
    ended = run_python(COMMAND.format(work=work), signal.SIGTERM, signal.SIGTERM, wait=0.2)
    assert ended.returncode == 143 and ended.stderr.count("swinv2-tasks: ") == 1


@pytest.mark.slow
def test_a_forked_process_does_not_tell_of_its_own_signals() -> None:
    """A DataLoader's worker, say, that gets a signal meant for it alone."""
    work = """
    import os, signal
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGTERM, lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(3)"""
    assert run_python(COMMAND.format(work=work)).returncode == 0


@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, *(pytest.param(slow, marks=pytest.mark.slow) for slow in (signal.SIGUSR1, signal.SIGQUIT))],
)
def test_a_training_saves_on_every_signal(number: signal.Signals, images: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", images)
    going = start(["fit", "--config=tiny.yaml", "--trainer.max_epochs=500"], tmp_path)
    wait_for((tmp_path / "runs/tiny/0/checkpoints/last.ckpt").exists)
    going.signal(number)
    ended = going.wait(60)
    assert ended.status == 128 + number, ended.errors
    assert f"stopped by {number.name} at step" in ended.errors and "To resume: swinv2-tasks fit" in ended.errors


# ---- several processes


def start_two(
    folder: Path, *arguments: str, strategy: str = "--trainer.strategy=ddp", **environment: str
) -> subprocess.Popen[str]:
    """Starts a command on two ranks, in a group of its own, as a user would."""
    many = [strategy, "--trainer.devices=2", "--trainer.accelerator=cpu", "--allow=tests.helpers"]
    return subprocess.Popen(
        [sys.executable, "-m", "swinv2_tasks", *arguments, *many],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 60) -> str:
    """Waits for the end of the whole group; what was said on standard error."""
    try:
        _, errors = process.communicate(timeout=seconds)
        return errors
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def last_rank(process: subprocess.Popen[str]) -> int:
    """The process of the second rank."""
    listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid=,args="], capture_output=True, text=True)
    (pid,) = (int(line.split()[0]) for line in listed.stdout.splitlines() if "-m swinv2_tasks" in line)
    return pid


def write_slow(folder: Path, images: Path, **trainer: Any) -> None:
    slow = {"class_path": "tests.helpers.faults.SlowValidation", "init_args": {"batch_size": 1}}
    write_config(folder / "tiny.yaml", images, data=slow, trainer={"num_sanity_val_steps": 0, **trainer})


@pytest.mark.parametrize(
    ("to", "strategy"),
    [
        ("first", "--trainer.strategy=ddp"),
        pytest.param("group", "--trainer.strategy=ddp", marks=pytest.mark.slow),
        pytest.param("last", "--trainer.strategy=ddp", marks=pytest.mark.slow),
        pytest.param("group", "--trainer.strategy=ddp_spawn", marks=pytest.mark.slow),
        pytest.param("first", "--config=overlays/fsdp.yaml", marks=pytest.mark.slow),
        pytest.param("last", "--config=overlays/zero1.yaml", marks=pytest.mark.slow),
    ],
)
def test_a_stop_in_a_validation_on_two_processes_saves(to: str, strategy: str, images: Path, tmp_path: Path) -> None:
    write_slow(tmp_path, images)
    going = start_two(tmp_path, "fit", "--config=tiny.yaml", strategy=strategy)
    wait_for((tmp_path / "validating").exists, 120)
    if to == "group":
        os.killpg(going.pid, signal.SIGTERM)
    else:
        os.kill(going.pid if to == "first" else last_rank(going), signal.SIGTERM)
    errors = finish(going)
    assert going.returncode == 143, errors
    assert "stopped by SIGTERM at step" in errors and "Traceback" not in errors
    assert (tmp_path / "runs/tiny/0/checkpoints/last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["last", "first"])
def test_a_process_that_is_stopped_ends_the_others(which: str, images: Path, tmp_path: Path) -> None:
    """By SIGSTOP: it lives, keeps its connections and does nothing."""
    write_config(tmp_path / "tiny.yaml", images, trainer={"max_epochs": 500})
    going = start_two(tmp_path, "fit", "--config=tiny.yaml", "--timeout=8")
    wait_for((tmp_path / "runs/tiny/0/checkpoints/previous.ckpt").exists, 120)
    other = last_rank(going)
    os.kill(other if which == "last" else going.pid, signal.SIGSTOP)
    if which == "first":
        wait_for(lambda: not is_running(other))
        going.kill()
    errors = finish(going)
    assert which == "first" or going.returncode == 1, errors
    rank = "process 1" if which == "last" else "process 0"
    assert f"{rank} of this run has given no sign of life" in errors or "the first process of this run" in errors
    assert "Traceback" not in errors


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"

"""The command line in processes of its own, for signals, kills and runs side by side.

A fork server that has imported the package starts them at once, each from the same clean state; several processes of
one run are started as a user would, by ``python -m``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.connections import python_path
from tests.helpers.writes import WRITES, note_writes

ROOT = Path(__file__).parents[2]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["tests.helpers.processes", "swinv2_tasks.cli.tasks_cli", "tests.helpers.faults", "torch.distributed"]
)


@dataclass
class Result:
    """How a process ended: its exit status, negative for a signal, and what it printed."""

    status: int
    output: str
    errors: str


class Running:
    """A command line in a process of its own."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.log = folder.parent / f"log_{folder.name}_{time.monotonic_ns()}"
        self.process = _server.Process(
            target=_main, args=(_allow_helpers(arguments), folder, dict(environment), self.log), daemon=False
        )
        self.process.start()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> Result:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.with_suffix(".err").read_text()[-2000:])
        texts = [self.log.with_suffix(end).read_text() for end in (".out", ".err")]
        return Result(self.process.exitcode, *texts)


def _allow_helpers(arguments: Sequence[str]) -> list[str]:
    """The arguments, and that configs may name the callbacks and datamodules of these helpers."""
    takes_configs = arguments[0] in ("fit", "validate", "test", "predict")
    return [*arguments, "--allow=tests.helpers"] if takes_configs else [*arguments]


def _main(arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    _run_main(arguments, folder, environment)


def _run_main(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    os.setpgid(0, 0)  # a group of its own, as a shell gives to a command
    import torch
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from swinv2_tasks.cli.main import main
    from swinv2_tasks.training.run_folder import RUN_DIR

    if WRITES in environment:
        note_writes(Path(environment[WRITES]))
    os.environ.pop(RUN_DIR, None)  # of a run within the tests' own process, before the fork server started
    os.environ.update(environment)
    os.chdir(folder)

    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))  # type: ignore[attr-defined]  # as read at its import
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for DataLoader workers, as in a program of its own
    sys.exit(main(arguments))


def start(arguments: Sequence[str], folder: Path, **environment: str) -> Running:
    """Starts ``swinv2-tasks ARGUMENTS`` in a folder."""
    return Running(arguments, folder, environment)


def find_port() -> int:
    """A free port, for processes that talk to each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_together(arguments: Sequence[str], folder: Path, processes: int = 2, **environment: str) -> list[Result]:
    """Runs ``swinv2-tasks ARGUMENTS`` in processes that talk by gloo on the CPU; returns how each ended.

    They are started side by side, as torchrun and srun do.
    """
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(find_port()), "NODE_RANK": "0"}
    many = [f"--trainer.devices={processes}", "--trainer.accelerator=cpu"]
    running = [
        start([*arguments, *many], folder, **variables, LOCAL_RANK=str(rank), **environment)
        for rank in range(processes)
    ]
    return [process.wait(240) for process in running]


def run(
    arguments: Sequence[str], folder: Path, processes: int = 1, strategy: str = "ddp", **environment: str
) -> Result:
    """Runs ``swinv2-tasks ARGUMENTS`` in a folder to its end; with several processes, in DDP by gloo on the CPU."""
    if processes == 1:
        return start(arguments, folder, **environment).wait()
    variables = {"PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"}
    many = [f"--trainer.devices={processes}", f"--trainer.strategy={strategy}", "--trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "swinv2_tasks", *_allow_helpers([*arguments, *many])],
        cwd=folder,
        env={**os.environ, **variables, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def is_alive(group: int) -> bool:
    """Whether there is a process of a group, as each command that ``start`` starts has one."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits until the condition holds, and returns what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
    return value


def send_at(step: int, **wishes: Any) -> dict[str, str]:
    """The environment that makes ``tests.helpers.faults.SendSignal`` act."""
    return {"SEND_SIGNAL": json.dumps({"step": step, **{k: int(v) for k, v in wishes.items()}})}


def run_in_terminal(arguments: Sequence[str], folder: Path, columns: int = 1000, seconds: float = 240) -> Result:
    """Runs ``swinv2-tasks ARGUMENTS`` in a folder, with a terminal for its output, which is one text."""
    own, of_command = os.openpty()
    environment = {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    process = _server.Process(
        target=_main_in_terminal, args=(_allow_helpers(arguments), folder, environment, os.ttyname(of_command))
    )
    process.start()
    output, end = b"", time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < end:
        if select.select([own], [], [], 0.2)[0]:
            output += os.read(own, 65536)
    while select.select([own], [], [], 0.2)[0]:
        output += os.read(own, 65536)
    os.close(of_command)
    os.close(own)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(output.decode(errors="replace")[-2000:])
    return Result(process.exitcode, output.decode(), "")


def _main_in_terminal(arguments: list[str], folder: Path, environment: dict[str, str], terminal: str) -> None:
    for number in (1, 2):
        os.dup2(os.open(terminal, os.O_WRONLY | os.O_NOCTTY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    sys.stderr.reconfigure(errors="backslashreplace")  # as in a process that Python starts
    _run_main(arguments, folder, environment)

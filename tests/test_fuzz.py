"""Files changed at random end in a result or in one message: a share of what ``benchmarks.fuzz`` tries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.connections import python_path
from tests.helpers.processes import ROOT

ENDINGS = """
import os, signal, socket, sys, time
from pathlib import Path

from benchmarks.fuzzing import processes
from swinv2_tasks.errors import UserError

processes.PROCESSOR_SECONDS = 2
processes.WALL_SECONDS = 20

def refuse(*lines):
    print("swinv2-tasks: " + "\\n".join(lines), file=sys.stderr)
    return 1

def fail():
    raise KeyError("x")

def loop():
    while True:
        pass

def swallow():
    try:
        socket.create_connection(("192.0.2.1", 9))
    except BaseException:
        return 0

ENTRIES = {
    "ok": lambda: 0,
    "refusal": lambda: refuse("one", "two"),
    "long": lambda: refuse("one", "two", "three", "four"),
    "silent": lambda: 1,
    "python": lambda: refuse("KeyError: 'x'"),
    "traceback": fail,
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "loop": loop,
    "sleep": lambda: time.sleep(100),
    "memory": lambda: len(bytearray(3 << 30)),
    "system": lambda: os.system("true"),
    "canary": lambda: Path("canary").touch(),
    "elsewhere": lambda: open("../outside", "w") and 0,
    "swallowed": swallow,
}
work = Path(sys.argv[1])
for name, entry in ENTRIES.items():
    (work / name).mkdir()
    case = processes.Case([], work / name, lambda _: entry())
    print(name, processes.wait_for(case).outcome)
"""

OUTCOMES = {
    "ok": "ok",
    "refusal": "refusal",
    **dict.fromkeys(["long", "silent", "python", "traceback"], "traceback"),
    "crash": "crash",
    **dict.fromkeys(["loop", "sleep"], "hang"),
    "memory": "memory",
    **dict.fromkeys(["system", "canary", "elsewhere", "swallowed"], "execution"),
}


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_way_to_fail_is_noticed(tmp_path: Path) -> None:
    done = start("-c", ENDINGS, str(tmp_path))
    assert dict(line.split() for line in done.stdout.splitlines()) == OUTCOMES, done.stderr


def test_changed_files_end_in_a_result_or_one_message(tmp_path: Path) -> None:
    done = start("-m", "benchmarks.fuzz", "--quick", "--cases=60", f"--output={tmp_path / 'fuzz'}")
    assert "60 cases, 0 failures" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.returncode == 0


@pytest.mark.slow
def test_changed_files_of_all_formats_end_in_a_result_or_one_message(tmp_path: Path) -> None:
    done = start("-m", "benchmarks.fuzz", "--cases=1000", "--seed=1", f"--output={tmp_path / 'fuzz'}")
    assert "1000 cases, 0 failures" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.returncode == 0

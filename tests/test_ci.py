"""What a change must pass beside the tests: the demo's output holds nothing that reads like a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = ROOT / ".ci" / "check_output.py"


def check(program: str) -> subprocess.CompletedProcess[str]:
    """Checks the output of a Python program."""
    return subprocess.run(
        [sys.executable, str(CHECK), sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )


WORKER = """
import sys
print("Seed set to 0", file=sys.stderr)
class Left:
    def __del__(self): raise AssertionError("can only test a child process")
left = Left()
del left
print("done")
"""


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (WORKER, "AssertionError: can only test a child process"),
        (WORKER, "Exception ignored in: <function Left.__del__"),
        ("import warnings; warnings.warn('lists are slow')", "<string>:1: UserWarning: lists are slow"),
        ("import logging; logging.warning('skipped: a.jpg')", "WARNING:root:skipped: a.jpg"),
        ("import logging; logging.lastResort.emit(logging.makeLogRecord({'msg': 'odd file'}))", "odd file"),
        ("print('\\x1b[33mWarning:\\x1b[0m few samples')", "Warning: few samples"),
        ("print('[h264 @ 0x55d0c8a3b2c0] error while decoding MB 1 2')", "[h264 @ 0x55d0c8a3b2c0] error"),
        ("print('[12:01:59] /io/decord/src/video/video_reader.cc:270: no frame')", "[12:01:59] /io/decord"),
        ("print('Epoch 1\\rTraceback (most recent call last):')", "Traceback (most recent call last):"),
    ],
)
def test_what_reads_like_a_failure_is_one(program: str, line: str) -> None:
    done = check(program)
    assert done.returncode == 1
    reported = done.stderr.partition("a reader would take for a failure:")[2]
    assert f"  {line}" in reported


def test_what_the_demo_prints_when_all_is_well() -> None:
    lines = {
        "stdout": ["  run  runs/demo/0", "│ val/top1 │ 0.85 │", "epoch 1/1  step 3  loss 2.155", "40 predictions"],
        "stderr": [
            "Writing sample data: 1,024 of 2,048, about 2 min left",
            "validating: 3 of 10 batches, about 40 s left",
            "data/coco/annotations/instances_val2017.json: of 158 objects 1 are crowds (iscrowd: 1)",
        ],
    }
    done = check(
        f"import sys\nfor name, lines in {lines!r}.items(): print(*lines, sep=chr(10), file=getattr(sys, name))"
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == lines["stdout"]
    assert done.stderr.splitlines() == lines["stderr"]


def test_a_command_that_fails_keeps_its_status() -> None:
    assert check("import sys; sys.exit(3)").returncode == 3


def test_a_change_must_pass_the_short_demo() -> None:
    assert "make demo-check" in (ROOT / ".ci" / "run").read_text()
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo-check: install\n")[2].partition("\n\n")[0]
    assert ".ci/check_output.py" in recipe and "demo" in recipe and "--short true" in recipe

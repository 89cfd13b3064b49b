"""Processes that commands start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.connections import python_path
from tests.helpers.films import write_film
from tests.helpers.processes import ROOT
from tests.helpers.tiny import write_images

PROGRAM = """
import sys
from swinv2_tasks.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as an installed one, whose own folder comes first on the path, within another folder."""
    program = folder.parent / "bin" / "swinv2-tasks"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def write_traps(folder: Path) -> None:
    """Modules that leave a mark when they are imported."""
    for name in ("multiprocessing", "numpy"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'imported')!r}, 'a').write('{name}')\n")


@pytest.mark.slow
def test_videos_are_checked_without_importing_from_the_working_folder(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    write_film(folder / "train" / "zumba" / "good.mp4")
    write_traps(folder)
    done = run(folder, "data", "check", "kinetics", ".", "--workers=1")
    assert not (folder / "imported").exists()
    assert done.returncode == 0 and "train: 1 of 1 videos decode fully" in done.stdout, done.stderr


@pytest.mark.slow
def test_shards_are_written_without_importing_from_the_working_folder(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    write_traps(folder)
    done = run(folder, "data", "optimize", "imagenet", ".", "shards", "--workers=2", "--shard_mb=0.01")
    assert not (folder / "imported").exists()
    assert done.returncode == 0 and (folder / "shards" / "val" / "index.json").exists(), done.stderr

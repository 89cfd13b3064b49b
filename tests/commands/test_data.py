"""Checking datasets that lie on disk."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.__main__ import main
from swinv2_tasks.commands import data as data_command
from swinv2_tasks.commands.data import decoding_fault, find_faults
from swinv2_tasks.datamodules import KineticsDataModule
from tests.datamodules.films import cut_off, scramble, write_film, write_sound


@pytest.fixture
def films(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    for label in ("air drumming", "zumba"):
        write_film(root / "train" / label / "good.mp4")
        write_film(root / "val" / label / "good.mkv")
    cut_off(write_film(root / "train" / "zumba" / "cut.mp4"))
    cut_off(write_film(root / "train" / "zumba" / "cut.mkv", frames=40), 0.6)
    scramble(write_film(root / "train" / "zumba" / "scrambled.mp4", options={"movflags": "faststart"}), 0.7)
    (root / "val" / "zumba" / "empty.mp4").touch()
    write_sound(root / "val" / "zumba" / "sound.mp4")
    return root


def test_faulty_videos_are_listed_and_the_others_go_on(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", "kinetics", str(films), "--output", str(tmp_path / "out"), "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "train: 2 of 5 videos decode fully" in shown and "val: 2 of 4 videos decode fully" in shown
    with (tmp_path / "out" / "faulty_videos.csv").open(newline="") as file:
        reasons = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert reasons.keys() == {"cut.mp4", "cut.mkv", "scrambled.mp4", "empty.mp4", "sound.mp4"}
    assert "cut off" in reasons["cut.mp4"] and reasons["empty.mp4"] == "the file is empty (0 bytes)"
    assert "only sound" in reasons["sound.mp4"] and "the decoder says" in reasons["cut.mkv"]
    assert "damaged" in reasons["scrambled.mp4"]


def test_the_clean_lists_are_read_by_the_datamodule(films: Path) -> None:
    assert main(["data", "check", "kinetics", str(films)]) == 0
    module = KineticsDataModule(
        str(films), 32, 2, 0, frames=4, train_list="train_clean.txt", val_list="val_clean.txt", test_views=(1, 1)
    )
    module.setup("fit")
    assert module.class_names == ["air drumming", "zumba"]
    assert [path for path, _ in module.videos("train")] == [
        str(films / "train" / label / "good.mp4") for label in module.class_names
    ]
    assert next(iter(module.train_dataloader()))["clip"].shape == (2, 1, 3, 4, 32, 32)
    assert len(list(module.val_dataloader())) == 1


def test_every_shared_clip_decodes(real_data: Path) -> None:
    for path in sorted((real_data / "videos" / "clips").iterdir()):
        assert decoding_fault(str(path)) is None


def crash(path: str) -> str | None:
    """In place of a decoder."""
    if "cut" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "empty" in path:
        time.sleep(60)
    return None


@pytest.mark.slow
def test_crashes_and_hangs_are_told_of_their_file(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_command, "decoding_fault", crash)
    paths = [str(path) for path in sorted(films.rglob("*.mp4"))]
    found: dict[str, Any] = find_faults(paths, workers=2, seconds=20)
    reasons = {Path(path).name: reason for path, reason in found.items()}
    assert reasons == {"cut.mp4": "its decoder crashed", "empty.mp4": "its decoder did not end within 20 s"}


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "kinetics", str(tmp_path)]) == 1
    assert "There are no videos in" in capsys.readouterr().err
    assert main(["data", "check", "kinetics", str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["data", "check", "kinetics", str(tmp_path), "--workers", "0"]) == 1
    assert "workers is 0" in capsys.readouterr().err

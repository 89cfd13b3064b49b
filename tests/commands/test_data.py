"""Checking datasets that lie on disk, and writing them into shards."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.__main__ import main
from swinv2_tasks.commands import data as data_command
from swinv2_tasks.commands.data import decoding_fault, find_faults
from swinv2_tasks.datamodules import ImageNetDataModule, KineticsDataModule
from tests.datamodules.films import cut_off, scramble, write_film, write_sound
from tests.processes import start, wait_for
from tests.tasks.tiny import write_images


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
    assert "only sound" in reasons["sound.mp4"] and "cut off" in reasons["cut.mkv"]
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


# ---- images into shards


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A dataset of 60 and 12 small images, that the tests may spoil."""
    return write_images(tmp_path / "pictures", train=20)


def optimize(root: Path, out: Path, *options: str) -> int:
    return main(["data", "optimize", "imagenet", str(root), str(out), "--workers=1", "--shard_mb=0.01", *options])


def names(root: Path, split: str) -> list[str]:
    """The samples of a split, in order: split, class and file."""
    data = ImageNetDataModule(str(root), image_size=32, batch_size=1, num_workers=0)
    data.setup("fit")
    dataset: Any = data.train_dataset if split == "train" else data.val_dataset
    return ["/".join(Path(dataset.sample_id(index)).parts[-3:]) for index in range(len(dataset))]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what it holds."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*") if path.is_file()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(Path(path).relative_to(folder)): data for path, (_, data) in state(folder).items()}


def test_optimized_images_are_told_and_written_once(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert optimize(pictures, out) == 0
    shown = capsys.readouterr()
    shards = len(list((out / "train").glob("*.bin")))
    assert f"train: 60 of 60 images in {shards} shards: {out / 'train'}" in shown.out and shards > 5
    assert "val: 12 of 12 images" in shown.out and shown.err == ""
    assert {path.name for path in (out / "val").iterdir()} >= {"index.json", "order.npy", "chunk-0-0.bin"}
    before = state(out)
    assert optimize(pictures, out) == 0
    assert state(out) == before
    assert "train: 60 of 60 images" in capsys.readouterr().out


@pytest.mark.slow
def test_several_workers_write_the_same(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train" / "n02" / "n02_3.jpg").write_bytes(b"no picture")
    for workers in (1, 3):
        assert optimize(pictures, tmp_path / str(workers), f"--workers={workers}", "--skip_faulty=true") == 0
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_an_unreadable_image_is_named_and_may_be_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "out", pictures / "train" / "n02" / "n02_3.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert optimize(pictures, out) == 1
    errors = capsys.readouterr().err
    assert f"Cannot read the image {broken}" in errors and "--skip_faulty" in errors and "Traceback" not in errors
    assert not (out / "train").exists()
    finished = state(out)
    assert optimize(pictures, out, "--skip_faulty=true") == 0
    shown = capsys.readouterr().out
    assert "train: 59 of 60 images" in shown and "left out: train/n02/n02_3.jpg: Cannot read the image" in shown
    kept = {Path(path).name: entry for path, entry in state(out).items() if "/train/" in path}
    assert all(kept[Path(path).name] == entry for path, entry in finished.items() if path.endswith(".bin"))
    for split in ("train", "val"):
        assert names(out, split) == [name for name in names(pictures, split) if name != "train/n02/n02_3.jpg"]
    assert optimize(pictures, out) == 1
    assert "written without 1 images" in capsys.readouterr().err


def test_an_image_that_was_mended_meanwhile(pictures: Path, tmp_path: Path) -> None:
    broken = pictures / "train" / "n02" / "n02_3.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    assert optimize(pictures, tmp_path / "out") == 1
    broken.write_bytes(whole)
    assert optimize(pictures, tmp_path / "out") == 0
    assert names(tmp_path / "out", "train") == names(pictures, "train")


def test_nothing_but_unreadable_images(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (pictures / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    assert optimize(pictures, tmp_path / "out", "--skip_faulty=true") == 1
    assert "No image for" in capsys.readouterr().err and not (tmp_path / "out" / "val").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_writing_goes_on(workers: int, tmp_path: Path) -> None:
    pictures, out = write_images(tmp_path / "pictures", train=150), tmp_path / "out"
    arguments = ["data", "optimize", "imagenet", "pictures", "out", "--shard_mb=0.01", f"--workers={workers}"]
    running = start(arguments, tmp_path)
    plan = out / "train.partial" / "plan.jsonl"
    wait_for(lambda: plan.exists() and plan.read_text().count("\n") > 4, seconds=300)
    running.signal(signal.SIGKILL)
    assert running.wait().status == -9
    assert not (out / "train").exists()
    numbers = [json.loads(line)["number"] for line in plan.read_text().splitlines()[1:]]
    finished = {f"chunk-0-{k}.bin": (plan.parent / f"chunk-0-{k}.bin").stat().st_mtime_ns for k in numbers}
    victim = f"chunk-0-{numbers[1]}.bin"
    (plan.parent / victim).write_bytes(b"half")  # as after a power failure
    with plan.open("a") as file:
        file.write('{"number": 9')

    assert start(arguments, tmp_path).wait(300).status == 0
    again = {name: (out / "train" / name).stat().st_mtime_ns for name in finished}
    assert [name for name in finished if again[name] != finished[name]] == [victim]
    assert optimize(pictures, tmp_path / "straight") == 0
    assert content(out) == content(tmp_path / "straight")


def test_a_full_disk(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond 5 kB, so a shard cannot be written; with space again, it goes on."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
    command = limit + "from swinv2_tasks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["data", "optimize", "imagenet", str(pictures), str(tmp_path / "out"), "--workers=1", "--shard_mb=0.01"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", command, *arguments], env=environment).returncode == 1
    errors = capfd.readouterr().err
    assert "chunk-0-0.bin: cannot be written" in errors and "MiB are free" in errors and "Traceback" not in errors
    assert main(arguments) == 0
    assert not list((tmp_path / "out").rglob(".chunk*"))


def test_shards_of_other_images(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert optimize(pictures, out) == 0
    (pictures / "train" / "n01" / "n01_0.jpg").rename(pictures / "train" / "n02" / "more.jpg")
    assert optimize(pictures, out) == 1
    assert f"{out / 'train'} holds shards of other images" in capsys.readouterr().err
    assert optimize(pictures, pictures) == 1
    assert f"{pictures / 'train'} exists, but not as a folder of such shards" in capsys.readouterr().err


def test_mistakes_of_optimizing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root, out, option, message in (
        (pictures, tmp_path / "out", "--workers=0", "workers is 0"),
        (pictures, tmp_path / "out", "--shard_mb=0", "shard_mb 0"),
        (pictures, tmp_path / "out", "--shard_mb=5000", "shard_mb 5000"),
        (tmp_path / "nowhere", tmp_path / "out", "--workers=1", "nowhere does not exist"),
        (pictures, pictures / "classes.csv", "--workers=1", "classes.csv cannot be made: File exists"),
        (pictures, tmp_path / "out", f"--val_list={tmp_path / 'list.txt'}", "list.txt: No such file"),
    ):
        assert optimize(root, out, option) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Writing files is atomic: when the writer is killed at any moment, and when two write at the same time."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_tasks.callbacks.figures import draw_learning_curve
from swinv2_tasks.files import new_folder, replace_file
from swinv2_tasks.training.run_loggers import Table, read_numbers
from swinv2_tasks.weights.files import read_checkpoint, write_pickle, write_safetensors
from tests.helpers.faults import FileKill

fork = multiprocessing.get_context("fork")


def write_text(path: Path, number: int) -> None:
    replace_file(path, lambda file: file.write_text(json.dumps([number] * 20_000)))


def read_text(path: Path) -> int:
    (number,) = set(json.loads(path.read_text()))
    return number


def write_tensors(path: Path, number: int) -> None:
    write_pickle(path, {"state_dict": {"weight": torch.full((20_000,), number)}})


def write_weights(path: Path, number: int) -> None:
    write_safetensors(path, {"weight": torch.full((20_000,), number)}, {"number": number})


def read_tensors(path: Path) -> int:
    (number,) = read_checkpoint(path).state["weight"].unique().tolist()
    return int(number)


def write_image(path: Path, number: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    image.putpixel((0, 0), (number, 0, 0))
    replace_file(path, lambda file: image.save(file, "PNG"))


def read_image(path: Path) -> int:
    with Image.open(path, formats=["PNG"]) as image:
        return image.getpixel((0, 0))[0]  # type: ignore[index]


def write_curve(path: Path, number: int) -> None:
    table = path.parent.with_name(f"metrics_{number}.csv")
    table.write_text("".join(["step,train/loss\n", *(f"{k},0.5\n" for k in range(number))]))
    draw_learning_curve(table, path)


def read_curve(path: Path) -> int:
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
    return -1


def write_rows(path: Path, number: int) -> None:
    """A new column replaces the table, in which the rows before stay."""
    table = Table(path, resumed_step=number)
    table.log_metrics({f"column_{k}": 0.5 for k in range(100 * number)}, number)
    table.save()


def read_rows(path: Path) -> int:
    return max(int(row["step"]) for row in read_numbers(path)[1])


WRITERS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], int]]] = {
    "text": ("scores.json", write_text, read_text),
    "checkpoint": ("last.ckpt", write_tensors, read_tensors),
    "safetensors": ("weights.safetensors", write_weights, read_tensors),
    "image": ("map.png", write_image, read_image),
    "curve": ("curve.png", write_curve, read_curve),
    "table": ("metrics.csv", write_rows, read_rows),
}


def run_killed(write: Callable[[], None], kill: FileKill) -> int:
    """Writes in a process that is killed on the way; how it ended."""

    def work() -> None:
        sys.addaudithook(kill)
        kill.process = os.getpid()
        write()
        time.sleep(0)  # no event: what moved is noticed at the next one
        os.scandir(".").close()
        open(os.devnull).close()

    process = fork.Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("moment", ["opened", "bytes", "written", "moved"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_writing_that_is_killed_leaves_the_old_file_or_the_new_one(name: str, moment: str, tmp_path: Path) -> None:
    file_name, write, read = WRITERS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / file_name
    write(path, 1)
    before = read(path)

    status = run_killed(partial(write, path, 2), FileKill(file_name, moment, bytes=900, skip=0))
    assert status in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert read(path) in ([before, 2] if moment == "moved" else [before])
    assert len(list(folder.iterdir())) == 2  # of which one is hidden

    write(path, 3)
    assert [entry.name for entry in folder.iterdir()] == [file_name]
    assert read(path) == (3 if before == 1 else before)


def test_a_writing_that_is_killed_at_random_leaves_a_whole_file(tmp_path: Path) -> None:
    path, rng = tmp_path / "scores.json", random.Random(0)
    write_text(path, 0)

    def write_on() -> None:
        for number in range(10**6):
            write_text(path, number)

    for _ in range(20):
        process = fork.Process(target=write_on)
        process.start()
        time.sleep(rng.uniform(0.005, 0.05))
        process.kill()
        process.join()
        read_text(path)
    write_text(path, 7)
    assert read_text(path) == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.slow
def test_two_that_write_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_weights(path, 0)

    def write_on(number: int) -> None:
        for _ in range(40):
            write_weights(path, number)

    processes = [fork.Process(target=write_on, args=(number,)) for number in (1, 2)]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        seen.add(read_tensors(path))
    assert [process.exitcode for process in processes] == [0, 0]
    assert seen <= {0, 1, 2} and read_tensors(path) in (1, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]


def test_what_is_being_written_and_what_others_have_named_so_stays(tmp_path: Path) -> None:
    path, outside = tmp_path / "scores.json", tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "scores.json").write_text("of somebody")
    (tmp_path / ".scores.json.0123abcd").symlink_to(outside)
    (tmp_path / ".scores.json.notes").mkdir()
    (tmp_path / ".other.json.0123abcd").mkdir()
    (tmp_path / ".scores.json.01234567").write_text("of somebody")
    (tmp_path / ".scores.json.abcdef01").mkdir()  # of a killed writer

    def write(file: Path) -> None:
        write_text(path, 1)  # another writer, whose end this one outlives
        file.write_text(json.dumps([2]))

    replace_file(path, write)
    assert read_text(path) == 2
    kept = {".scores.json.0123abcd", ".scores.json.notes", ".other.json.0123abcd", ".scores.json.01234567"}
    assert {entry.name for entry in tmp_path.iterdir()} == {*kept, "scores.json", "elsewhere"}
    assert (outside / "scores.json").read_text() == "of somebody"


def test_a_folder_that_is_a_link_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".scores.json.0123abcd").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "link" / "scores.json", 1)
    assert (tmp_path / "theirs" / ".scores.json.0123abcd").exists()


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "data"

    def write_killed() -> None:
        with new_folder(path) as folder:
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = fork.Process(target=write_killed)
    process.start()
    process.join()
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1

    with pytest.raises(OSError, match="no room"), new_folder(path) as folder:
        raise OSError("no room")
    assert list(tmp_path.iterdir()) == []

    with new_folder(path) as folder:
        (folder / "whole").write_text("whole")
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    assert [entry.name for entry in path.iterdir()] == ["whole"]


def test_a_table_continues_without_a_row_that_a_kill_has_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = Table(path)
    for step in range(12, 15):
        table.log_metrics({"train/loss": 0.25, "lr": float("nan")}, step)
        table.save()
    whole = path.read_bytes()
    path.write_bytes(whole + b"nan,1")  # of "nan,15,0.25": a step before those that stay
    resumed = Table(path, resumed_step=15)
    assert path.read_bytes() == whole
    resumed.log_metrics({"train/loss": 0.25, "lr": float("nan")}, 15)
    resumed.log_metrics({"train/loss": 0.25, "lr": float("nan")}, 15)  # as log_step has it
    resumed.save()
    assert [row["step"] for row in read_numbers(path)[1]] == ["12", "13", "14", "15"]

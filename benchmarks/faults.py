"""Fault injection: is a training that is killed again and again bitwise identical to an undisturbed one?

    python -m benchmarks.faults [--kills 30] [--seed 0] [--folder DIR]
    python -m benchmarks.faults --stops    the stop matrix of benchmarks.stops instead

A small Swin V2 learns through the real command line on a CPU, with everything that a checkpoint must carry: averaged
weights, accumulated gradients, drop path, mixup, DataLoader workers. One training runs through. The same one is then
killed with SIGKILL at random moments and resumed in its folder each time. Every second kill waits, after its random
time, for a checkpoint that is being written, and falls once a random share of that file is there; it counts as such
only if the half-written file is found afterwards. Before there is a checkpoint, nothing can be resumed: the first kill
waits for one.

Compared with the training that ran through are the loss of every batch, those trained again after a kill included; at
the end metrics.csv, but for the speed; and both checkpoints, entry by entry and byte by byte, but for the seconds that
a run took, the names of the runs' folders and ModelCheckpoint's ``current_score``, which Lightning does not restore.
Exits with 1 if anything differs, if a run could not be resumed, or if fewer than a third of the kills hit a write.
"""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from benchmarks import stops
from benchmarks.measuring import parse_settings

RUN = Path("runs/faults/0")
CHECKPOINTS = RUN / "checkpoints"
START, RESUME = ("--config", "faults.yaml"), ("--config", f"{RUN}/config.yaml", "--resume")
JOURNAL = "journal.txt"
EPOCHS, SAVE_STEPS, ACCUMULATED, BATCH_SIZE, CLASSES = 3, 4, 2, 4, 4
BATCHES = 801  # of an epoch: odd, so that its last step is made of a single batch
PATIENCE = 300
"""Seconds without a sign of life after which a training counts as stuck."""
NOT_COMPARED = ("wall_seconds", "train_seconds", "current_score")


class TrainingFailed(Exception):
    """A training did not do what it should; the message says which and where its output is."""


class Entry(NamedTuple):
    """A line of the journal."""

    seconds: float
    phase: str
    epoch: int
    batch: int
    step: int
    loss: str


class Journal(Callback):
    """Writes down each trained batch and the start of each validation, as they happen.

    Args:
        path: file to append to.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(trainer, "training", batch_idx, float(outputs["loss"]).hex())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "validation", -1, "-")

    def _write(self, trainer: Trainer, phase: str, batch: int, loss: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{time.time()} {phase} {trainer.current_epoch} {batch} {trainer.global_step} {loss}\n")


def read_journal(folder: Path) -> list[Entry]:
    path = folder / JOURNAL
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # what follows the last newline is unfinished
    words = [line.split() for line in lines]
    return [Entry(float(w[0]), w[1], int(w[2]), int(w[3]), int(w[4]), w[5]) for w in words]


def write_images(root: Path, classes: int, train: int, val: int, size: int) -> None:
    """Noisy squares, a color for each class, in ImageNet's layout; ``train`` and ``val`` are images per class."""
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 216, (classes, 3))
    for split, number in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:02}"
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = colors[label] + rng.normal(0, 40, (size, size, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)


def build_config(images: Path) -> dict[str, Any]:
    """The training: 1,203 steps of a model whose checkpoints have 32 MB."""
    backbone = {"embed_dim": 64, "depths": [1, 1, 2], "num_heads": [2, 4, 8], "window_size": 4, "drop_path_rate": 0.2}
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.98}}
    return {
        "name": "faults",
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": ACCUMULATED,
            "gradient_clip_val": 5.0,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "benchmarks.faults.Journal"}, average],
        },
        "checkpoint": {"filename": "best", "monitor": "val/loss", "mode": "min"},
        "save": {"every_n_steps": SAVE_STEPS},
        "model": {
            "class_path": "swinv2_tasks.tasks.ClassificationTask",
            "init_args": {
                "backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": backbone},
                "dropout": 0.1,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.05}},
                "schedule": {"warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": 1e-5, "base_batch_size": 0},
            },
        },
        "data": {
            "class_path": "swinv2_tasks.datamodules.ImageNetDataModule",
            "init_args": {"root": str(images), "image_size": 32, "batch_size": BATCH_SIZE, "num_workers": 2},
        },
    }


def start_training(folder: Path, number: int, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Starts the command line in a folder; what it says goes to a file there."""
    paths = [str(Path(__file__).absolute().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    # -u: a killed process flushes nothing
    command = [sys.executable, "-u", "-m", "swinv2_tasks", "fit", "--allow=benchmarks.faults", *arguments]
    with build_output_path(folder, number).open("w") as file:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)


def build_output_path(folder: Path, number: int) -> Path:
    return folder / f"start_{number:02}.txt"


def prepare_folder(folder: Path, images: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "faults.yaml").write_text(yaml.safe_dump(build_config(images)))


def wait_for_end(process: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    """Waits until a training ends by itself."""
    entries, since = -1, time.monotonic()
    while process.poll() is None:
        if entries != (entries := len(read_journal(folder))):
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            process.kill()
            raise TrainingFailed(f"stuck for {PATIENCE} s, see {build_output_path(folder, number)}")
        time.sleep(0.2)
    if process.returncode:
        raise TrainingFailed(f"ended with status {process.returncode}, see {build_output_path(folder, number)}")


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], output_path: Path, pause: float
) -> None:
    """Waits for something that a process does; raises ``TrainingFailed`` when it ends or gets stuck before."""
    since = time.monotonic()
    while not condition():
        if process.poll() is not None:
            raise TrainingFailed(f"ended with status {process.returncode} before it could be killed, see {output_path}")
        if time.monotonic() - since > PATIENCE:
            process.kill()
            raise TrainingFailed(f"stuck for {PATIENCE} s, see {output_path}")
        time.sleep(pause)


def read_size(path: Path) -> int:
    """Bytes of a file that may come and go; 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def list_unfinished(folder: Path, pid: int) -> dict[str, int]:
    """The checkpoints that a process has not finished writing, and their bytes so far."""
    return {path.name.split(".")[1]: read_size(path) for path in (folder / CHECKPOINTS).glob(f".*.ckpt.{pid}")}


@dataclass
class Kill:
    """A start of the training that was killed, and what the next one made of it."""

    number: int
    entries: list[Entry]
    """What it did before it was killed."""
    moment: str
    in_write: bool
    resumed_step: int = -1
    resumed_from: str = ""
    corrupt: int = 0
    """Checkpoints that the next start found corrupt."""


def kill_training(
    process: subprocess.Popen[bytes], folder: Path, number: int, delay: float, target: float | None
) -> Kill:
    """Kills a training a while after it has trained its first batch.

    Args:
        process: the training.
        folder: where it works.
        number: counts the starts, from 0.
        delay: seconds after the first batch.
        target: bytes that a checkpoint then being written must have; None: wherever the training is.
    """
    journal, last_checkpoint = folder / JOURNAL, folder / CHECKPOINTS / "last.ckpt"
    output = build_output_path(folder, number)
    entry_count, journal_size = len(read_journal(folder)), read_size(journal)
    wait_until(lambda: read_size(journal) > journal_size and last_checkpoint.exists(), process, output, 0.01)
    time.sleep(delay)
    if target is not None:
        wait_until(
            lambda: max(list_unfinished(folder, process.pid).values(), default=0) >= target, process, output, 0.0005
        )
    process.kill()
    if process.wait() >= 0:
        raise TrainingFailed(f"ended with status {process.returncode} before it could be killed, see {output}")
    entries = read_journal(folder)[entry_count:]
    unfinished = list_unfinished(folder, process.pid)
    moment = ", ".join(f"writing {name}.ckpt ({size / 1e6:.1f} MB)" for name, size in unfinished.items())
    return Kill(number + 1, entries, moment or entries[-1].phase, bool(unfinished))


def resume_training(killed: Kill, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the training again and adds to the kill from where."""
    process, output = start_training(folder, killed.number, RESUME), build_output_path(folder, killed.number)
    wait_until(lambda: "Restoring states" in output.read_text(), process, output, 0.05)
    text = output.read_text()
    match = re.search(r"^resuming \S+ at step (\d+) from (\S+)$", text, re.MULTILINE)
    if match is None:
        process.kill()
        raise TrainingFailed(f"did not resume, see {output}")
    killed.resumed_step, killed.resumed_from = int(match[1]), Path(match[2]).name
    killed.corrupt = text.count(" is corrupt: ")
    return process


def map_losses(entries: list[Entry]) -> dict[tuple[int, int], str]:
    return {(entry.epoch, entry.batch): entry.loss for entry in entries if entry.phase == "training"}


def count_equal_losses(entries: list[Entry], expected: dict[tuple[int, int], str]) -> str:
    """How many of a start's batches had the loss that they should have had."""
    losses = map_losses(entries)
    equal = sum(expected.get(key) == loss for key, loss in losses.items())
    return f"{equal}/{len(losses)}"


def print_row(killed: Kill, following: list[Entry], expected: dict[tuple[int, int], str]) -> None:
    row = (
        str(killed.number),
        str(killed.entries[-1].step),
        killed.moment,
        f"{killed.resumed_step} ({killed.resumed_from})",
        str(following[-1].step if following else killed.resumed_step),
        count_equal_losses(following, expected),
    )
    print(f"| {' | '.join(row)} |", flush=True)


def kill_and_resume(
    folder: Path, kills: int, rng: random.Random, seconds: float, size: int, expected: dict[tuple[int, int], str]
) -> tuple[list[Kill], list[Entry]]:
    """Runs the training with its kills, and prints a row for each once the next start is over.

    Args:
        folder: where it works.
        kills: their number.
        rng: chooses the moments.
        seconds: how long the training takes undisturbed.
        size: bytes of a whole checkpoint.
        expected: the loss of each batch.

    Returns:
        The kills, and what the last start did, which was left to finish.
    """
    progress, records = 0.0, list[Kill]()
    process = start_training(folder, 0, START)
    try:
        for number in range(kills):
            # Spread over what is left of the training.
            delay = rng.uniform(0, 2 * seconds * (1 - progress) / (kills - number + 1))
            target = rng.uniform(0, 0.95 * size) if number % 2 == 0 else None
            records.append(kill_training(process, folder, number, delay, target))
            if number:
                print_row(records[-2], records[-1].entries, expected)
            process = resume_training(records[-1], folder)
            progress = records[-1].resumed_step * ACCUMULATED / len(expected)
        entry_count = sum(len(record.entries) for record in records)
        wait_for_end(process, folder, kills)
    finally:
        process.kill()
    rest = read_journal(folder)[entry_count:]
    if records:
        print_row(records[-1], rest, expected)
    return records, rest


def find_differences(first: Any, second: Any, key_path: str) -> Iterator[str]:
    """Where two checkpoints are not equal, byte by byte."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            yield f"{key_path}: keys {sorted(map(str, first.keys() ^ second.keys()))}"
        for key in first.keys() & second.keys() - {*NOT_COMPARED}:
            yield from find_differences(first[key], second[key], f"{key_path}.{key}")
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            yield f"{key_path}: {len(first)} and {len(second)} entries"
        for index, pair in enumerate(zip(first, second, strict=False)):
            yield from find_differences(*pair, f"{key_path}[{index}]")
    elif isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = (first.dtype, first.shape) == (second.dtype, second.shape)
        if not alike or first.numpy().tobytes() != second.numpy().tobytes():
            yield f"{key_path}: tensors {list(first.shape)} and {list(second.shape)}"
    elif repr(first) != repr(second):
        yield f"{key_path}: {first!r} and {second!r}"


def make_relative(value: Any, folder: Path) -> Any:
    """The same with paths inside a folder made relative to it."""
    if isinstance(value, dict):
        return {make_relative(key, folder): make_relative(entry, folder) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [make_relative(entry, folder) for entry in value]
    return value.replace(f"{folder}/", "") if isinstance(value, str) else value


def count_tensors(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(count_tensors, value.values()))
    return sum(map(count_tensors, value)) if isinstance(value, list | tuple) else isinstance(value, Tensor)


def compare_results(undisturbed: Path, killed: Path) -> bool:
    """Prints what differs in the two runs' checkpoints and metrics, and says whether nothing does."""
    equal = True
    for name in ("last.ckpt", "best.ckpt", "metrics.csv"):
        first, second = (read_result(folder, name) for folder in (undisturbed, killed))
        differences = list(find_differences(first, second, name))
        content = (
            f"{count_tensors(first)} tensors; {', '.join(sorted(first))}"
            if isinstance(first, dict)
            else f"{len(first)} rows"
        )
        print(f"{name}: {f'{len(differences)} DIFFERENCES' if differences else 'equal'} ({content})")
        for difference in differences[:20]:
            print(f"  {difference}")
        equal = equal and not differences
    return equal


def read_result(folder: Path, name: str) -> Any:
    """A checkpoint of the run with paths relative to the folder, or the metrics without the speed."""
    if name.endswith(".ckpt"):
        return make_relative(torch.load(folder / CHECKPOINTS / name, weights_only=True), folder)
    with (folder / RUN / name).open(newline="") as file:
        return [{key: cell for key, cell in row.items() if key != "img/s"} for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Settings:
    """What is done to a training.

    Args:
        kills: how often it is killed.
        seed: of the random moments.
        folder: new folder to work in, which is kept; default: a temporary one.
        stops: run the whole stop matrix of ``benchmarks.stops`` instead.
    """

    kills: int = 30
    seed: int = 0
    folder: str | None = None
    stops: bool = False


def main(settings: Settings) -> int:
    if settings.stops:
        return stops.main(stops.Settings(folder=settings.folder))
    if settings.folder and Path(settings.folder).exists():
        sys.exit(f"{settings.folder} exists already; name a new folder")
    folder = Path(settings.folder or tempfile.mkdtemp(prefix="faults-")).absolute()
    images, undisturbed, killed = folder / "images", folder / "undisturbed", folder / "killed"
    write_images(images, CLASSES, BATCHES * BATCH_SIZE // CLASSES, val=40, size=40)
    prepare_folder(undisturbed, images)
    prepare_folder(killed, images)
    try:
        wait_for_end(start_training(undisturbed, 0, START), undisturbed, 0)
        entries = read_journal(undisturbed)
        expected, seconds = map_losses(entries), entries[-1].seconds - entries[0].seconds
        size = read_size(undisturbed / CHECKPOINTS / "last.ckpt")
        print(f"undisturbed: {entries[-1].step} steps in {seconds:.0f} s, a checkpoint of {size / 1e6:.1f} MB every")
        print(f"{SAVE_STEPS} steps and after each of {EPOCHS} validations; torch {torch.__version__}, one thread\n")
        print("| kill | at step | while | resumed from step | until step | losses equal |")
        print("|---|---|---|---|---|---|", flush=True)
        kills, rest = kill_and_resume(killed, settings.kills, random.Random(settings.seed), seconds, size, expected)
    except TrainingFailed as failure:
        print(f"\nFAILED: a training {failure}")
        return 1
    trained = [pair for start in (*(kill.entries for kill in kills), rest) for pair in map_losses(start).items()]
    unequal = sum(expected.get(key) != loss for key, loss in trained) + len(expected.keys() - dict(trained).keys())
    in_write = sum(kill.in_write for kill in kills)
    lost = max((kill.entries[-1].step - kill.resumed_step for kill in kills), default=0)
    print(f"\nresumed from an intact checkpoint: {len(kills)}/{settings.kills} kills,", end=" ")
    print(f"{in_write} of them during a write")
    print(f"checkpoints found corrupt: {sum(kill.corrupt for kill in kills)}; steps lost by a kill: at most {lost}")
    repeated = len(trained) - len(expected)
    print(f"losses: {len(trained)} batches, {repeated} of them trained again; {unequal} not equal")
    equal = compare_results(undisturbed, killed) and not unequal
    hits_enough = 3 * in_write >= len(kills)
    print(f"{settings.kills}/{settings.kills}: the end is bitwise equal" if equal else "FAILED: not equal")
    if not hits_enough:
        print("FAILED: fewer than a third of the kills hit a write")
    if equal and hits_enough and not settings.folder:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    return 0 if equal and hits_enough else 1


if __name__ == "__main__":
    sys.exit(main(parse_settings(Settings, __doc__)))

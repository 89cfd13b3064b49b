"""Stop matrix: does every command stop on every signal, in every phase, and say what to do next?

    python -m benchmarks.stops [--phases start training …] [--signals TERM INT …] [--processes 1 2] [--workers 0 2]
                               [--to first group last] [--rerun false] [--folder DIR]

Each cell starts the real command line on a CPU, waits until it is in a phase, sends one signal and waits for the end:
to the process that was started, to its whole group, as a terminal's Ctrl-C and clusters do, or to the last rank alone.
Training, validation and prediction run on one and on two processes, with and without DataLoader workers. Phases are
stretched by a callback, so that the signal falls into them; a save is met while its file is being written.

Printed are, per cell, the exit status, the seconds from the signal to the end, whether the message says what to do
next, and whether that works: the command that is printed, or the same one, ends with status 0. Exits with 1 if a cell
has another status than 128 + the signal's number, takes more than 20 seconds, leaves a process behind, says nothing,
shows a traceback, or does not resume.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, Trainer
from PIL import Image

from benchmarks.measuring import parse_settings
from swinv2_tasks.sample_data.writer import write_sample_data

LIMIT = 20.0
"""Seconds within which a command must have ended."""

PATIENCE = 240.0
"""Seconds in which a command must reach its phase, or resume."""

SLOW = "STOPS_SLOW"
"""Environment variable: seconds that each batch takes longer."""

ON_RANKS = ("start", "training", "validation", "save", "predict")
PHASES = (*ON_RANKS, "score", "sweep", "data check", "data optimize")
ADVICE = ("To resume: ", "same command", "To resume, add")
CALLBACK = "benchmarks.stops.Moments"


class Moments(Callback):
    """Lets each batch take longer, and writes a file as a phase is reached."""

    def __init__(self) -> None:
        self.seconds = float(os.environ.get(SLOW, "0"))

    def _reach(self, trainer: Trainer, phase: str) -> None:
        if self.seconds and not trainer.sanity_checking:
            Path(f"reached {phase} {trainer.global_rank}").touch()
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:  # signals cut a sleep short
                time.sleep(0.02)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= 2:
            self._reach(trainer, "training")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._reach(trainer, "validation")

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._reach(trainer, "predict")


@dataclass(frozen=True)
class Settings:
    """Which cells are run.

    Args:
        phases: what the command is at; default: all.
        signals: names without SIG.
        processes: ranks of fit and predict.
        workers: DataLoader workers of fit and predict.
        to: who gets the signal: first, group or last.
        rerun: whether to do what the message says.
        folder: new folder to work in, which is kept; default: a temporary one.
    """

    phases: list[str] = field(default_factory=lambda: [*PHASES])
    signals: list[str] = field(default_factory=lambda: ["TERM", "INT", "HUP", "USR1", "QUIT"])
    processes: list[int] = field(default_factory=lambda: [1, 2])
    workers: list[int] = field(default_factory=lambda: [0, 2])
    to: list[str] = field(default_factory=lambda: ["first"])
    rerun: bool = True
    folder: str | None = None


@dataclass(frozen=True)
class Cell:
    """A command that is stopped."""

    phase: str
    number: signal.Signals
    processes: int
    workers: int
    to: str


@dataclass
class Outcome:
    """How it ended."""

    status: int | None
    seconds: float
    says_next: bool
    resumes: bool | None
    fault: str


def list_cells(settings: Settings) -> list[Cell]:
    cells = []
    for phase in settings.phases:
        for name in settings.signals:
            number = signal.Signals[f"SIG{name}"]
            for processes in settings.processes if phase in ON_RANKS else [1]:
                for workers in settings.workers if phase in ON_RANKS else [0]:
                    for to in settings.to:
                        if processes > 1 or to != "last":
                            cells.append(Cell(phase, number, processes, workers, to))
    return cells


# ---- what is stopped


def write_inputs(folder: Path) -> None:
    """Sample data, a config, a checkpoint, and what the other commands work on."""
    write_sample_data(folder / "data")
    config: dict[str, Any] = {
        "name": "stops",
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "max_epochs": 2,
            "limit_train_batches": 8,
            "limit_val_batches": 8,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "callbacks": [{"class_path": CALLBACK}],
        },
        "checkpoint": {"filename": "best", "monitor": "val/loss", "mode": "min"},
        "save": {"every_n_steps": 1},
        "model": {
            "class_path": "swinv2_tasks.tasks.ClassificationTask",
            "init_args": {
                "backbone": {
                    "class_path": "swinv2_tasks.backbone.SwinTransformerV2",
                    "init_args": {"embed_dim": 96, "depths": [1, 1, 2], "num_heads": [3, 6, 12], "window_size": 4},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.05}},
                "schedule": {"warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": 1e-5, "base_batch_size": 0},
            },
        },
        "data": {
            "class_path": "swinv2_tasks.datamodules.ImageNetDataModule",
            "init_args": {"root": str(folder / "data" / "imagenet"), "image_size": 32, "batch_size": 4},
        },
    }
    (folder / "stops.yaml").write_text(yaml.safe_dump(config))
    run_to_end(["fit", "--config=stops.yaml", "--trainer.max_epochs=1", "--allow=benchmarks.stops"], folder)

    for name in ("truth", "predicted"):
        (folder / name).mkdir()
        Image.fromarray(np.ones((1500, 1500), np.uint8)).save(folder / name / "0.png")
        for k in range(1, 3000):
            os.link(folder / name / "0.png", folder / name / f"{k}.png")

    videos = sorted((folder / "data" / "kinetics" / "train").rglob("*.mp4"))
    for k in range(400):
        target = folder / "videos" / "train" / videos[k % len(videos)].parent.name / f"{k}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos[k % len(videos)], target)
    images = sorted((folder / "data" / "imagenet" / "train").rglob("*.jpg"))
    for k in range(40_000):
        target = folder / "pictures" / "train" / images[k % len(images)].parent.name / f"{k}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(images[k % len(images)], target)


def build_command(cell: Cell, inputs: Path) -> list[str]:
    """The command of a cell; it runs in a folder of its own."""
    checkpoint = inputs / "runs" / "stops" / "0" / "checkpoints" / "last.ckpt"
    many = [f"--data.num_workers={cell.workers}"]
    if cell.processes > 1:
        many += [f"--trainer.devices={cell.processes}", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    callback = [f"--trainer.callbacks+={CALLBACK}", "--allow=benchmarks.stops"]
    if cell.phase in ("start", "training", "validation", "save"):
        return ["fit", f"--config={inputs / 'stops.yaml'}", "--allow=benchmarks.stops", *many]
    if cell.phase == "predict":
        source = f"--data.source={inputs / 'data' / 'imagenet' / 'val'}"
        options = ["--output=out", "--data.batch_size=4", *callback, *many]
        return ["predict", f"--ckpt_path={checkpoint}", source, *options]
    if cell.phase == "sweep":
        quiet = ["--trainer.limit_val_batches=2", "--data.num_workers=0"]
        sizes = ["--windows", "2", "4", "--sizes", "32", "64"]
        return ["sweep", f"--ckpt_path={checkpoint}", "--output=out", *sizes, *quiet]
    return {
        "score": ["score", "ade20k", f"--annotations={inputs / 'truth'}", f"--predictions={inputs / 'predicted'}"],
        "data check": ["data", "check", "kinetics", "videos", "--workers=2"],
        "data optimize": ["data", "optimize", "imagenet", "pictures", "out", "--workers=2", "--shard_mb=1"],
    }[cell.phase]


def build_condition(cell: Cell, folder: Path, started: float, start_seconds: float) -> Callable[[], bool]:
    """Whether the command is in the phase."""
    last = cell.processes - 1
    if cell.phase == "start":
        share = 0.1 + 0.8 * ((cell.number * 7 + cell.processes * 3 + cell.workers) % 10) / 10
        return lambda: time.monotonic() - started > share * start_seconds
    if cell.phase == "save":
        return lambda: (folder / "reached training 0").exists() and any(folder.glob("runs/*/*/checkpoints/.*.ckpt*"))
    if cell.phase == "score":
        return lambda: time.monotonic() - started > start_seconds + 1
    if cell.phase == "data check":
        return lambda: count_lines(folder / "videos" / "checked_videos.csv") > 3
    if cell.phase == "data optimize":
        return lambda: count_lines(folder / "out" / "train.partial" / "plan.jsonl") > 2
    if cell.phase == "sweep":
        return lambda: (folder / "out" / "sweep.csv").is_file()
    return lambda: (folder / f"reached {cell.phase} {last}").exists()


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0


# ---- running


def start(arguments: list[str], folder: Path, log: Path, slow: float = 0.0) -> subprocess.Popen[bytes]:
    """Starts the command line in a session of its own; what it says goes to a file."""
    paths = [str(Path(__file__).absolute().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", SLOW: str(slow)}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "swinv2_tasks", *arguments],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_to_end(arguments: list[str], folder: Path) -> float:
    """Runs a command that must succeed; returns its seconds."""
    started = time.monotonic()
    process = start(arguments, folder, folder / "log.txt")
    if process.wait(PATIENCE):
        sys.exit(f"{' '.join(arguments)}\n{(folder / 'log.txt').read_text()[-3000:]}")
    return time.monotonic() - started


def find_group(group: int) -> list[int]:
    """The processes of a group that are no zombies, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def find_last_rank(group: int, processes: int) -> int | None:
    """The process of the last rank."""
    for pid in find_group(group):
        with suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if f"LOCAL_RANK={processes - 1}".encode() in environment and parent == group:
                return pid
    return None


def send(cell: Cell, process: subprocess.Popen[bytes]) -> None:
    if cell.to == "group":
        os.killpg(process.pid, cell.number)
        return
    pid = find_last_rank(process.pid, cell.processes) if cell.to == "last" else process.pid
    os.kill(pid or process.pid, cell.number)


def stop(cell: Cell, folder: Path, inputs: Path, start_seconds: float, rerun: bool) -> Outcome:
    """Runs a cell."""
    folder.mkdir()
    if cell.phase in ("data check", "data optimize"):
        name = "videos" if cell.phase == "data check" else "pictures"
        (folder / name).symlink_to(inputs / name)
        if name == "videos":  # where it writes
            (folder / name).unlink()
            shutil.copytree(inputs / name, folder / name, copy_function=os.link)
    command, log = build_command(cell, inputs), folder / "stopped.txt"
    started = time.monotonic()
    process = start(command, folder, log, slow=0.3)
    is_reached = build_condition(cell, folder, started, start_seconds)
    try:
        while not is_reached():
            if process.poll() is not None or time.monotonic() - started > PATIENCE:
                return Outcome(process.returncode, 0.0, False, None, f"did not come to {cell.phase}")
            time.sleep(0.001)
        send(cell, process)
        sent = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        seconds = time.monotonic() - sent
        while (left := find_group(process.pid)) and time.monotonic() - sent < LIMIT:
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    text = log.read_text(errors="replace")
    says_next = any(advice in text for advice in ADVICE)
    # Until Python has come to the command line, the signal itself ends the process: to a shell the same status.
    is_early = cell.phase == "start" and process.returncode == -cell.number
    faults = {
        "status": process.returncode != 128 + cell.number and not is_early,
        "slow": seconds > LIMIT,
        f"leaves {len(left)} processes": bool(left),
        "says nothing": not says_next and not is_early,
        "traceback": "Traceback" in text or "Error" in text,
    }
    fault = ", ".join(name for name, is_one in faults.items() if is_one)
    resumes = do_next(cell, text, command, folder) if rerun else None
    return Outcome(process.returncode, seconds, says_next or is_early, resumes, fault)


def do_next(cell: Cell, text: str, command: list[str], folder: Path) -> bool:
    """Whether what the message says to do succeeds."""
    match = re.search(r"To resume: swinv2-tasks (.*)", text)
    arguments = match[1].rstrip(".").split() if match else command
    if cell.phase == "score":  # as long as any scoring: there is nothing to resume
        return True
    process = start(arguments, folder, folder / "resumed.txt")
    try:
        return process.wait(PATIENCE) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main(settings: Settings) -> int:
    if settings.folder and Path(settings.folder).exists():
        sys.exit(f"{settings.folder} exists already; name a new folder")
    for name in settings.signals:  # in the background a shell lets some be ignored, which commands would inherit
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_DFL)
    folder = Path(settings.folder or tempfile.mkdtemp(prefix="stops-")).absolute()
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    write_inputs(inputs)
    arguments = ["fit", "--config=stops.yaml", "--trainer.max_steps=1", "--name=start", "--allow=benchmarks.stops"]
    start_seconds = run_to_end([*arguments, "--trainer.limit_val_batches=0"], inputs)
    print(f"a start takes {start_seconds:.0f} s\n")
    print("| phase | signal | to | processes | workers | status | seconds | says what next | resumes |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    worst, faulty, cells = 0.0, 0, list_cells(settings)
    for index, cell in enumerate(cells):
        place = folder / f"{index:03}"
        outcome = stop(cell, place, inputs, start_seconds, settings.rerun)
        is_faulty = bool(outcome.fault) or outcome.resumes is False
        faulty += is_faulty
        worst = max(worst, outcome.seconds)
        row = (
            *(cell.phase, cell.number.name[3:], cell.to, cell.processes, cell.workers),
            *(outcome.status, f"{outcome.seconds:.1f}", "yes" if outcome.says_next else "NO"),
            "-" if outcome.resumes is None else "yes" if outcome.resumes else "NO",
        )
        print(f"| {' | '.join(map(str, row))} | {outcome.fault}", flush=True)
        if not is_faulty:
            shutil.rmtree(place, ignore_errors=True)
    words = (
        "stop, say what to do next and resume" if settings.rerun else "stop and say what to do next; none was resumed"
    )
    print(f"\n{len(cells) - faulty}/{len(cells)} cells {words}; at most {worst:.1f} s")
    if faulty:
        print(f"kept: {folder}")
    elif not settings.folder:
        shutil.rmtree(folder)
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main(parse_settings(Settings, __doc__)))

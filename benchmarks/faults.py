"""Fault injection: is a training that is killed again and again equal to an undisturbed one, in every file?

    python -m benchmarks.faults [--kills 100] [--tasks classification video] [--ranks 1 2] [--seed 0] [--folder DIR]
    python -m benchmarks.faults --stops    the stop matrix of benchmarks.stops instead

A small model of each task trains on a CPU, in one process and in two (DDP by gloo), each with two DataLoader workers:
averaged weights, accumulated gradients, a save every other step, a validation in each epoch. Each of these trainings
runs through once. The same one is then killed with SIGKILL in phase after phase, at a moment drawn at random within the
phase, and resumed in its folder each time:

    start               of the first start, in which nothing can be resumed yet
    first step          before its gradients are there, or before the optimizer steps
    mid-epoch           as a step ends, after the first save
    resumed start       before the first batch of a start that resumes
    accumulation        between the batches of a step
    validation          before, in or after its batches
    save of the best    of best.ckpt: as it is opened, at a random byte, before and after it gets its name
    save of the last    of last.ckpt: as above, and between the two names that are moved
    export              of weights.safetensors: as above
    closing             summary.json and the learning curve: as above
    after the end       when all is written

A run that is killed before its first save begins anew, as its message says. Of two processes one is killed and then the
other, wherever that is. Processes are forked from one that has imported the package, and run the command line's main.

Compared with the training that ran through are the loss of every batch in each process, those trained again included;
and every file of the run's folder, records as well as tensors: see ``benchmarks/whole_runs.py``. Exits with 1 if
anything differs, if a kill lost more than the steps since the last save, or if a phase was not reached.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import stops
from benchmarks.measuring import parse_settings
from benchmarks.whole_runs import compare_runs, count_tensors, list_files, read
from tests.helpers.processes import Result, Running, find_port, start
from tests.helpers.tiny_tasks import TINY_TASKS

TaskName = Literal["classification", "segmentation", "video", "simmim", "mask_rcnn"]
TASKS: tuple[TaskName, ...] = ("classification", "segmentation", "video", "simmim", "mask_rcnn")

SAVE_STEPS, ACCUMULATED, EPOCHS = 2, 2, 3
SAMPLES = {"classification": 24, "segmentation": 48, "video": 36, "simmim": 20, "mask_rcnn": 48}
"""For training, of each class where there are classes: an epoch has from 5 to 6 steps in one process."""

PATIENCE = 240
"""Seconds after which a start counts as stuck."""

SETTINGS = (
    "--trainer.num_sanity_val_steps=0",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accelerator=cpu",
    f"--trainer.max_epochs={EPOCHS}",
    f"--trainer.accumulate_grad_batches={ACCUMULATED}",
    f"--save.every_n_steps={SAVE_STEPS}",
    "--data.num_workers=2",
    "--allow=benchmarks.faults",
)
CALLBACKS = [
    {"class_path": "tests.helpers.faults.KillAt"},
    {"class_path": "benchmarks.faults.Losses"},
    {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
]
OF_A_FILE = ("opened", "bytes", "written", "moved")
"""Moments of the writing of a file."""


class TrainingFailed(Exception):
    """A training did not do what it should; the message says which and where its output is."""


class Losses(Callback):
    """Writes down the loss of each trained batch, in a file of each process."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with open(f"losses_{trainer.global_rank}.txt", "a") as file:
            loss = float(outputs["loss"]).hex()
            file.write(f"{trainer.current_epoch} {batch_idx} {trainer.global_step} {loss}\n")


class Loss(NamedTuple):
    """A line that ``Losses`` has written."""

    epoch: int
    batch: int
    step: int
    value: str


def read_losses(folder: Path, rank: int) -> list[Loss]:
    path = folder / f"losses_{rank}.txt"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # what follows the last newline is unfinished
    words = [line.split() for line in lines]
    return [Loss(int(w[0]), int(w[1]), int(w[2]), w[3]) for w in words]


# ---- kills


def hook(name: str, skips: tuple[int, int] = (0, 0), accumulating: bool | None = None) -> dict[str, Any]:
    """What ``KillAt`` takes for a call of a hook; ``skips`` are the fewest and the most calls before it."""
    return {"hook": name, "skips": skips, "accumulating": accumulating}


def writing(*names: str) -> list[dict[str, Any]]:
    """What ``KillAt`` takes for each moment in which files are written."""
    return [{"file": name, "moment": moment, "skip": 0} for name in names for moment in OF_A_FILE]


PHASES: dict[str, list[dict[str, Any]]] = {
    "start": [hook("setup"), hook("on_fit_start"), hook("on_train_start"), *writing("run.json", "config.yaml")],
    "first step": [hook("on_before_backward"), hook("on_after_backward"), hook("on_before_optimizer_step")],
    "mid-epoch": [hook("on_train_batch_end", (2, 3), accumulating=False)],
    "resumed start": [hook("on_fit_start"), hook("on_train_start"), *writing("run.json", "metrics.csv")],
    "accumulation": [hook("on_train_batch_end", (0, 1), accumulating=True), hook("on_before_zero_grad", (0, 1))],
    "validation": [
        hook("on_validation_start"),
        hook("on_validation_batch_end", (0, 1)),
        hook("on_validation_epoch_end"),
    ],
    "save of the best": writing("best.ckpt"),
    "save of the last": [
        *writing("newest.ckpt"),
        {"file": "previous.ckpt", "moment": "written", "skip": 0},
        {"file": "previous.ckpt", "moment": "moved", "skip": 0},
        {"file": "last.ckpt", "moment": "written", "skip": 0},
        {"file": "last.ckpt", "moment": "moved", "skip": 0},
    ],
    "export": writing("weights.safetensors"),
    "closing": [
        *(moment for moment in writing("summary.json") if moment["moment"] != "moved"),  # which makes the run finished
        *writing("learning_curve.png"),
        hook("on_train_end"),
        hook("on_fit_end"),
    ],
    "after the end": [{"file": "summary.json", "moment": "moved", "skip": 0}, hook("teardown")],
}
"""Moments of each phase, in the order in which a training comes through them."""


def draw_moment(phase: str, rng: random.Random, ranks: int) -> dict[str, Any]:
    """One of the moments of a phase, as ``KillAt`` takes it."""
    moment = dict(rng.choice(PHASES[phase]))
    if "hook" in moment:
        moment["skip"] = rng.randint(*moment.pop("skips"))
        moment["rank"] = rng.randrange(ranks)
    else:
        moment["bytes"] = rng.randint(1, 12_000 if moment["file"].endswith((".ckpt", ".safetensors")) else 200)
    return moment


def describe_moment(moment: dict[str, Any]) -> str:
    if "file" in moment:
        at = f"at byte {moment['bytes']}" if moment["moment"] == "bytes" else moment["moment"]
        return f"{moment['file']} {at}"
    rank = f", rank {moment['rank']}" if moment["rank"] else ""
    return f"{moment['hook']}, call {moment['skip'] + 1}{rank}"


def choose_phases(kills: int, rng: random.Random) -> list[str]:
    """Phases for the kills of one training, in their order; none twice as long as there are enough."""
    whole, rest = divmod(kills, len(PHASES))
    numbers = [*range(len(PHASES))] * whole + rng.sample(range(len(PHASES)), rest)
    return [list(PHASES)[number] for number in sorted(numbers)]


# ---- trainings


@dataclass
class Training:
    """The training of a task on some processes, in a folder."""

    name: str
    ranks: int
    folder: Path
    starts: int = 0

    def prepare(self, data: Path) -> None:
        config = {"name": "faults", "trainer": {"callbacks": CALLBACKS}}
        TINY_TASKS[self.name].config(self.folder, data, **config)

    @property
    def run(self) -> Path:
        """The folder of the newest run."""
        runs = [path for path in self.folder.glob("runs/faults/*") if path.name.isdecimal()]
        return max(runs, key=lambda path: int(path.name), default=self.folder / "runs/faults/0")

    def saved_step(self) -> int | None:
        """The latest step of which there is a checkpoint."""
        paths = self.run.glob("checkpoints/[!.]*.ckpt")
        return max((torch.load(path, weights_only=True, mmap=True)["global_step"] for path in paths), default=None)

    def start(self, moment: dict[str, Any] | None = None) -> list[Running]:
        """Starts the command line, or resumes the newest run if it has a checkpoint."""
        self.starts += 1
        is_resumed = self.saved_step() is not None
        run = self.run.relative_to(self.folder)
        config = ["--config", f"{run}/config.yaml", "--resume"] if is_resumed else ["--config", "config.yaml"]
        arguments = ["fit", *config, *(() if is_resumed else SETTINGS), "--allow=benchmarks.faults"]
        variables = {"KILL_AT": json.dumps(moment or {})}
        if self.ranks == 1:
            return [start(arguments, self.folder, **variables)]
        variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(find_port()), "NODE_RANK": "0"}
        arguments += [f"--trainer.devices={self.ranks}", "--trainer.strategy=ddp"]
        return [start(arguments, self.folder, **variables, LOCAL_RANK=str(rank)) for rank in range(self.ranks)]

    def finish(self) -> Result:
        """Trains to the end."""
        results = [process.wait(PATIENCE) for process in self.start()]
        for result in results:
            if result.status:
                raise TrainingFailed(f"ended with status {result.status}: {result.errors[-2000:]}")
        return results[0]

    def kill(self, moment: dict[str, Any]) -> Result:
        """Trains until one process is killed, and kills the others then."""
        processes = self.start(moment)
        end = time.monotonic() + PATIENCE
        while not any((process.process.exitcode or 0) < 0 for process in processes):  # others may end before it
            if time.monotonic() > end or all(process.process.exitcode is not None for process in processes):
                break
            time.sleep(0.005)
        ended = [process.process.exitcode for process in processes]
        for process in processes:  # with their DataLoader workers
            if process.process.pid is not None:
                _kill_group(process.process.pid)
        results = [process.wait() for process in processes]
        if not {*ended} & {-signal.SIGKILL, -signal.SIGXFSZ}:
            tail = results[0].output[-500:] + results[0].errors[-2000:]
            raise TrainingFailed(f"was not killed at {describe_moment(moment)}, but ended with status {ended}: {tail}")
        return results[0]

    def losses(self, rank: int) -> list[Loss]:
        return read_losses(self.folder, rank)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@dataclass
class Outcome:
    """What kills did to a training.

    Attributes:
        kills: their number.
        lost: most steps that one of them lost.
        trained: batches trained by the disturbed training, over all processes, those trained again included.
        again: how many of these were trained again.
        problems: what is not as it should be.
        compared: how many files were compared.
        tensors: how many tensors these hold.
    """

    kills: int = 0
    lost: int = 0
    trained: int = 0
    again: int = 0
    problems: list[str] = field(default_factory=list)
    compared: int = 0
    tensors: int = 0


def kill_and_resume(undisturbed: Training, killed: Training, phases: Sequence[str], rng: random.Random) -> Outcome:
    """Kills a training in each phase, lets it end, and compares it with the one that ran through."""
    outcome = Outcome()
    resumed = None
    for phase in phases:
        moment = draw_moment(phase, rng, killed.ranks)
        saved_before, seen = killed.saved_step(), len(killed.losses(0))
        result = killed.kill(moment)
        outcome.kills += 1
        resumed = resumed_step(result)
        if resumed != saved_before and f"{killed.run.name} is finished" not in result.output:
            outcome.problems.append(f"resumed at step {resumed}, though step {saved_before} was saved")
        saved = killed.saved_step() or 0
        step = max((loss.step for loss in killed.losses(0)[seen:]), default=saved)
        outcome.lost = max(outcome.lost, step - saved)
        row = (killed.name, str(killed.ranks), phase, describe_moment(moment), str(step), str(saved))
        print(f"| {' | '.join(row)} |", flush=True)
    killed.finish()
    if outcome.lost > SAVE_STEPS:
        outcome.problems.append(f"a kill lost {outcome.lost} steps, a save comes every {SAVE_STEPS}")

    for rank in range(killed.ranks):
        expected = {loss[:2]: loss.value for loss in undisturbed.losses(rank)}
        trained = killed.losses(rank)
        outcome.trained += len(trained)
        outcome.again += len(trained) - len(expected)
        unequal = sum(expected.get(loss[:2]) != loss.value for loss in trained)
        missing = len(expected.keys() - {loss[:2] for loss in trained})
        if unequal or missing:
            outcome.problems.append(f"rank {rank}: {unequal} losses are not equal, {missing} batches were not trained")
    outcome.problems += compare_runs(undisturbed.run, killed.run)
    names = list_files(undisturbed.run)
    outcome.compared = len(names)
    outcome.tensors = sum(count_tensors(read(undisturbed.run / name, undisturbed.run)) for name in names)
    return outcome


def resumed_step(result: Result) -> int | None:
    """The step that a start says to resume at; None where it says none."""
    match = re.search(r"^resuming \S+ at step (\d+) from", result.output, re.MULTILINE)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Settings:
    """What is done to trainings.

    Args:
        kills: how often they are killed, all together.
        tasks: which are trained.
        ranks: on how many processes: each task on each number.
        seed: of the random moments.
        folder: new folder to work in, which is kept; default: a temporary one.
        stops: run the whole stop matrix of ``benchmarks.stops`` instead.
    """

    kills: int = 100
    tasks: list[TaskName] = field(default_factory=lambda: [*TASKS])
    ranks: list[int] = field(default_factory=lambda: [1, 2])
    seed: int = 0
    folder: str | None = None
    stops: bool = False


def main(settings: Settings) -> int:
    if settings.stops:
        return stops.main(stops.Settings(folder=settings.folder))
    if settings.folder and Path(settings.folder).exists():
        sys.exit(f"{settings.folder} exists already; name a new folder")
    folder = Path(settings.folder or tempfile.mkdtemp(prefix="faults-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    cases = [(name, ranks) for name in settings.tasks for ranks in settings.ranks]
    rng = random.Random(settings.seed)
    outcomes: dict[tuple[str, int], Outcome] = {}
    phase_counts: Counter[str] = Counter()
    print(f"torch {torch.__version__}, one thread in each process\n")
    print("| task | processes | phase | killed at | step | saved |\n|---|---|---|---|---|---|", flush=True)
    for index, (name, ranks) in enumerate(cases):
        kills = settings.kills // len(cases) + (index < settings.kills % len(cases))
        phases = choose_phases(kills, rng)
        phase_counts.update(phases)
        data = folder / f"{name}_data"
        if not data.exists():
            TINY_TASKS[name].write_data(data, train=SAMPLES[name], val=6)
        undisturbed, killed = (Training(name, ranks, folder / f"{name}_{ranks}_{kind}") for kind in ("whole", "killed"))
        try:
            for training in (undisturbed, killed):
                training.prepare(data)
            undisturbed.finish()
            outcomes[name, ranks] = kill_and_resume(undisturbed, killed, phases, rng)
        except (TrainingFailed, TimeoutError) as failure:
            outcomes[name, ranks] = Outcome(problems=[f"{type(failure).__name__}: {failure}"])
        for problem in outcomes[name, ranks].problems:
            print(f"  {name} on {ranks}: {problem}", flush=True)

    print("\n| task | processes | kills | batches | again | steps lost | files | tensors | end |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, ranks), done in outcomes.items():
        figures = (done.kills, done.trained, done.again, done.lost, done.compared, done.tensors)
        end = f"{len(done.problems)} DIFFERENCES" if done.problems else "equal"
        print(f"| {name} | {ranks} | {' | '.join(map(str, figures))} | {end} |")
    print(f"\nkills by phase: {', '.join(f'{phase} {number}' for phase, number in phase_counts.items())}")
    total = sum(outcome.kills for outcome in outcomes.values())
    failed = [case for case, outcome in outcomes.items() if outcome.problems]
    if failed:
        print(f"FAILED: {len(failed)} of {len(cases)} trainings; kept: {folder}")
        return 1
    print(f"{total}/{settings.kills} kills: nothing lost beyond the last save, all {len(cases)} ends equal")
    if not settings.folder:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_settings(Settings, __doc__)))

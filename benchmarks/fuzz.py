"""Fuzzing: what do the commands do with files that are broken, odd or hostile?

    python -m benchmarks.fuzz [--cases 5000] [--seed 0] [--formats config checkpoint] [--output DIR]

Small datasets, trained runs, weights, shards and predictions are written once. Each case changes one file of them at
random, always in the same way for the same seed and number, and runs a command on it by its real entry, in a process of
its own with 2 GiB of memory and 10 s of processor time. Bytes are flipped, cut, inserted and spliced; what has a known
format is also taken apart, given odd values, and put together again with right checksums; calls of functions are put
into configs and pickles.

How cases end: ok; refusal, a message of at most three lines; traceback, or a message in terms of Python; crash, by a
signal; hang; memory, more than the limit; execution, where something in the file was called, imported, asked for over
the network, or named a file to write outside of the folder. All but the first two count as failures: they are printed,
their files are kept below DIR/failures, and the exit status is 1.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: threads do not survive a fork

import torch

from benchmarks.fuzzing.mutations import mutate
from benchmarks.fuzzing.processes import (
    MEMORY,
    OUTCOMES,
    Case,
    Ending,
    limit_memory,
    remove,
    run_all,
    run_in_child,
    wait_for,
)
from benchmarks.fuzzing.seeds import Target, list_targets, write_seeds
from benchmarks.measuring import parse_settings
from swinv2_tasks.progress import WorkProgress

FAILURES = OUTCOMES[2:]

LAZY = (
    *("swinv2_tasks.cli.tasks_cli", "swinv2_tasks.commands.weights", "swinv2_tasks.commands.score"),
    *("swinv2_tasks.commands.data", "swinv2_tasks.commands.sweep.sweep", "swinv2_tasks.commands.memory.command"),
    *("matplotlib.pyplot", "litdata", "faster_coco_eval", "pycocotools.cocoeval", "av", "decord"),
    *("torch.utils.tensorboard", "torchvision.datasets.folder", "torch.utils._sympy.functions"),
    *(
        "pycocotools.coco",
        "matplotlib.backends.backend_agg",
        "av.subtitles",
    ),
    *("PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.PpmImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin"),
    *("PIL.AvifImagePlugin", "PIL.Jpeg2KImagePlugin", "swinv2_tasks.datamodules.transforms.detection_steps"),
    *("swinv2_tasks.datamodules.transforms.segmentation_steps", "rich._emoji_codes", "fsspec.implementations.local"),
)
"""What commands import when they need it: imported once, before the first case."""


@dataclass(frozen=True)
class Settings:
    """What is tried.

    Args:
        cases: number of mutated files.
        seed: of the mutations and of what is mutated.
        first: number of the first case; with --cases 1, one is tried again.
        formats: which of the formats are tried, as the table calls them; default: all.
        processes: cases that run at a time.
        output: new folder, in which seeds and failing cases are kept; default: a temporary one.
        keep: keep the folder of every case.
        quick: only commands that build no trainer: weights, score, --print_config.
    """

    cases: int = 5000
    seed: int = 0
    first: int = 0
    formats: list[str] | None = None
    processes: int = 2
    output: str | None = None
    keep: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Plan:
    """A case: a target, and the file of it that is changed."""

    number: int
    target: Target
    file: str
    steps: list[str]


class Fuzzer:
    """Makes cases of seeds.

    Args:
        seeds: folder that ``write_seeds`` has made.
        work: folder for the folders of cases.
        seed: of all random choices.
        formats: those that are tried; None: all.
        quick: only commands that build no trainer.
    """

    def __init__(
        self, seeds: Path, work: Path, seed: int, formats: Sequence[str] | None = None, quick: bool = False
    ) -> None:
        self.seeds, self.work, self.seed = seeds, work, seed
        self.targets = [target for target in list_targets(quick) if formats is None or target.format in formats]
        if not self.targets:
            known = sorted({target.format for target in list_targets()})
            sys.exit(f"no format is called {formats}; there are {', '.join(known)}")
        self.plans: dict[int, Plan] = {}
        work.mkdir(exist_ok=True)

    def unchanged(self) -> Iterator[tuple[int, Sequence[str], Path]]:
        """A case of each command on a folder in which nothing is changed: these must end well."""
        commands = dict.fromkeys((target.folder, target.command) for target in self.targets)
        for number, (seed_folder, command) in enumerate(commands):
            folder = self.work / f"unchanged_{number:04}"
            shutil.copytree(self.seeds / seed_folder, folder)
            yield number, command, folder

    def prepare(self, number: int, skipped: frozenset[int] = frozenset()) -> tuple[Sequence[str], Path]:
        """Makes the folder of a case; its command and folder."""
        rng = Random(f"{self.seed} {number}")
        target = rng.choices(self.targets, [target.weight for target in self.targets])[0]
        folder = self.work / f"case_{number:06}"
        remove(folder)
        shutil.copytree(self.seeds / target.folder, folder)
        files = sorted(path for path in folder.glob(target.files) if path.is_file())
        if not files:
            sys.exit(f"{target.folder} holds no {target.files}")
        path = rng.choice(files)
        others = [other for other in folder.rglob(f"*{path.suffix}") if other.is_file() and other != path]
        other = rng.choice(sorted(others) or [path]).read_bytes()
        mutation = mutate(path.read_bytes(), target.content, f"{self.seed} {number}", other, skipped)
        path.write_bytes(mutation.content)
        self.plans[number] = Plan(number, target, str(path.relative_to(folder)), mutation.steps)
        return target.command, folder

    def cases(self, numbers: range) -> Iterator[tuple[int, Sequence[str], Path]]:
        for number in numbers:
            yield number, *self.prepare(number)

    def keep(self, number: int, ending: Ending, folder: Path) -> None:
        """Keeps the changed file of a case, its output, and what was done."""
        plan = self.plans[number]
        folder.mkdir(parents=True, exist_ok=True)
        case = self.work / f"case_{number:06}"
        shutil.copy(case / plan.file, folder / Path(plan.file).name)
        (folder / "output.txt").write_text(ending.output[-100_000:], errors="replace")
        record = {
            "case": number,
            "seed": self.seed,
            "command": plan.target.command,
            "format": plan.target.format,
            "file": plan.file,
            "folder": plan.target.folder,
            "steps": plan.steps,
            "outcome": ending.outcome,
            "status": ending.status,
            "peak_MiB": ending.peak >> 20,
            "seconds": round(ending.seconds, 2),
        }
        (folder / "case.json").write_text(json.dumps(record, indent=1))

    def reduce(self, number: int, outcome: str) -> None:
        """Leaves out the changes of a case without which it ends in the same way."""
        skipped: frozenset[int] = frozenset()
        steps = len(self.plans[number].steps)
        for step in range(steps):
            attempt = skipped | {step}
            if len(attempt) < steps:
                command, folder = self.prepare(number, attempt)
                if wait_for(Case(command, folder)).outcome == outcome:
                    skipped = attempt
        self.prepare(number, skipped)


def import_all() -> None:
    """Imports what commands need, and fills the caches of the command line's parser; no thread may be started."""
    import contextlib
    import importlib
    import io

    for name in LAZY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what mutations provoke
    from swinv2_tasks.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["fit", "--config=imagenet.yaml", "--print_config"])
    gc.collect()
    gc.freeze()  # collections in the forked processes would copy all of this memory


def signature(ending: Ending) -> str:
    """What failures with one cause have in common: the innermost line of the package, and the error."""
    lines = [line for line in ending.output.splitlines() if line.strip()]
    places = [line.strip() for line in lines if "swinv2_tasks/" in line and line.strip().startswith("File ")]
    place = places[-1].partition("swinv2_tasks/")[2].replace('"', "") if places else ""
    return f"{ending.outcome}: {place} {lines[-1][:150] if lines else ''} (status {ending.status})"


def check_unchanged(fuzzer: Fuzzer, processes: int) -> None:
    """Makes sure that every command ends well before anything is changed: else its refusals would say nothing.

    The program ends where one does not.
    """
    for target in fuzzer.targets:
        if next((fuzzer.seeds / target.folder).glob(target.files), None) is None:
            sys.exit(f"{target.folder} holds no {target.files}")
    for _, folder, ending in run_all(fuzzer.unchanged(), processes):
        if ending.outcome != "ok":
            sys.exit(f"unchanged files: {ending.outcome} in {folder}: {ending.output[-1000:]}")
        remove(folder)


def print_table(counts: dict[tuple[str, str], Counter[str]], peaks: dict[tuple[str, str], int]) -> None:
    print(f"\n| format | command | cases | {' | '.join(OUTCOMES)} | peak MiB |")
    print("|---" * (len(OUTCOMES) + 4) + "|")
    total: Counter[str] = Counter()
    for key in sorted(counts):
        count = counts[key]
        total += count
        cells = [str(count[outcome]) for outcome in OUTCOMES]
        print(f"| {key[0]} | {key[1]} | {count.total()} | {' | '.join(cells)} | {peaks[key] >> 20} |")
    cells = [str(total[outcome]) for outcome in OUTCOMES]
    print(f"| all | | {total.total()} | {' | '.join(cells)} | {max(peaks.values(), default=0) >> 20} |")


def fuzz(fuzzer: Fuzzer, numbers: range, processes: int, failures: Path, keep: bool = False) -> Counter[str]:
    """Runs cases, prints the table, and keeps those that fail; how many ended how."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    peaks: dict[tuple[str, str], int] = defaultdict(int)
    signatures: dict[str, list[int]] = defaultdict(list)
    with WorkProgress("Fuzzing", len(numbers), unit="cases") as progress:
        for number, folder, ending in run_all(fuzzer.cases(numbers), processes):
            target = fuzzer.plans[number].target
            key = (target.format, target.command_name)
            counts[key][ending.outcome] += 1
            peaks[key] = max(peaks[key], ending.peak)
            is_failure = ending.outcome in FAILURES
            progress.advance(faulty=is_failure)
            if is_failure:
                words = signature(ending)
                signatures[words].append(number)
                if len(signatures[words]) == 1:
                    print(f"case {number}: {target.format}, {target.command_name}: {words}", flush=True)
                    fuzzer.reduce(number, ending.outcome)
                kept = failures / f"{number:06}_{ending.outcome}"
                fuzzer.keep(number, ending, kept)
            if not keep:
                remove(folder)
    for words, failed in sorted(signatures.items(), key=lambda item: -len(item[1])):
        print(f"{len(failed)} × {words}; cases {', '.join(map(str, failed[:8]))}")
    print_table(counts, peaks)
    return sum(counts.values(), Counter())


def main(settings: Settings) -> int:
    output = Path(settings.output or tempfile.mkdtemp(prefix="fuzz-")).absolute()
    output.mkdir(parents=True, exist_ok=True)
    print("Importing, and writing files to begin with …", file=sys.stderr, flush=True)
    import_all()
    seeds = output / "seeds"
    if not seeds.is_dir():
        partial = output / "seeds.partial"
        shutil.rmtree(partial, ignore_errors=True)
        run_in_child(lambda: write_seeds(partial, settings.quick), output / "seeds.log")
        check_unchanged(Fuzzer(partial, output / "cases", settings.seed, quick=settings.quick), settings.processes)
        partial.rename(seeds)
    limit_memory(2 * MEMORY)  # a mutation that is out of bounds ends here, not the machine
    fuzzer = Fuzzer(seeds, output / "cases", settings.seed, settings.formats, settings.quick)
    numbers = range(settings.first, settings.first + settings.cases)
    counts = fuzz(fuzzer, numbers, settings.processes, output / "failures", settings.keep)
    failed = sum(counts[outcome] for outcome in FAILURES)
    print(f"\nseed {settings.seed}: {counts.total()} cases, {failed} failures")
    if failed or settings.output or settings.keep:
        print(f"kept: {output}")
    else:
        shutil.rmtree(output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(parse_settings(Settings, __doc__)))

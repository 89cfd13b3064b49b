"""The overhead of the training guards: a training step beside the same step in plain Lightning.

    python -m benchmarks.overhead [--rounds 11] [--steps 3] [--batch-size 8] [--json FILE]

Ours is ClassificationTask with ImageNetDataModule, RunCheckpoint, RunRecord and AtomicCheckpointIO: each step's and
each sample's own seed, the loader that can resume anywhere, the check of loss and gradients, the search for spikes and
the decision whether to save, though no save itself. Plain is a LightningModule with a training step, the same optimizer
and schedule, Lightning's clipping, and torch's DataLoader over the same dataset. Both train SwinV2-T at 256×256 with
window 8 on a CPU in float32, with drop path and mixup, and load in the main process, where no cost is hidden.

The two trainings live in a process each and take turns: in each round one trains some steps while the other waits, then
the other way round; each turn's first step does not count. Printed are the medians of the rounds' ratios of wall time
and of processor time. A shared machine drifts by more than the difference that is looked for: therefore the pieces are
also timed alone, in the training process, and given as a share of the step.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.measuring import parse_settings
from swinv2_tasks.backbone import swinv2_tiny
from swinv2_tasks.datamodules import ImageNetAugmentation, ImageNetDataModule
from swinv2_tasks.datamodules.loader import BatchLoader, BatchOrder, FaultPolicy
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.seeding import derive_seed, seed_generators
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.guard import SpikeDetector
from swinv2_tasks.training.optim import CosineSchedule, build_optimizer
from swinv2_tasks.training.run_checkpoint import AtomicCheckpointIO, RunCheckpoint
from swinv2_tasks.training.run_record import RunRecord

SIZE, WINDOW, DROP_PATH, SMOOTHING, CLIP = 256, 8, 0.2, 0.1, 5.0
CLASSES = 4
OPTIMIZER = partial(AdamW, lr=1e-3, weight_decay=0.05)
SCHEDULE = CosineSchedule(warmup_epochs=0)
TARGET = 1.02
PART_OF = "of it, "


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


class PlainTask(LightningModule):
    """The least that trains the same model in the same way."""

    def __init__(self, batch_size: int, steps: int) -> None:
        super().__init__()
        self.backbone = swinv2_tiny(window_size=WINDOW, drop_path_rate=DROP_PATH)
        self.head = ClassificationHead(self.backbone.channels[-1], CLASSES)
        self.batch_size, self.steps = batch_size, steps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.head(self.backbone(batch["image"]))
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=SMOOTHING)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        depths = self.backbone.depths
        optimizer, scheduler = build_optimizer(
            OPTIMIZER, self.named_parameters(), depths, SCHEDULE, self.batch_size, self.steps, self.steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Turns(Callback):
    """Waits for its turn, trains some steps and reports the seconds that one took.

    Args:
        pipe: sends True for a turn and gets its (wall, processor) seconds per step; sends False and gets what
            ``time_pieces`` returns.
        steps: steps of a turn that count; one more comes before.
    """

    def __init__(self, pipe: Connection, steps: int) -> None:
        self.pipe, self.steps = pipe, steps
        self.done = 0
        self.since = (0.0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pipe.recv()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter(), time.process_time()
        if self.done == self.steps:
            self.pipe.send(tuple((end - start) / self.steps for start, end in zip(self.since, now, strict=True)))
            while not self.pipe.recv():
                self.pipe.send(time_pieces(trainer, pl_module, outputs, batch, batch_idx))
            self.done = -1
        if self.done <= 0:
            self.since = time.perf_counter(), time.process_time()
        self.done += 1


def train(
    variant: str, folder: Path, batch_size: int, steps: int, batches: int, threads: int, pipe: Connection
) -> None:
    """Trains in a process of its own, by turns, until it is killed."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    augmentation = ImageNetAugmentation(rand_augment_ops=0, color_jitter=0.0, random_erasing=0.0)
    data = ImageNetDataModule(str(folder / "images"), SIZE, batch_size, num_workers=0, augmentation=augmentation)
    turns = Turns(pipe, steps)
    settings: dict[str, Any] = {
        "default_root_dir": folder / variant,
        "accelerator": "cpu",
        "precision": "32-true",
        "max_epochs": 1,
        "gradient_clip_val": CLIP,
        "limit_val_batches": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if variant == "plain":
        data.setup("fit")
        assert data.train_dataset is not None
        loader: Any = DataLoader(
            data.train_dataset, batch_size, shuffle=True, drop_last=True, collate_fn=data.train_collate
        )
        trainer = Trainer(callbacks=[turns], enable_checkpointing=False, **settings)
        trainer.fit(PlainTask(batch_size, batches), loader)
    else:
        backbone = swinv2_tiny(window_size=WINDOW, drop_path_rate=DROP_PATH)
        task = ClassificationTask(backbone, CLASSES, 0.0, SMOOTHING, optimizer=OPTIMIZER, schedule=SCHEDULE)
        save = RunCheckpoint(every_n_steps=10**9, every_n_minutes=10**6)  # asks at each step, and never saves
        callbacks = [RunRecord(folder / variant), turns, save]
        trainer = Trainer(callbacks=callbacks, plugins=[AtomicCheckpointIO()], **settings)
        trainer.fit(task, datamodule=data)


def measure_microseconds(call: Callable[[], Any], repetitions: int = 1000) -> float:
    """Median time of a call."""
    call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


class _FreeDataset(Dataset):
    """Samples that cost nothing to read."""

    def __len__(self) -> int:
        return 10**5

    def __getitem__(self, index: int) -> int:
        return index


def time_pieces(trainer: Any, task: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> dict[str, float]:
    """Microseconds per step of each thing that this package adds; names that begin with PART are parts of others."""
    size = len(batch["image"])
    save = next(callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint))
    record = next(callback for callback in trainer.callbacks if isinstance(callback, RunRecord))
    spikes, noise = SpikeDetector(), (2 + math.sin(index) for index in itertools.count())
    spikes.recent.extend(itertools.islice(noise, 128))
    losses, norm = [torch.tensor(2.0)], torch.tensor(1.0)
    order = BatchOrder(len(_FreeDataset()), size, 0, 1, 0, drop_last=True, shuffle=True)
    package_loader = iter(BatchLoader(_FreeDataset(), order, default_collate, 0, FaultPolicy("error", 0)))
    torch_loader = iter(DataLoader(_FreeDataset(), size, shuffle=True, drop_last=True))

    def seed_samples() -> None:
        for seed in range(size + 1):  # one for the batch as a whole
            seed_generators(seed)

    def read_values() -> list[float]:
        return torch.stack([norm.float(), torch.stack(losses).mean().float()]).tolist()

    end = (trainer, task, outputs, batch, batch_idx)
    return {
        "BatchLoader, more than torch's DataLoader": measure_microseconds(lambda: next(package_loader))
        - measure_microseconds(lambda: next(torch_loader)),
        f"{PART_OF}seeds of {size} samples and their batch": measure_microseconds(seed_samples),
        "start of a step: its seed": measure_microseconds(lambda: task.on_train_batch_start(batch, batch_idx)),
        f"{PART_OF}derive_seed": measure_microseconds(lambda: derive_seed(0, 0, 0, batch_idx)),
        f"{PART_OF}seed_generators": measure_microseconds(lambda: seed_generators(0)),
        "loss and gradients' norm as numbers": measure_microseconds(read_values),
        "SpikeDetector over 128 losses": measure_microseconds(lambda: spikes.is_spike(next(noise))),
        "RunRecord": measure_microseconds(lambda: record.on_train_batch_end(*end)),
        "RunCheckpoint, nothing due": measure_microseconds(lambda: save.on_train_batch_end(*end)),
    }


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        rounds: turns of each training.
        steps: steps of a turn that count.
        batch_size: images of a batch.
        json: file to write the figures to as well.
    """

    rounds: int = 11
    steps: int = 3
    batch_size: int = 8
    json: str | None = None


def main(settings: Settings) -> None:
    threads, size = torch.get_num_threads(), settings.batch_size
    print(f"SwinV2-T/{SIZE}/w{WINDOW}, batch {size}, CPU, float32, {threads} threads, torch {torch.__version__};")
    print(f"{settings.rounds} rounds of {settings.steps} steps each\n", flush=True)
    context = multiprocessing.get_context("spawn")
    batches = (settings.rounds + 1) * (settings.steps + 1) + 2  # the epoch never ends: that would save
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), CLASSES, math.ceil(batches * size / CLASSES), val=1, size=288)
        pipes: dict[str, Connection] = {}
        processes = []
        try:
            for variant in ("plain", "ours"):
                pipes[variant], child_pipe = context.Pipe()
                arguments = (variant, Path(folder), size, settings.steps, batches, threads, child_pipe)
                processes.append(context.Process(target=train, args=arguments, daemon=True))
                processes[-1].start()
                child_pipe.close()

            def take_turn(variant: str) -> tuple[float, float]:
                pipes[variant].send(True)
                return pipes[variant].recv()

            for variant in pipes:
                take_turn(variant)  # does not count
            rounds: list[dict[str, tuple[float, float]]] = []
            for number in range(settings.rounds):
                variants = ["plain", "ours"] if number % 2 == 0 else ["ours", "plain"]
                rounds.append({variant: take_turn(variant) for variant in variants})
                ours, plain = rounds[-1]["ours"][0], rounds[-1]["plain"][0]
                print(f"round {number + 1:2}: ours {ours:.3f} s, plain {plain:.3f} s, {ours / plain:.3f}", flush=True)
            pipes["ours"].send(False)
            pieces: dict[str, float] = pipes["ours"].recv()
        finally:
            for process in processes:
                process.kill()
                process.join()
    ratios = {}
    print("\n| time of a step | ours | plain | ratio, median of rounds | lowest | highest |\n|---|---|---|---|---|---|")
    for index, clock in enumerate(("wall", "processor")):
        ours, plain = (
            statistics.median(seconds[variant][index] for seconds in rounds) for variant in ("ours", "plain")
        )
        round_ratios = [seconds["ours"][index] / seconds["plain"][index] for seconds in rounds]
        ratios[clock] = statistics.median(round_ratios)
        print(
            f"| {clock} | {ours:.3f} s | {plain:.3f} s | {ratios[clock]:.3f} | "
            f"{min(round_ratios):.3f} | {max(round_ratios):.3f} |"
        )
    step = statistics.median(seconds["plain"][0] for seconds in rounds)
    pieces["together"] = sum(duration for name, duration in pieces.items() if not name.startswith(PART_OF))
    print("\n| piece, alone | µs per step | share of a plain step |\n|---|---|---|")
    for name, duration in pieces.items():
        print(f"| {name} | {duration:.0f} | {duration / 1e6 / step:.4%} |")
    alone = 1 + pieces["together"] / 1e6 / step
    print(f"\nwall ratio {ratios['wall']:.3f}, pieces together {alone:.5f}; target at most {TARGET}")
    if settings.json:
        figures = {"rounds": rounds, "ratios": ratios, "pieces": pieces, "threads": threads}
        Path(settings.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))

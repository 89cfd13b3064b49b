"""Callbacks and datasets for runs in processes of their own, which disturb a training and note what it did."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset

from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.training.lightning_internals import is_accumulating


class SendSignal(Callback):
    """Sends a real signal to this process as a training batch or, with ``validation``, a validation batch ends.

    The environment variable SEND_SIGNAL says when, as JSON, so that one config serves disturbed and undisturbed runs:
    ``step``, the optimizer steps done by then; ``number``, the signal; ``validation``, to wait for the validation after
    that step and its batch of this index; ``rank``, the process that sends it to itself.
    """

    def __init__(self) -> None:
        wish = {"step": -1, "number": signal.SIGKILL, "validation": None, "rank": 0}
        wish |= json.loads(os.environ.get("SEND_SIGNAL", "{}"))
        self.step, self.number, self.validation, self.rank = wish.values()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.validation is None:
            self._send(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self.validation == batch_idx and not trainer.sanity_checking:
            self._send(trainer)

    def _send(self, trainer: Trainer) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class KillAt(Callback):
    """Kills this process with SIGKILL at a moment that the environment variable KILL_AT names, as JSON.

    ``hook``: one of a callback's, ``skip`` calls of it later; ``accumulating``, if given, is what the gradients must be
    doing. Or ``file``, the name of one that is being written, and ``moment``: as it is ``opened``, once it has
    ``bytes`` bytes, once it is ``written`` and before it gets its name, or when it ``moved`` there; the kernel itself
    ends the process at a byte (RLIMIT_FSIZE), which runs as little of it as SIGKILL does. ``rank`` is the process, of
    several. Whether there was a kill, the process's status says.
    """

    HOOKS = (
        *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_before_backward", "on_after_backward"),
        *("on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end", "on_train_epoch_end"),
        *("on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"),
        *("on_train_end", "on_fit_end", "teardown"),
    )

    def __init__(self) -> None:
        self.wish: dict[str, Any] = json.loads(os.environ.get("KILL_AT", "{}"))
        is_meant = self.wish and self.wish.get("rank", 0) == int(os.environ.get("LOCAL_RANK", 0))
        if is_meant and "file" in self.wish:
            sys.addaudithook(FileKill(**{name: self.wish[name] for name in ("file", "moment", "bytes", "skip")}))
        elif is_meant:
            setattr(self, self.wish["hook"], self._called)

    def _called(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        wanted = self.wish.get("accumulating")
        if trainer.sanity_checking or (wanted is not None and is_accumulating(trainer) != wanted):
            return
        if not self.wish["skip"]:
            os.kill(os.getpid(), signal.SIGKILL)
        self.wish["skip"] -= 1


class FileKill:
    """An audit hook that kills while a file is written; the arguments are those of ``KillAt``."""

    def __init__(self, file: str, moment: str, bytes: int, skip: int) -> None:
        self.file, self.unfinished = file, re.compile(rf"\.{re.escape(file)}\.[0-9a-f]{{8}}")
        self.moment, self.bytes, self.skip = moment, bytes, skip
        self.moved, self.process = False, os.getpid()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename") or os.getpid() != self.process:
            return
        if self.moved:
            self._kill()
        if not self._is_meant(event, arguments):
            return
        if self.skip:
            self.skip -= 1
        elif self.moment == "bytes":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))
        elif self.moment == "moved":
            self.moved = True  # the next event comes after it
        else:
            self._kill()

    def _is_meant(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if self.moment in ("opened", "bytes"):
            return event == "open" and bool(self.unfinished.fullmatch(os.path.basename(str(arguments[0]))))
        return event == "os.rename" and os.path.basename(str(arguments[1])) == self.file

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Journal(Callback):
    """Appends what each step was made of, and writes the generators' states at the end.

    Args:
        folder: gets ``seen_RANK.txt`` with a line of sample names per batch, and ``generators_RANK.pt``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sums: list[float] = []
        apply_to_collection(batch, Tensor, lambda tensor: sums.append(float(tensor.double().sum())))
        names = " ".join(sorted(Path(name).name for name in data.train_sample_ids(batch_idx)))
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"seen_{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx} {sum(sums)!r} {names}\n")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {"torch": torch.get_rng_state(), "numpy": str(np.random.get_state()), "python": str(random.getstate())}
        torch.save(state, self.folder / f"generators_{trainer.global_rank}.pt")


class NoRoom(Callback):
    """From the second epoch on the second process can write no file of more than 20 kB, as on a disk that fills up."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


class DeadlyImages(ImageNetDataModule):
    """A dataset of which one training image, or one to predict, ends the process that reads it."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.train_dataset = _Harmed(self.train_dataset, lambda sample: os.kill(os.getpid(), signal.SIGKILL))
        if stage == "predict":
            self.predict_dataset = _Harmed(self.predict_dataset, lambda sample: os.kill(os.getpid(), signal.SIGKILL))


class NotANumber(ImageNetDataModule):
    """A dataset of which one training image has a pixel that is not a number."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.train_dataset = _Harmed(self.train_dataset, lambda sample: sample["image"][0, 0].fill_(torch.nan))


class _Harmed(Dataset):
    """Does something with the samples of some names."""

    def __init__(self, dataset: Any, harm: Callable[[Any], Any], names: str = "n02_3.jpg") -> None:
        self.dataset, self.harm, self.names = dataset, harm, names
        self.paths = getattr(dataset, "paths", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def sample_id(self, index: int) -> str:
        return self.dataset.sample_id(index)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        if self.sample_id(index).endswith(self.names):
            self.harm(sample)
        return sample


class SlowImages(ImageNetDataModule):
    """A dataset of which one training image takes a minute; it writes a file ``reading`` when that begins."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.train_dataset = _Harmed(self.train_dataset, lambda sample: _wait("reading", 60))


class SlowValidation(ImageNetDataModule):
    """A dataset whose validation images take a second each; it writes a file ``validating`` when that begins."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.val_dataset = _Harmed(self.val_dataset, lambda sample: _wait("validating", 1), names="")


def _wait(name: str, seconds: float) -> None:
    Path(name).touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:  # signals cut a sleep short
        time.sleep(0.05)


class FullDisk(Callback):
    """From the first prediction on this process can write no file of more than 100 kB, as on a disk that fills up."""

    def on_predict_batch_start(self, trainer: Trainer, *_: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


class LittleMemory(Callback):
    """Predictions get 1 GB of memory more than what is taken before they start."""

    def on_predict_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 10**9
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


class SignalInPrediction(Callback):
    """Sends a real signal to this process as the fourth batch was predicted, before anything of it is written.

    Args:
        number: the signal; 9 is SIGKILL.
    """

    def __init__(self, number: int = 9) -> None:
        self.number = number

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 3:
            os.kill(os.getpid(), self.number)

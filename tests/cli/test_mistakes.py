"""Mistakes on the command line, and the line that each ends with.

A row is what is typed, in a folder with the tiny dataset of images, what is then said to be wrong, and what to do about
it. Add rows to ``MISTAKES``; ``workshop`` writes the files that they name.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from swinv2_tasks.cli.main import main
from tests.helpers.tiny import new_task, write_config, write_images


class Mistake(NamedTuple):
    """A row of the table."""

    typed: str
    """What follows ``swinv2-tasks``."""
    problem: str
    """What the message says to be wrong."""
    remedy: str
    """What it says to do."""


OVERLAY = "data: {init_args: {batch_size: 3, image_size: 32}}\n"

COMMANDS = [
    Mistake("predikt", "no command 'predikt'", "did you mean 'predict'?"),
    Mistake("train --config tiny.yaml", "no command 'train'", "did you mean 'fit'?"),
    Mistake("eval", "no command 'eval'", "did you mean 'validate'?"),
    Mistake("help me", "no command 'me'", "swinv2-tasks --help"),
    Mistake("nothing", "no command 'nothing'", "There are fit, validate"),
    Mistake("tiny.yaml", "'tiny.yaml' is no command", "swinv2-tasks fit --config tiny.yaml"),
    Mistake("--config tiny.yaml", "no command '--config'", "swinv2-tasks --help"),
]

CONFIGS = [
    Mistake("fit --config imagnet.yaml", "no config 'imagnet.yaml'", "Did you mean imagenet.yaml?"),
    Mistake("fit --config small", "no config 'small'", "Did you mean overlays/small.yaml?"),
    Mistake("fit --config nothing/like/it", "no config 'nothing/like/it'", "`swinv2-tasks configs` lists all"),
    Mistake("fit", "fit needs --config CONFIG", "imagenet.yaml, coco.yaml, ade20k.yaml, kinetics.yaml, simmim.yaml"),
    Mistake("fit --config", "fit needs --config CONFIG", "`swinv2-tasks configs` lists all"),
    Mistake("fit --config overlay.yaml", "overlay.yaml is an overlay", "fit needs --config CONFIG"),
    Mistake("validate", "validate needs --config CONFIG", "or --ckpt_path CHECKPOINT"),
    Mistake("validate --config overlay.yaml", "overlay.yaml is an overlay", "or --ckpt_path CHECKPOINT"),
    Mistake("memory", "memory needs --config CONFIG", "imagenet.yaml"),
    Mistake("fit --config tiny.yaml --resume a b", "not a b", "--resume takes the folder of one run"),
]

VALUES = [
    Mistake("fit --config tiny.yaml --data.batch_size 0", "data.batch_size=0", "expected at least 1"),
    Mistake("fit --config tiny.yaml --data.class_names missing.txt", "missing.txt", "data.class_names"),
]

FILES = [
    Mistake("weights inspect code.pth", "it asks to call posix.system, and no code of a file is run", "Ask its author"),
    Mistake("fit --config tiny.yaml --model.weights code.pth", "asks to call posix.system", "tensors alone"),
    Mistake("fit --config tiny.yaml --data.root phone", "1 file that is no image (1 × .heic)", "pillow-heif"),
    Mistake("predict --config tiny.yaml --model.weights tiny.pth --data.source phone", "holds no image", "pillow-heif"),
    Mistake(
        "fit --config tiny.yaml --trainer.callbacks+=LearningRateFinder",
        "LearningRateFinder does not work here",
        "--model.optimizer.init_args.lr",
    ),
    Mistake(
        "fit --config tiny.yaml --trainer.callbacks+=BatchSizeFinder",
        "BatchSizeFinder does not work here",
        "swinv2-tasks memory --config CONFIG --gpu 24GiB",
    ),
    Mistake("memory --config tiny.yaml --gpu 0.5GiB", "CUDA and its libraries alone take", "expected more"),
    Mistake("fit --config tiny.yaml --data.val_dir nowhere", "no validation data", "--trainer.limit_val_batches 0"),
    Mistake("fit --config tiny.yaml --max_pixels 0", "max_pixels is 0", "expected a number of pixels"),
]

MISTAKES = [*COMMANDS, *CONFIGS, *VALUES, *FILES]

INSIDE = re.compile(
    r"\b(swinv2_tasks|torch|lightning|jsonargparse|collections|typing)\.\w+|class_path|subclass|Union|Namespace"
    r"|Parser key|Expected an? (<|path but|dot import)|NestedArg|<class|Traceback"
)
"""Paths of classes, types as the parser prints them, and its words."""


def write_workshop(folder: Path) -> None:
    """The files that the table's rows name."""
    folder.mkdir(parents=True)
    write_images(folder / "images")
    write_config(folder / "tiny.yaml", Path("images"))
    (folder / "overlay.yaml").write_text(OVERLAY)
    torch.save(new_task().state_dict(), folder / "tiny.pth")
    (folder / "code.pth").write_bytes(pickle.dumps(Calls()))
    for split in ("train", "val"):
        photo = folder / "phone" / split / "n01" / "photo.heic"
        photo.parent.mkdir(parents=True)
        photo.write_bytes(b"\0\0\0\x24ftypheic")


class Calls:
    """Unpickled, runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.fixture
def workshop(make_once: Callable[[str, Callable[[Path], object]], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test: one for all rows, which leave nothing there."""
    folder = make_once("workshop", write_workshop)
    monkeypatch.chdir(folder)
    return folder


def message_of(typed: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints on standard error as it fails."""
    try:
        status: int | str | None = main(shlex.split(typed))
    except SystemExit as end:
        status = end.code
    assert status not in (0, None), "it did not fail"
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed)
def test_a_mistake_ends_with_one_line(mistake: Mistake, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {*workshop.rglob("*")}

    message = message_of(mistake.typed, capsys)

    assert mistake.problem in message
    assert mistake.remedy in message
    assert INSIDE.search(message) is None
    at_120_columns = [part for line in message.splitlines() for part in textwrap.wrap(line, 120)]
    assert len(at_120_columns) <= 3, message
    assert {*workshop.rglob("*")} == files, "it left something behind"


def test_each_row_is_another_mistake() -> None:
    assert len({mistake.typed for mistake in MISTAKES}) == len(MISTAKES)

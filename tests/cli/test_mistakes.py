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


FILES = {
    "overlay.yaml": "data: {init_args: {batch_size: 3, image_size: 64}}\n",
    "broken.yaml": "model: [1\ndata: }",
    "text.yaml": "a few words",
    "typo.yaml": "data: {init_args: {batchsize: 3}}",
    "section.yaml": "trainr: {max_epochs: 3}",
    "type.yaml": "trainer: {max_epochs: ten}",
    "list.yaml": "checkpoint: []",
    "number.yaml": "trainer: 3",
    "class.yaml": "model: {init_args: {optimizer: {class_path: Adamw}}}",
}
"""Configs with a mistake, and an overlay without."""

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
    Mistake("fit imagnet", "no config 'imagnet'", "Did you mean imagenet.yaml?"),
    Mistake("fit --config small", "no config 'small'", "Did you mean overlays/small.yaml?"),
    Mistake("fit --config nothing/like/it", "no config 'nothing/like/it'", "`swinv2-tasks configs` lists all"),
    Mistake("fit --config tiny.yaml extra", "no config 'extra'", "`swinv2-tasks configs` lists all"),
    Mistake("fit", "fit needs --config CONFIG", "imagenet.yaml, coco.yaml, ade20k.yaml, kinetics.yaml, simmim.yaml"),
    Mistake("fit --config", "fit needs --config CONFIG", "`swinv2-tasks configs` lists all"),
    Mistake("fit --config overlay.yaml", "overlay.yaml is an overlay", "fit needs --config CONFIG"),
    Mistake("validate", "validate needs --config CONFIG", "or --ckpt_path CHECKPOINT"),
    Mistake("validate --config overlay.yaml", "overlay.yaml is an overlay", "or --ckpt_path CHECKPOINT"),
    Mistake("memory", "memory needs --config CONFIG", "imagenet.yaml"),
    Mistake(
        "fit --config overlay.yaml --config tiny.yaml",
        "tiny.yaml comes after the overlay overlay.yaml and would undo its data.batch_size, data.image_size",
        "--config tiny.yaml --config overlay.yaml",
    ),
    Mistake(
        "fit --config tiny.yaml --config overlays/small_coco.yaml",
        "small_coco.yaml goes over coco.yaml, not over a ClassificationTask",
        "leave it out, or name your task's own overlay",
    ),
    Mistake("fit --config broken.yaml", "broken.yaml, line 2, column 5: no valid YAML", "mend that line"),
    Mistake("fit --config text.yaml", "text.yaml holds no settings", "a config is lines such as"),
    Mistake("fit --config utf16.yaml", "utf16.yaml is text in UTF-16", "save it as UTF-8"),
    Mistake("fit --config latin.yaml", "latin.yaml, line 2: a character that is not UTF-8", "save the file as UTF-8"),
    Mistake(
        "fit --config tiny.yaml --config list.yaml",
        "list.yaml: checkpoint holds no settings",
        "checkpoint: {monitor: val/loss}",
    ),
    Mistake(
        "fit --config tiny.yaml --config number.yaml",
        "number.yaml: trainer holds no settings",
        "trainer: {max_epochs: 3}",
    ),
    Mistake("fit --config image.yaml", "image.yaml is no text", "--config names a YAML file"),
    Mistake(
        "fit --config tiny.yaml --config typo.yaml",
        "data.batchsize in typo.yaml: ImageNetDataModule has no such setting",
        "did you mean data.batch_size?",
    ),
    Mistake(
        "fit --config tiny.yaml --config section.yaml",
        "trainr.max_epochs in section.yaml: fit has no such setting",
        "did you mean trainer.max_epochs?",
    ),
    Mistake(
        "fit --config tiny.yaml --config type.yaml",
        "trainer.max_epochs in type.yaml: 'ten' is not a whole number or null",
        "as in max_epochs: 8",
    ),
    Mistake(
        "fit --config tiny.yaml --config class.yaml",
        "model.optimizer in class.yaml: there is no 'Adamw'",
        "did you mean AdamW?",
    ),
]

PLACES = [
    Mistake("predict photo.jpg", "what is 'photo.jpg'?", "predict --data.source photo.jpg"),
    Mistake("validate best.ckpt", "how to use best.ckpt?", "--ckpt_path best.ckpt"),
    Mistake("fit --resume", "--resume: which run?", "as in --resume runs/imagenet/3"),
    Mistake("fit --resume images", "images is not of a run", "as in --resume runs/imagenet/3"),
    Mistake("fit --config tiny.yaml --resume a b", "not a b", "--resume takes the folder of one run"),
    Mistake("fit --config tiny.yaml --ckpt_path missing.ckpt", "missing.ckpt", "no such file"),
    Mistake("validate --ckpt_path missing.ckpt", "missing.ckpt", "no such file"),
    Mistake(
        "validate --ckpt_path runs/ade20k",
        "there is no run runs/ade20k",
        "there are: runs/demo_ade20k, runs/demo_coco",
    ),
    Mistake(
        "predict --ckpt_path images --data.source images",
        "images is no run, and holds no training with a checkpoint",
        "there are: runs/demo_ade20k, runs/demo_coco",
    ),
    Mistake("test --ckpt_path runs/demo_coco/3", "there is no run runs/demo_coco/3", "there is: runs/demo_coco/0"),
    Mistake("validate runs/demo_coco", "how to use runs/demo_coco?", "--ckpt_path runs/demo_coco"),
    Mistake(
        "fit --config tiny.yaml --ckpt_path runs/demo_coco",
        "fit --ckpt_path takes a checkpoint",
        "--resume runs/demo_coco/0",
    ),
    Mistake("predict --config tiny.yaml", "predict needs a trained model", "--ckpt_path CHECKPOINT"),
    Mistake("fit --config tiny.yaml --trainer.default_root_dir out", "runs go to --runs", "--runs out"),
]

OPTIONS = [
    Mistake(f"fit --config tiny.yaml {typed}", problem, remedy)
    for typed, problem, remedy in (
        ("--data.rot x", "data.rot: ImageNetDataModule has no such setting", "did you mean data.root?"),
        ("--model.backbone.window 8", "SwinTransformerV2 has no such", "did you mean model.backbone.window_size?"),
        (
            "--model.nope 1",
            "model.nope: ClassificationTask has no such setting",
            "it has dropout, label_smoothing, weights, ",
        ),
        ("--model.schedule.warmup 8", "CosineSchedule has no such setting", "model.schedule.warmup_epochs"),
        ("--model.optimizer.lrr 3", "model.optimizer.lrr: AdamW has no such", "did you mean model.optimizer.lr?"),
        (
            "--data.augmentation.horizontl_flip 3",
            "data.augmentation.horizontl_flip: ImageNetAugmentation has no such setting",
            "did you mean data.augmentation.horizontal_flip?",
        ),
        ("--data.sampling.frames 3", "data.sampling has no settings of its own", "expected one of uniform, balanced"),
        ("--data.stream.buffer 3", "data.stream.buffer: Streaming has no such setting", "it has"),
        ("--data.image_size.height 3", "data.image_size has no settings of its own", "data.image_size"),
        ("--trainer.epochs 3", "trainer.epochs: Trainer has no such setting", "did you mean trainer.max_epochs?"),
        ("--checkpoint.metric x", "checkpoint.metric: ModelCheckpoint has no such setting", "checkpoint"),
        ("--max_epochs 3", "fit has no option --max_epochs", "did you mean --trainer.max_epochs?"),
        ("--epochs 3", "fit has no option --epochs", "did you mean --trainer.max_epochs?"),
        ("--batch_size 3", "fit has no option --batch_size", "did you mean --data.batch_size?"),
        ("--window_size 3", "fit has no option --window_size", "did you mean --model.backbone.window_size?"),
        ("--lr 3", "fit has no option --lr", "did you mean --model.optimizer.lr?"),
        ("--learning_rate 3", "fit has no option --learning_rate", "did you mean --model.optimizer.lr?"),
        ("--optimizer SGD", "fit has no option --optimizer", "did you mean --model.optimizer?"),
        ("--accelerator gpu", "fit has no option --accelerator", "did you mean --trainer.accelerator?"),
        ("--gpus 2", "fit has no option --gpus", "did you mean --trainer.devices?"),
        ("--weights x.pth", "fit has no option --weights", "did you mean --model.weights?"),
        ("--pretrained x.pth", "fit has no option --pretrained", "did you mean --model.weights?"),
        ("--random_seed 3", "fit has no option --random_seed", "did you mean --seed_everything?"),
        ("--nmae mine", "fit has no option --nmae", "did you mean --name?"),
        ("--zzz 3", "fit has no option --zzz", "swinv2-tasks fit --help-all lists all"),
        ("--model.num_classes 3", "model.num_classes: it follows from the data", "leave it out"),
    )
]

VALUES = [
    Mistake(f"fit --config tiny.yaml {typed}", problem, remedy)
    for typed, problem, remedy in (
        ("--data.batch_size 0", "data.batch_size is 0", "between 1 and"),
        ("--data.batch_size big", "'big' is not a whole number", "as in --data.batch_size 6"),
        ("--data.batch_size 3.5", "'3.5' is not a whole number", "as in --data.batch_size 6"),
        ("--data.batch_size", "--data.batch_size needs a value: a whole number", "as in --data.batch_size 6"),
        ("--data.batch_size=", "data.batch_size: it is given no value", "as in --data.batch_size 6"),
        ("--data.image_size 32 32", "--data.image_size takes a list as one value", "--data.image_size [32,32]"),
        ("--data.batch_size 3 4", "--data.batch_size takes one value, not 2", "as in --data.batch_size 6"),
        ("--data.faulty_samples sikp", "'sikp' is not one of error, skip or null", "did you mean skip?"),
        ("--data.augmentation.mixup much", "'much' is not a number", "as in --data.augmentation.mixup 0.0"),
        ("--data.class_names missing.txt", "missing.txt", "data.class_names"),
        ("--model.backbone.depths 2", "'2' is not a list of whole numbers", "as in --model.backbone.depths [1,1]"),
        ("--model.schedule.warmup_epochs x", "'x' is not a number", "as in --model.schedule.warmup_epochs 1"),
        ("--trainer.max_epochs many", "'many' is not a whole number or null", "as in --trainer.max_epochs 2"),
        ("--trainer.precision bf16-mxed", "'bf16-mxed' is not one of 64, 32", "did you mean bf16-mixed?"),
        ("--trainer.fast_dev_run perhaps", "'perhaps' is not", "true or false"),
        ("--guard.max_skipped_steps few", "'few' is not a whole number", "as in --guard.max_skipped_steps 0"),
        ("--model.dropout .nan", "dropout is nan", "expected a finite number"),
        ("--model.dropout 2", "model.dropout is 2.0", "a probability, from 0 to below 1"),
        ("--model.label_smoothing -1", "model.label_smoothing is -1.0", "a share, from 0 to below 1"),
        ("--model.optimizer.lr .nan", "model.optimizer: Invalid learning rate", "settings that the optimizer takes"),
        ("--model.optimizer.lr .inf", "model.optimizer.lr is inf", "expected a finite number"),
        ("--model.schedule.min_lr .inf", "schedule.min_lr is inf", "expected a finite number"),
        ("--model.backbone.drop_path_rate 2", "drop_path_rate must be in [0, 1)", "not 2.0"),
        ("--data.image_size -1", "image_size", "expected"),
        ("--data.augmentation.mixup .nan", "mixup is nan", "expected a finite number"),
        ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val is -1", "a number from 0 up"),
        ("--trainer.accumulate_grad_batches -1", "trainer.accumulate_grad_batches is -1", "a number from 1 up"),
        ("--guard.max_skipped_steps -1", "guard.max_skipped_steps is -1", "a number from 0 up"),
        ("--save.every_n_minutes .nan", "save.every_n_minutes is nan", "a number from 0 up"),
        ("--seed_everything -1", "seed_everything is -1", "a number from 0 to 4294967295"),
        ("--model Nothing", "model: there is no 'Nothing'", "there are ClassificationTask, DetectionTask"),
        ("--model.optimizer mine.Adam", "mine.Adam is not imported", "add --allow mine"),
        ("--model.optimizer mine.Adam --allow mine", "there is no module mine for", "PYTHONPATH=. swinv2-tasks"),
        ("--model ClasificationTask", "there is no 'ClasificationTask'", "did you mean ClassificationTask?"),
        ("--model.backbone swinv2_smal", "there is no 'swinv2_smal'", "did you mean swinv2_small?"),
        ("--model.optimizer SDG", "model.optimizer: there is no 'SDG'", "did you mean SGD?"),
        ("--model.schedule CosineSchedul", "there is no 'CosineSchedul'", "did you mean CosineSchedule?"),
        ("--data ImagenetDatamodule", "there is no 'ImagenetDatamodule'", "did you mean ImageNetDataModule?"),
        (
            "--data.augmentation KineticsAugmentation",
            "data.augmentation: KineticsAugmentation cannot be used here",
            "did you mean ImageNetAugmentation?",
        ),
    )
]

FAULTS = [
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
    Mistake(
        "fit --config tiny.yaml --trainer.callbacks+=BackboneFinetuning",
        "BackboneFinetuning does not work here",
        "model.backbone.frozen_stages",
    ),
    Mistake(
        "fit --config tiny.yaml --trainer.callbacks+=OnExceptionCheckpoint --trainer.callbacks.dirpath x",
        "OnExceptionCheckpoint is not needed here",
        "save.every_n_minutes",
    ),
    Mistake("memory --config tiny.yaml --gpu 0.5GiB", "CUDA and its libraries alone take", "expected more"),
    Mistake("fit --config tiny.yaml --data.val_dir nowhere", "no validation data", "--trainer.limit_val_batches 0"),
    Mistake("fit --config tiny.yaml --max_pixels 0", "max_pixels is 0", "expected a number of pixels"),
]

FUNCTIONS = [
    Mistake("score", "score needs one of ade20k and coco", "swinv2-tasks score --help"),
    Mistake("score cocoo", "score has no 'cocoo'", "did you mean swinv2-tasks score coco?"),
    Mistake("score kinetics", "score has no 'kinetics', but ade20k and coco", "swinv2-tasks score --help"),
    Mistake("score ade20k --annotations x", "score ade20k needs --annotations and --predictions", "--predictions DIR"),
    Mistake("score coco --anotations x", "score coco has no option --anotations", "did you mean --annotations?"),
    Mistake("score coco --annotations a --predictions b --backend fast", "'fast' is not one of", "faster_coco_eval"),
    Mistake("score ade20k --annotations no --predictions images", "the folder no does not exist", "--annotations"),
    Mistake("weights", "weights needs one of inspect and convert", "swinv2-tasks weights --help"),
    Mistake("weights inspect", "weights inspect needs FILE", "swinv2-tasks weights inspect FILE"),
    Mistake("weights inspect a b", "weights inspect takes FILE, not also 'b'", "swinv2-tasks weights inspect FILE"),
    Mistake("weights convert a b --format tim", "'tim' is not one of official", "did you mean timm?"),
    Mistake("weights convert a b --fromat timm", "weights convert has no option --fromat", "did you mean --format?"),
    Mistake(
        "weights convert a", "weights convert needs SOURCE and TARGET", "swinv2-tasks weights convert SOURCE TARGET"
    ),
    Mistake("data check", "data check needs TASK and ROOT", "swinv2-tasks data check TASK FOLDER"),
    Mistake("data check imagnet images", "'imagnet' is not one of imagenet", "did you mean imagenet?"),
    Mistake("data check kinetics images --seconds soon", "'soon' is not a number", "as in --seconds 120.0"),
    Mistake("data chek kinetics images", "data has no 'chek'", "did you mean swinv2-tasks data check?"),
    Mistake("data browse imagenet", "data browse needs TASK and ROOT", "swinv2-tasks data browse TASK FOLDER"),
    Mistake("data browse imagenet images --augmented maybe", "'maybe' is not true or false", "as in --augmented false"),
    Mistake("sample-data", "sample-data needs ROOT", "swinv2-tasks sample-data FOLDER"),
    Mistake("demo --shrt true", "demo has no option --shrt", "did you mean --short?"),
    Mistake("demo --short maybe", "'maybe' is not true or false", "as in --short false"),
    Mistake("configs all", "configs takes options only, not also 'all'", "swinv2-tasks configs"),
    Mistake("memory --config tiny.yaml --gpuu 24GiB", "memory has no option --gpuu", "did you mean --gpu?"),
    Mistake("memory --config tiny.yaml --gpu 24Gigs", "--gpu 24Gigs", "expected a number and a unit, as 24GiB"),
    Mistake("memory --config tiny.yaml --processes two", "'two' is not a whole number or null", "--processes 8"),
    Mistake("memory --config tiny.yaml --data.rot x", "ImageNetDataModule has no such", "did you mean data.root?"),
    Mistake("sweep --ckpt_path x --window 8", "sweep has no option --window", "did you mean --windows?"),
    Mistake("sweep --ckpt_path x", "sweep needs windows and sizes", "--windows 8 12 16 --sizes 256 384 512"),
]

MISTAKES = [*COMMANDS, *CONFIGS, *PLACES, *OPTIONS, *VALUES, *FUNCTIONS, *FAULTS]

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
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "image.yaml").write_bytes(b"\x89PNG\xff\xd8")
    (folder / "utf16.yaml").write_bytes("name: x\n".encode("utf-16"))
    (folder / "latin.yaml").write_bytes("trainer: {max_epochs: 3}\nname: Ä\n".encode("latin-1"))
    torch.save(new_task().state_dict(), folder / "tiny.pth")
    (folder / "code.pth").write_bytes(pickle.dumps(Calls()))
    for name in ("demo_ade20k", "demo_coco"):
        checkpoints = folder / "runs" / name / "0" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.ckpt").touch()
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


NO_GPU = [
    ("--trainer.accelerator gpu", "torch finds no GPU here", "--trainer.accelerator cpu"),
    ("--trainer.accelerator auto --trainer.devices 2", "torch finds no GPU here", "--trainer.accelerator cpu for 2"),
]


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("typed", "problem", "remedy"), NO_GPU, ids=lambda text: text)
def test_devices_that_are_not_there(
    typed: str, problem: str, remedy: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake = Mistake(f"fit --config tiny.yaml {typed}", problem, remedy)
    test_a_mistake_ends_with_one_line(mistake, workshop, capsys)


def test_each_row_is_another_mistake() -> None:
    assert len({mistake.typed for mistake in MISTAKES}) == len(MISTAKES)

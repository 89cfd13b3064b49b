"""Files of every format that is read, each in a folder where a command reads it and ends well."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_masks
from safetensors.torch import save_file

from benchmarks.fuzzing.mutations import CANARY
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.readers.annotations import rasterize
from swinv2_tasks.datamodules.shards.writer import StoredImage, write_shards
from swinv2_tasks.weights.saving import save_weights
from swinv2_tasks.weights.sharded import REST, flatten
from tests.helpers import scenes
from tests.helpers.checkpoints import official_state, tiny_backbone
from tests.helpers.films import write_film
from tests.helpers.tiny import QUIET
from tests.helpers.tiny_tasks import TINY_TASKS

TASKS = ("classification", "segmentation", "mask_rcnn", "video", "simmim")

QUICK_TASKS = TASKS[:3]
"""Those whose files commands without a trainer read."""

CHECKPOINT = "runs/seed/0/checkpoints/last.ckpt"

QUICK = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--runs=runs"]


@dataclass(frozen=True)
class Target:
    """A file that a command reads.

    Args:
        format: what the table of results calls it.
        command: the command line, but for the program's name.
        folder: where it is run; a folder that ``write_seeds`` makes.
        files: glob pattern of the files in it, one of which is changed.
        content: how it is changed; a key of ``mutations.BY_FORMAT``.
        weight: how often it is chosen beside others.
    """

    format: str
    command: tuple[str, ...]
    folder: str
    files: str
    content: str
    weight: float = 1.0

    @property
    def is_quick(self) -> bool:
        """Whether the command builds no trainer, of the files of a task that is written for such commands."""
        is_light = self.command[0] in ("weights", "score") or "--print_config" in self.command
        return is_light and self.folder in QUICK_TASKS

    @property
    def command_name(self) -> str:
        """The command without its arguments."""
        words = [word for word in self.command if not word.startswith("-")]
        if words[0] == "fit" and "--resume" in self.command:
            return "fit --resume"
        return f"{words[0]} {words[1]}" if words[0] in ("weights", "score", "data") else words[0]


def list_targets(quick: bool = False) -> list[Target]:
    """Every format with every command that reads it; ``quick``: without commands that build a trainer."""
    targets = [*_checkpoints(), *_weights(), *_configs(), *_images(), *_videos(), *_annotations(), *_lists()]
    targets += [*_runs(), *_shards()]
    return [target for target in targets if target.is_quick] if quick else targets


def _fit(*more: str) -> tuple[str, ...]:
    return ("fit", "--config=config.yaml", *QUICK, *more)


def _validate(*more: str) -> tuple[str, ...]:
    return ("validate", f"--ckpt_path={CHECKPOINT}", "--runs=evaluations", *more)


def _predict(source: str, *more: str) -> tuple[str, ...]:
    return ("predict", f"--ckpt_path={CHECKPOINT}", f"--data.source={source}", "--output=predictions", *more)


def _checkpoints() -> Iterator[Target]:
    for task in TASKS:
        source = "videos/film.mp4" if task == "video" else "images/photo.jpg"
        many = 3.0 if task == "classification" else 1.0
        yield Target("checkpoint", ("weights", "inspect", CHECKPOINT), task, CHECKPOINT, "checkpoint", 3 * many)
        convert = ("weights", "convert", CHECKPOINT, "out.safetensors", "--format=official")
        yield Target("checkpoint", convert, task, CHECKPOINT, "checkpoint", many / 2)
        yield Target("checkpoint", _validate(), task, CHECKPOINT, "checkpoint", many)
        yield Target("checkpoint", _predict(source), task, CHECKPOINT, "checkpoint", many)
        yield Target(
            "checkpoint",
            ("fit", "--resume", "runs/seed/0", "--trainer.max_steps=2"),
            task,
            CHECKPOINT,
            "checkpoint",
            many / 2,
        )
    sweep = ("sweep", f"--ckpt_path={CHECKPOINT}", "--settings", "4@32", "--runs=sweeps")
    yield Target("checkpoint", sweep, "classification", CHECKPOINT, "checkpoint", 0.15)


def _weights() -> Iterator[Target]:
    run = "runs/seed/0/weights.safetensors"
    files = [
        ("old pth", "weights/official.pth", "weights/official.pth", "checkpoint"),
        ("old pth", "weights/legacy.pth", "weights/legacy.pth", "bytes"),
        ("safetensors", "weights/timm.safetensors", "weights/timm.safetensors", "safetensors"),
        ("safetensors", run, run, "safetensors"),
        ("HF folder", "weights/hf", "weights/hf/config.json", "json"),
        ("HF folder", "weights/hf_sharded", "weights/hf_sharded/*.json", "json"),
        ("HF folder", "weights/hf_sharded", "weights/hf_sharded/*.safetensors", "safetensors"),
        ("sharded checkpoint", "weights/sharded", "weights/sharded/rest.pt", "checkpoint"),
        ("sharded checkpoint", "weights/sharded", "weights/sharded/shard*.pt", "checkpoint"),
    ]
    for format, path, changed, content in files:
        yield Target(format, ("weights", "inspect", path), "classification", changed, content, 6)
        convert = ("weights", "convert", path, "out.pth", "--format=timm")
        yield Target(format, convert, "classification", changed, content, 1)
        if path != "weights/sharded":
            sizes = () if path == run else ("--model.backbone.depths=[2,1,1,1]", "--model.backbone.num_heads=[1,2,4,8]")
            fit = _fit(f"--model.weights={path}", *sizes)
            yield Target(format, fit, "classification", changed, content, 0.4)
    yield Target("sharded checkpoint", _validate_sharded(), "classification", "weights/sharded/*.pt", "checkpoint", 1)


def _validate_sharded() -> tuple[str, ...]:
    return ("validate", "--ckpt_path=weights/sharded", "--runs=evaluations")


def _configs() -> Iterator[Target]:
    for task in TASKS:
        yield Target("config", _fit("--print_config"), task, "config.yaml", "yaml", 6)
        yield Target("config", _fit(), task, "config.yaml", "yaml", 1.5)
    validate = ("validate", "--config=config.yaml", f"--ckpt_path={CHECKPOINT}", "--runs=evaluations")
    yield Target("config", validate, "classification", "config.yaml", "yaml", 2)
    yield Target("config", ("memory", "--config=config.yaml"), "classification", "config.yaml", "yaml", 0.15)


def _images() -> Iterator[Target]:
    contents = {"png": "png", "jpg": "jpeg"}
    for ending in IMAGE_ENDINGS:
        format = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG 2000"}.get(ending.partition("_")[0], ending.upper())
        path = f"images/photo.{ending}" if "_" not in ending else f"images/{ending}"
        content = contents.get(path.rpartition(".")[2], "bytes")
        for task, weight in (("classification", 1.5), ("mask_rcnn", 0.3), ("segmentation", 0.3)):
            yield Target(format.partition("_")[0], _predict(path), task, path, content, weight)
    yield Target("JPEG", _fit(), "classification", "data/train/n01/*.jpg", "jpeg", 1)
    yield Target("JPEG", _validate(), "classification", "data/val/*/*.jpg", "jpeg", 1)
    yield Target("JPEG", _fit(), "simmim", "data/train/*/*.jpg", "jpeg", 0.5)
    yield Target("JPEG", _validate(), "mask_rcnn", "data/val2017/*.jpg", "jpeg", 0.5)
    optimize = ("data", "optimize", "imagenet", "data", "packed", "--workers=1")
    yield Target("JPEG", optimize, "classification", "data/train/n01/*.jpg", "jpeg", 0.08)
    maps = "data/annotations/validation/*.png"
    yield Target("label map", _validate(), "segmentation", maps, "png", 2)
    yield Target("label map", _fit(), "segmentation", "data/annotations/training/*.png", "png", 1)
    yield Target("label map", SCORE_MAPS, "segmentation", maps, "png", 5)
    yield Target("label map", SCORE_MAPS, "segmentation", "maps/*.png", "png", 5)


IMAGE_ENDINGS = ("jpg", "png", "tif", "webp", "bmp", "gif", "ppm", "jp2", "avif", "png_palette.png", "png_16.png")

SCORE_MAPS = (
    *("score", "ade20k", "--annotations=data/annotations/validation", "--predictions=maps"),
    "--class_names=data/names.txt",
)


def _videos() -> Iterator[Target]:
    for ending in VIDEO_ENDINGS:
        path = f"videos/film.{ending}"
        yield Target(ending.upper(), _predict(path), "video", path, "video", 1.5)
    yield Target("MP4", _fit(), "video", "data/train/*.mp4", "video", 1)
    yield Target("MP4", _validate(), "video", "data/val/*.mp4", "video", 1.5)
    check = ("data", "check", "kinetics", "data", "--workers=1", "--seconds=20")
    yield Target("MP4", check, "video", "data/val/*.mp4", "video", 0.15)
    yield Target("video verdicts", _fit(), "video_checked", "data/checked_videos.csv", "text", 1)


VIDEO_ENDINGS = ("mp4", "avi", "mkv", "webm", "ts")


def _annotations() -> Iterator[Target]:
    for split, command in (("train", _fit()), ("val", _validate()), ("val", SCORE_BOXES)):
        path = f"data/annotations/instances_{split}2017.json"
        yield Target("COCO annotations", command, "mask_rcnn", path, "json", 12 if command == SCORE_BOXES else 2)
    yield Target("COCO detections", SCORE_BOXES, "mask_rcnn", "detections.json", "json", 12)


SCORE_BOXES = (
    *("score", "coco", "--annotations=data/annotations/instances_val2017.json", "--predictions=detections.json"),
)


def _lists() -> Iterator[Target]:
    yield Target("class list", _fit(), "classification", "data/classes.csv", "text", 2)
    listed = _validate("--data.val_dir=val", "--data.val_list=data/val.txt")
    yield Target("image list", listed, "classification", "data/val.txt", "text", 2)
    yield Target("class list", _fit(), "segmentation", "data/names.txt", "text", 1)
    yield Target("class list", SCORE_MAPS, "segmentation", "data/names.txt", "text", 2)
    yield Target("video list", _validate(), "video", "data/val.csv", "text", 2)
    yield Target("video list", _fit(), "video", "data/train.csv", "text", 1)
    yield Target("class list", _fit("--data.class_names=data/labels.json"), "video", "data/labels.json", "json", 1)
    colored = ("score", "ade20k", "--annotations=colored", "--predictions=colored", "--palette=data/palette.txt")
    yield Target("palette", (*colored, "--class_names=data/names.txt"), "segmentation", "data/palette.txt", "text", 1)


def _runs() -> Iterator[Target]:
    resume = ("fit", "--resume", "runs/seed/0", "--trainer.max_steps=2")
    for name, content in (("config.yaml", "yaml"), ("run.json", "json"), ("metrics.csv", "text")):
        yield Target("run folder", resume, "classification", f"runs/seed/0/{name}", content, 1)
    yield Target("run folder", resume, "classification", "runs/seed/0/summary.json", "json", 0.3)
    yield Target("run folder", resume, "classification", "runs/seed/0/events.jsonl", "jsonl", 0.5)
    again = _predict("data/val")
    for pattern, content in (("*.jsonl", "jsonl"), ("settings.json", "json"), ("ended.json", "json")):
        yield Target("predictions", again, "predicted", f"predictions/.progress/{pattern}", content, 1)
    yield Target("predictions", again, "predicted", "predictions/predictions.csv", "text", 0.5)
    sweep = ("sweep", f"--ckpt_path={CHECKPOINT}", "--settings", "4@32", "--runs=sweeps")
    yield Target("sweep table", sweep, "swept", "runs/seed/0/sweep/*.csv", "text", 0.1)
    yield Target("sweep table", sweep, "swept", "runs/seed/0/sweep/*.json", "json", 0.1)


def _shards() -> Iterator[Target]:
    streamed = ("--data.root=shards", "--data.class_names=null")
    for pattern, content in (("index.json", "json"), ("*.bin", "bytes"), ("*.npy", "bytes")):
        yield Target("shards", _fit(*streamed), "classification", f"shards/train/{pattern}", content, 1)
        yield Target("shards", _validate(*streamed), "classification", f"shards/val/{pattern}", content, 1)


# ---- making them


def write_seeds(folder: Path, quick: bool = False) -> None:
    """Writes the folders of targets: datasets, trained runs, weights, shards, predictions.

    Raises:
        RuntimeError: a command fails that should not.
    """
    folder.mkdir(parents=True)
    for name in QUICK_TASKS if quick else TASKS:
        with _inside(folder / name):
            _write_task(name)
    with _inside(folder / "classification"):
        _write_weights()
        _write_shards()
    if not quick:
        _write_results(folder)
    for path in folder.iterdir():
        (path / "canary_module.py").write_text(
            f"open({CANARY!r}, 'w').close()\nclass Touch:\n    def __init__(self, **_): open({CANARY!r}, 'w').close()\n"
        )


def _write_results(folder: Path) -> None:
    """Predictions, a sweep and verdicts of videos, each in a folder of its own."""
    for name, original in (("predicted", "classification"), ("swept", "classification"), ("video_checked", "video")):
        shutil.copytree(folder / original, folder / name)
    with _inside(folder / "predicted"):
        _run(*_predict("data/val"))
    with _inside(folder / "swept"):
        _run("sweep", f"--ckpt_path={CHECKPOINT}", "--settings", "4@32", "--runs=sweeps")
    with _inside(folder / "video_checked"):
        _run("data", "check", "kinetics", "data", "--workers=1")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _run(*arguments: str) -> None:
    status = main(arguments)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} in {os.getcwd()} ended with {status}")


def _write_task(name: str) -> None:
    task = TINY_TASKS[name]
    task.write_data(Path("data"), train=6, val=3)
    task.config(Path(), Path("data"), name="seed", trainer={**QUIET, "max_steps": 2, "limit_val_batches": 1})
    _shorten(Path("config.yaml"))
    _run("fit", "--config=config.yaml", *QUICK)
    Path("runs/seed/0/events.jsonl").write_text('{"step": 0, "event": "loss spike", "loss": 9.0}\n')
    Path("images").mkdir()
    image = Image.open(next(path for path in Path("data").rglob("*.jpg"))).resize((40, 36)) if name != "video" else None
    if image is not None:
        _write_pictures(image)
    if name == "video":
        for ending in VIDEO_ENDINGS:
            codec = {"webm": "libvpx", "avi": "mpeg4"}.get(ending, "libx264")
            write_film(Path(f"videos/film.{ending}"), frames=10, size=(32, 40), codec=codec)
        Path("data/labels.json").write_text(json.dumps([*sorted(TINY_TASKS["video"].names)]))
    if name == "segmentation":
        shutil.copytree("data/annotations/validation", "maps")
        Path("data/palette.txt").write_text("".join(f"{' '.join(map(str, color))}\n" for color in scenes.COLORS[1:]))
        Path("colored").mkdir()
        for path in Path("maps").iterdir():
            colors = scenes.COLORS[np.asarray(Image.open(path)).clip(min=1)]
            Image.fromarray(colors.astype(np.uint8)).save(Path("colored", path.name))
    if name == "mask_rcnn":
        _write_detections()
    if name == "classification":
        lines = [
            f"{path.relative_to('data/val')} {path.parent.name}" for path in sorted(Path("data/val").rglob("*.jpg"))
        ]
        Path("data/val.txt").write_text("\n".join(lines) + "\n")


def _shorten(config: Path) -> None:
    """Sets two steps, so that a run that was ended by ``max_steps=1`` can be resumed."""
    settings = yaml.safe_load(config.read_text())
    settings["data"]["init_args"]["batch_size"] = 2
    config.write_text(yaml.safe_dump(settings))


def _write_pictures(image: Image.Image) -> None:
    for ending in IMAGE_ENDINGS:
        if "_" not in ending:
            image.save(f"images/photo.{ending}")
    image.quantize(16).save("images/png_palette.png")
    Image.new("I;16", (40, 36), 700).save("images/png_16.png")


def _write_detections() -> None:
    truth = json.loads(Path("data/annotations/instances_val2017.json").read_text())
    size_of = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    entries = []
    for entry in truth["annotations"]:
        mask = rasterize(entry["segmentation"], *size_of[entry["image_id"]], where="")
        code = coco_masks.encode(np.asfortranarray(mask))
        segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        own = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
        entries.append({**own, "score": 0.5, "segmentation": segmentation})
    Path("detections.json").write_text(json.dumps(entries))


def _write_weights() -> None:
    folder = Path("weights")
    folder.mkdir()
    torch.manual_seed(0)
    state = {"model": official_state()}
    torch.save(state, folder / "official.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    backbone = tiny_backbone()
    save_weights(backbone, folder / "timm.safetensors", format="timm")
    save_weights(backbone, folder / "hf", format="huggingface", image_size=128)
    _write_hf_shards(folder / "hf", folder / "hf_sharded")
    _write_sharded(torch.load(CHECKPOINT, weights_only=True), folder / "sharded")


def _write_hf_shards(whole: Path, folder: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(whole / "model.safetensors")
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    names, index = [*tensors], {}
    for number in range(2):
        part = {name: tensors[name] for name in names[number::2]}
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _write_sharded(contents: dict[str, Any], folder: Path) -> None:
    """The same checkpoint as two processes write it."""
    folder.mkdir()
    state, leaves = flatten(
        {"state_dict": contents["state_dict"]}, lambda leaf: isinstance(leaf, torch.Tensor) and leaf.dim() > 0
    )
    shapes = {key: tuple(leaf.shape) for key, leaf in leaves.items()}
    for rank in range(2):
        tensors, first_rows = {}, {}
        for key, leaf in leaves.items():
            middle = (len(leaf) + 1) // 2
            tensors[key], first_rows[key] = (leaf[:middle] if rank == 0 else leaf[middle:]).clone(), rank * middle
        part = {"tensors": tensors, "first_rows": first_rows, "saved": "x"}
        torch.save(part, folder / f"shard_{rank}_of_2.pt")
    rest = {**contents, **state, "optimizer_states": [], "shards": {"number": 2, "shapes": shapes, "saved": "x"}}
    torch.save(rest, folder / REST)


def _write_shards() -> None:
    for split in ("train", "val"):
        paths = sorted(Path("data", split).rglob("*.jpg"))
        images = [StoredImage(str(path), str(path.relative_to("data")), path.parent.name) for path in paths]
        classes = Classes(["n01", "n02", "n03"], ["red apple", "green leaf", "blue sea"])
        for _ in write_shards(Path("shards", split), images, classes, 6000, shuffle=split == "train"):
            pass

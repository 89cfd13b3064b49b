"""Sample data for all four tasks: synthetic images of shaded shapes, in the datasets' own formats on disk.

    imagenet/  ImageNet folders: which shape?                      train/<id>/*.jpg, val/<id>/*.jpg, class_names.csv
    coco/      COCO 2017: where is each shape?                     annotations/*.json, train2017/*.jpg, val2017/*.jpg
    ade20k/    ADE20K scene parsing: which texture or shape?       images/, annotations/, objectInfo.txt
    kinetics/  Kinetics: how does the shape move?                  train/<label>/*.mp4, val/…, train.csv, val.csv

Every file is drawn from its own generator, seeded with its index, so it depends on nothing that was drawn before it.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from swinv2_tasks.errors import UserError
from swinv2_tasks.files import new_folder
from swinv2_tasks.outside_files import read_json
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.sample_data.shapes import (
    MOTIONS,
    OUTLINES,
    TEXTURES,
    classification_image,
    detection_scene,
    motion_clip,
    segmentation_scene,
)

VERSION = 1
"""Goes up whenever the same seed comes to give other files."""

SPLITS = ("train", "val")
Counts = dict[str, int]

IMAGENET_IDS = {name: f"n9000000{number}" for number, name in enumerate(OUTLINES, start=1)}
"""ImageNet folders are named by ids like n01440764; these are ours."""

COCO_IDS = {"disc": 1, "triangle": 7, "star": 44, "ring": 90}
"""As in COCO, the ids leave gaps."""

SCENE_CLASSES = (*TEXTURES, *COCO_IDS)
"""ADE20K label i + 1 is SCENE_CLASSES[i]; 0 is the line between two textures."""

FRAMES_PER_SECOND = 12


def write_sample_data(root: str | Path, seed: int = 0, *, scale: float = 1.0) -> dict[str, Counts]:
    """Writes the four sample datasets under a folder, atomically.

    They are written beside the folder and moved there once complete. A folder that already holds just these data
    is left unchanged.

    Args:
        root: The folder to write: new or empty.
        seed: From 0; the same seed gives the same files, byte for byte.
        scale: Multiplies the number of files.

    Returns:
        For each dataset the number of files in "train" and "val", and of "classes".

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    if seed < 0 or scale <= 0:
        raise UserError(f"seed must be 0 or more and scale above 0, got seed {seed} and scale {scale}")
    root = Path(root).absolute()
    counts = _counts(scale)
    record = {"version": VERSION, "seed": seed, "scale": scale, "datasets": counts}
    if _holds(root, record):
        return counts
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(
            f"{root} is not an empty folder, and does not hold the sample data of seed {seed} (version {VERSION}): "
            "name another folder, or remove this one first"
        )

    try:
        with new_folder(root) as partial:
            files = chain.from_iterable(write(partial / name, seed, counts[name]) for name, write in WRITERS.items())
            total = sum(count[split] for count in counts.values() for split in SPLITS)
            with WorkProgress("Writing sample data", total) as progress:
                for _ in files:
                    progress.advance()
            _write_json(partial / "sample.json", record)
    except OSError as error:
        raise UserError(f"cannot write sample data to {root}: {error.strerror or error}") from error
    return counts


def _counts(scale: float) -> dict[str, Counts]:
    """The number of files in each split and of classes, for each dataset."""

    def count(train: int, val: int, classes: int, per_class: bool) -> Counts:
        factor = classes if per_class else 1
        return {
            "train": max(1, round(train * scale)) * factor,
            "val": max(1, round(val * scale)) * factor,
            "classes": classes,
        }

    return {
        "imagenet": count(100, 25, len(OUTLINES), per_class=True),
        "coco": count(200, 50, len(COCO_IDS), per_class=False),
        "ade20k": count(160, 40, len(SCENE_CLASSES), per_class=False),
        "kinetics": count(25, 8, len(MOTIONS), per_class=True),
    }


def _holds(root: Path, record: dict) -> bool:
    """Whether a folder holds the sample data that a record describes, with no dataset removed since."""
    try:
        written = read_json(root / "sample.json")
    except (OSError, ValueError):
        return False
    return written == record and all((root / name).is_dir() for name in WRITERS)


def generator(seed: int, dataset: str, split: str, index: int) -> Generator:
    """The generator that draws one file."""
    return np.random.default_rng([seed, list(WRITERS).index(dataset), SPLITS.index(split), index])


# Each writer below fills one dataset's folder and yields after every image or clip.


def _write_imagenet(folder: Path, seed: int, counts: Counts) -> Iterator[None]:
    _write_csv(folder / "class_names.csv", ["id", "name"], [[id, name] for name, id in IMAGENET_IDS.items()])
    for split in SPLITS:
        for index in range(counts[split]):
            class_name = list(OUTLINES)[index % len(OUTLINES)]
            image = classification_image(generator(seed, "imagenet", split, index), class_name)
            _write_jpeg(folder / split / IMAGENET_IDS[class_name] / f"{split}_{index:08d}.jpg", image)
            yield


def _write_coco(folder: Path, seed: int, counts: Counts) -> Iterator[None]:
    for split in SPLITS:
        images: list[dict] = []
        annotations: list[dict] = []
        # In COCO, ids neither start at 1 nor come back in the other split, and those of images leave gaps.
        first_id = 1_000_000 * SPLITS.index(split) + 139
        for index in range(counts[split]):
            has_crowd = index == 0
            rng = generator(seed, "coco", split, index)
            scene = detection_scene(rng, list(COCO_IDS), crowd="star" if has_crowd else None)
            height, width = scene.image.shape[:2]
            image_id = first_id + 37 * index
            file_name = f"{image_id:012d}.jpg"
            images.append({"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1})
            for number, (name, mask) in enumerate(zip(scene.class_names, scene.masks, strict=True)):
                ids = {"id": first_id + len(annotations), "image_id": image_id, "category_id": COCO_IDS[name]}
                annotations.append(ids | annotation(mask, crowd=has_crowd and number == 0))
            _write_jpeg(folder / f"{split}2017" / file_name, scene.image)
            yield
        _write_json(
            folder / "annotations" / f"instances_{split}2017.json",
            {
                "info": {"description": "Sample data: shaded shapes", "version": str(VERSION), "year": 2017, "url": ""},
                "licenses": [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}],
                "images": images,
                "annotations": annotations,
                "categories": [
                    {"id": id, "name": name, "supercategory": "round" if name in ("disc", "ring") else "pointed"}
                    for name, id in COCO_IDS.items()
                ],
            },
        )


def annotation(mask: np.ndarray, crowd: bool) -> dict:
    """COCO's annotation of an object's visible pixels, bool (H, W): box, area and outline, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = columns[0], rows[0]
    return {
        "bbox": [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)],
        "area": float(mask.sum()),
        "iscrowd": int(crowd),
        "segmentation": run_lengths(mask) if crowd else polygons(mask),
    }


def polygons(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask, bool (H, W), along the edges of its pixels: COCO's lists of x, y, x, y, … in pixels."""
    up = 4  # enlarged, the outline through the pixels' middles comes close enough to their edges to be rounded to them
    large = mask.astype(np.uint8).repeat(up, axis=0).repeat(up, axis=1)
    lines, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)

    for line, (_, _, _, parent) in zip(lines, tree[0], strict=True):
        if parent >= 0:  # a hole, which a polygon cannot have: cut the mask in two through it
            cut = math.ceil(line[..., 0].mean() / up)
            left = mask.copy()
            left[:, cut:] = False
            right = mask.copy()
            right[:, :cut] = False
            return polygons(left) + polygons(right)

    outlines = []
    for line in lines:
        corners = np.round((line[:, 0] + 0.5) / up)
        is_repeated = np.all(corners == np.roll(corners, 1, axis=0), axis=1)
        corners = corners[~is_repeated]
        outlines.append(corners.ravel().tolist())
    return outlines


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed code of a mask, bool (H, W): pixels by turns outside and inside, counted down the columns."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"counts": np.diff(ends, prepend=0).tolist(), "size": list(mask.shape)}


def _write_ade20k(folder: Path, seed: int, counts: Counts) -> Iterator[None]:
    for split, name in zip(SPLITS, ("training", "validation"), strict=True):
        for index in range(counts[split]):
            image, labels = segmentation_scene(generator(seed, "ade20k", split, index), list(COCO_IDS))
            stem = f"ADE_{split}_{index + 1:08d}"
            _write_jpeg(folder / "images" / name / f"{stem}.jpg", image)
            _write_bytes(folder / "annotations" / name / f"{stem}.png", cv2.imencode(".png", labels)[1].tobytes())
            yield
    _write_bytes(folder / "objectInfo.txt", "".join(f"{name}\n" for name in SCENE_CLASSES).encode())


def _write_kinetics(folder: Path, seed: int, counts: Counts) -> Iterator[None]:
    _write_bytes(folder / "label_map.txt", "".join(f"{label}\n" for label in MOTIONS).encode())
    for split in SPLITS:
        rows = []
        for index in range(counts[split]):
            label = list(MOTIONS)[index % len(MOTIONS)]
            frames = motion_clip(generator(seed, "kinetics", split, index), label)
            youtube_id = f"{split:_<5}{index:06d}"  # eleven characters, as theirs
            seconds = math.ceil(len(frames) / FRAMES_PER_SECOND)
            _write_clip(folder / split / label / f"{youtube_id}_{0:06d}_{seconds:06d}.mp4", frames)
            rows.append([label, youtube_id, 0, seconds, split])
            yield
        _write_csv(folder / f"{split}.csv", ["label", "youtube_id", "time_start", "time_end", "split"], rows)


def _to_bgr(image: np.ndarray) -> np.ndarray:
    """An image in [0, 1], RGB, as OpenCV writes it: uint8 in [0, 255], BGR."""
    return np.round(image[..., ::-1] * 255).clip(0, 255).astype(np.uint8)


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    _write_bytes(path, cv2.imencode(".jpg", _to_bgr(image), quality)[1].tobytes())


def _write_json(path: Path, content: dict) -> None:
    _write_bytes(path, json.dumps(content).encode())


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _write_clip(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_SECOND, (width, height))
    if not writer.isOpened():
        raise OSError(f"this OpenCV cannot write mp4 files, as tried at {path}")
    for frame in frames:
        writer.write(_to_bgr(frame))
    writer.release()


WRITERS: dict[str, Callable[[Path, int, Counts], Iterator[None]]] = {
    "imagenet": _write_imagenet,
    "coco": _write_coco,
    "ade20k": _write_ade20k,
    "kinetics": _write_kinetics,
}

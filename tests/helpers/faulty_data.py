"""A clean dataset of each task, drawn by a seed, and faults to plant in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image


def photograph(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth color patches like those of a photograph, another one for each seed, with grain; uint8 (H, W, 3)."""
    rng = np.random.default_rng([7, seed])
    coarse = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **settings)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_frames(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """A video of these frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        file.mux(stream.encode())
    return path


def write_imagenet(root: Path) -> Path:
    seed = 0
    for split, number in (("train", 6), ("val", 4)):
        for name in ("cat", "dog", "owl"):
            for k in range(number):
                save(root / split / name / f"{name}_{split}_{k}.jpg", photograph(seed), quality=92)
                seed += 1
    return root


def write_simmim(root: Path) -> Path:
    for k in range(12):
        save(root / f"sub{k % 2}" / f"image_{k}.jpg", photograph(k), quality=92)
    return root


def write_coco(root: Path) -> Path:
    seed = 0
    for split, number in (("train", 6), ("val", 5)):
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 3, "name": "cup"}, {"id": 9, "name": "pen"}]
        for k in range(1, number + 1):
            name = f"{split}_{k}.jpg"
            save(root / f"{split}2017" / name, photograph(seed), quality=92)
            seed += 1
            content["images"].append({"id": k, "file_name": name, "width": 128, "height": 96})
            for index, category in enumerate((3, 9)):
                x, y, w, h = 10.0 + 50 * index, 12.0 + k, 40.0, 30.0
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                entry = {"id": 10 * k + index, "image_id": k, "category_id": category, "iscrowd": 0, "area": w * h}
                content["annotations"].append(entry | {"bbox": [x, y, w, h], "segmentation": [polygon]})
        file = root / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return root


def write_ade20k(root: Path) -> Path:
    seed = 0
    for split, number in (("training", 6), ("validation", 4)):
        for k in range(number):
            save(root / "images" / split / f"{split}_{k}.jpg", photograph(seed), quality=92)
            labels = np.repeat(np.uint8([1, 2, 3, 0]), 32)[None].repeat(96, axis=0)
            save(root / "annotations" / split / f"{split}_{k}.png", labels)
            seed += 1
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    return root


def write_kinetics(root: Path) -> Path:
    seed = 0
    for split, number in (("train", 3), ("val", 2)):
        for name in ("jump", "run"):
            for k in range(number):
                frames = [np.roll(photograph(1000 + seed), 2 * step, axis=1) for step in range(70)]
                write_frames(root / split / name / f"{name}_{split}_{k}.mp4", frames)
                seed += 1
    return root


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what a JSON file says."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


WRITERS = {
    "imagenet": write_imagenet,
    "coco": write_coco,
    "ade20k": write_ade20k,
    "kinetics": write_kinetics,
    "simmim": write_simmim,
}


def reencode(source: Path, target: Path, scale: float = 0.9, quality: int = 45) -> Path:
    """The same image a little smaller, and compressed much more."""
    pixels = read(source)
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return save(target, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), quality=quality)


# ---- faults: each changes files of a dataset and returns the check with the file that it is to name

Planted = tuple[str, str]


def plant_in_images(folder: Path, others: Path) -> list[Planted]:
    """Faults of image files of a folder, of whose images copies get into others; as good for any task."""
    images = sorted(path for path in folder.rglob("*.jpg"))
    names = iter(images)
    empty, cut, scrambled, ending, gray, alpha, cmyk, deep, turned, small, strip, flat = (
        next(names).parent / f"planted_{name}" for name in (
            "empty.jpg", "cut.jpg", "noise.jpg", "ending.png", "gray.jpg", "alpha.png", "cmyk.jpg", "deep.png",
            "turned.jpg", "small.jpg", "strip.jpg", "flat.jpg",
        )
    )  # fmt: skip
    seeds = iter(range(500, 600))
    empty.write_bytes(b"")
    content = save(cut, photograph(next(seeds)), quality=92).read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    scrambled.write_bytes(b"no image at all")
    save(ending.with_suffix(".jpg"), photograph(next(seeds)), quality=92).rename(ending)
    save(gray, photograph(next(seeds))[..., 0])
    save(alpha, np.dstack([photograph(next(seeds)), np.full((96, 128), 90, np.uint8)]))
    Image.fromarray(photograph(next(seeds))).convert("CMYK").save(cmyk)
    save(deep, photograph(next(seeds))[..., 0].astype(np.uint16) * 256)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(turned, photograph(next(seeds)), exif=exif)
    save(small, photograph(next(seeds), 20, 24), quality=95)
    save(strip, photograph(next(seeds), 40, 400), quality=92)
    save(flat, np.full((96, 128, 3), 77, np.uint8))

    target = sorted(others.rglob("*.jpg"))[0].parent
    copied = target / "planted_copy.jpg"
    copied.write_bytes(images[0].read_bytes())
    twice = images[1].parent / "planted_twice.jpg"
    twice.write_bytes(images[1].read_bytes())
    pixels = save(target / "planted_pixels.png", read(images[2]))
    near = reencode(images[3], target / "planted_near.jpg")
    near_in = reencode(images[4], images[4].parent / "planted_near_in.jpg")
    return [
        ("empty_file", empty.name), ("truncated_file", cut.name), ("unreadable_file", scrambled.name),
        ("wrong_extension", ending.name), ("gray_among_color", gray.name), ("transparent_image", alpha.name),
        ("cmyk_image", cmyk.name), ("sixteen_bit_image", deep.name), ("rotated_image", turned.name),
        ("small_image", small.name), ("extreme_aspect_ratio", strip.name), ("flat_image", flat.name),
        ("duplicate_across_splits", copied.name), ("duplicate_in_split", twice.name),
        ("same_pixels_across_splits", pixels.name), ("near_duplicate_across_splits", near.name),
        ("near_duplicate_in_split", near_in.name),
    ]  # fmt: skip


def plant_imagenet(root: Path) -> list[Planted]:
    planted = plant_in_images(root / "train", root / "val")
    contradiction = root / "train" / "owl" / "planted_dog.jpg"
    contradiction.write_bytes((root / "train" / "dog" / "dog_train_5.jpg").read_bytes())
    for name in ("emu", "Owl"):  # the latter in the training data alone
        save(root / "train" / name / "planted_single.jpg", photograph(600 + len(name) + ord(name[0])))
    return [
        *planted,
        ("contradicting_labels", contradiction.name), ("class_without_val", "emu"), ("single_sample_class", "emu"),
        ("similar_class_names", "owl"),
    ]  # fmt: skip


def plant_coco(root: Path) -> list[Planted]:
    def change(content: dict[str, Any]) -> None:
        images, objects = content["images"], content["annotations"]
        objects = content["annotations"] = [entry for entry in objects if entry["image_id"] != 6]  # nothing on it
        by_id = {entry["id"]: entry for entry in objects}
        images.append({"id": 70, "file_name": "gone.jpg", "width": 128, "height": 96})
        images[4]["width"] = 130
        by_id[10] |= {"bbox": [10, 10, 0, 5], "segmentation": None}
        by_id[11] |= {"bbox": [400, 10, 5, 5], "segmentation": None}
        by_id[20] |= {"bbox": [100, 20, 60, 30], "segmentation": None}
        by_id[21] |= {"bbox": [5, 5, 1, 30], "segmentation": None}
        by_id[30] |= {"bbox": [0, 0, 128, 96], "segmentation": None}
        objects += [{**by_id[31], "id": 400}, {**by_id[31], "id": 401, "category_id": 3}]
        by_id[40]["segmentation"] = [[1, 1, 5, 5]]
        by_id[41]["segmentation"] = [[60, 16, 60, 200, 90, 46]]
        by_id[50]["segmentation"] = [[80, 60, 120, 60, 120, 90]]
        by_id[51]["segmentation"] = {"size": [96, 130], "counts": [5]}
        objects += [
            {**by_id[31], "id": 500, "category_id": 77, "bbox": [1, 1, 20, 20]},
            {**by_id[31], "id": 501, "image_id": 999},
            {**by_id[31], "id": 502, "bbox": [1, 2, 3]},
            {**by_id[31], "bbox": [3, 3, 22, 22], "segmentation": None},
        ]

    file = root / "annotations" / "instances_train2017.json"
    edit(file, change)
    save(root / "train2017" / "planted_unlisted.jpg", photograph(700))
    return [
        ("missing_file", "gone.jpg"), ("annotated_size_differs", "train_5.jpg"), ("degenerate_box", "train_1.jpg"),
        ("box_outside", "train_1.jpg"), ("box_beyond_edge", "train_2.jpg"), ("tiny_box", "train_2.jpg"),
        ("whole_image_box", "train_3.jpg"), ("duplicate_box", "train_3.jpg"), ("contradicting_boxes", "train_3.jpg"),
        ("short_polygon", "train_4.jpg"), ("polygon_outside", "train_4.jpg"), ("mask_box_mismatch", "train_5.jpg"),
        ("broken_mask", "train_5.jpg"), ("unknown_category", "train_3.jpg"), ("annotation_without_image", file.name),
        ("invalid_annotation", file.name), ("repeated_id", file.name), ("image_without_annotations", "train_6.jpg"),
        ("unlisted_image", "planted_unlisted.jpg"),
    ]  # fmt: skip


def plant_ade20k(root: Path) -> list[Planted]:
    folder = root / "annotations" / "training"
    (folder / "training_0.png").unlink()
    save(folder / "training_1.png", np.ones((96, 100), np.uint8))
    labels = np.ones((96, 128), np.uint8)
    labels[:, :40] = 9
    save(folder / "training_2.png", labels)
    save(folder / "training_3.png", np.zeros((96, 128), np.uint8))
    save(folder / "training_4.png", np.full((96, 128), 2, np.uint8))
    (folder / "training_5.png").write_bytes(b"no image")
    save(folder / "planted_alone.png", labels.clip(0, 3))
    return [
        ("missing_label_map", "training_0.jpg"), ("label_map_size_differs", "training_1.png"),
        ("unknown_label", "training_2.png"), ("ignored_label_map", "training_3.png"),
        ("single_label_map", "training_4.png"), ("unreadable_label_map", "training_5.png"),
        ("label_map_without_image", "planted_alone.png"),
    ]  # fmt: skip


def plant_kinetics(root: Path) -> list[Planted]:
    first = root / "train" / "jump" / "jump_train_0.mp4"
    cut = root / "train" / "run" / "planted_cut.mp4"
    cut.write_bytes(first.read_bytes()[:-3000])
    (root / "train" / "run" / "planted_empty.mp4").write_bytes(b"")
    short = [np.roll(photograph(1100), step, axis=1) for step in range(8)]
    write_frames(root / "train" / "run" / "planted_short.mp4", short)
    write_frames(root / "train" / "run" / "planted_single.mp4", [photograph(1101)])
    copied = root / "val" / "jump" / "planted_copy.mp4"
    copied.write_bytes(first.read_bytes())
    frames = [np.roll(photograph(1001), 2 * step, axis=1) for step in range(70)]
    write_frames(root / "val" / "jump" / "planted_near.mp4", [cv2.resize(frame, (112, 84)) for frame in frames])
    return [
        ("truncated_file", cut.name), ("empty_file", "planted_empty.mp4"), ("short_video", "planted_short.mp4"),
        ("single_frame_video", "planted_single.mp4"), ("duplicate_across_splits", copied.name),
        ("near_duplicate_across_splits", "planted_near.mp4"),
    ]  # fmt: skip


def plant_simmim(root: Path) -> list[Planted]:
    image = root / "sub0" / "image_0.jpg"
    twice = root / "sub1" / "planted_twice.jpg"
    twice.write_bytes(image.read_bytes())
    (root / "sub1" / "planted_noise.jpg").write_bytes(b"no image")
    return [("duplicate_in_split", twice.name), ("unreadable_file", "planted_noise.jpg")]


PLANTERS = {
    "imagenet": plant_imagenet,
    "coco": plant_coco,
    "ade20k": plant_ade20k,
    "kinetics": plant_kinetics,
    "simmim": plant_simmim,
}

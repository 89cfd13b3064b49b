"""Detections and datasets in supervision's hands: the same boxes, masks and classes, there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.inference import Detections, to_supervision
from swinv2_tasks.inference.detection import paste_masks
from tests.helpers.objects import DATA, new_detector, write_objects

sv = pytest.importorskip("supervision")

Objects = dict[str, list[tuple[str, tuple[float, ...]]]]
"""Of each image's file the names and boxes (left, top, right, bottom) of its objects, sorted."""


def test_detections_keep_boxes_scores_classes_and_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 40 * torch.rand(6, 2, 2, generator=generator, dtype=torch.float64).sort(1).values
    boxes = torch.cat([corners[:, 0], corners[:, 1] + 4], 1)
    masks = torch.rand(6, 28, 28, generator=generator)
    detections = Detections(boxes, torch.tensor([2, 0, 1, 1, 0, 2]), torch.rand(6, generator=generator), masks)
    own = to_supervision(detections, (60, 70), ["cup", "pen", "cat"], mask_threshold=0.4)
    np.testing.assert_allclose(own.xyxy, boxes.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(own.confidence, detections.scores.numpy())
    np.testing.assert_array_equal(own.class_id, detections.labels.numpy())
    assert own.data["class_name"].tolist() == ["cat", "cup", "pen", "pen", "cup", "cat"]
    assert own.mask.dtype == bool and own.mask.shape == (6, 60, 70)
    np.testing.assert_array_equal(own.mask, paste_masks(masks, boxes, (60, 70)).numpy() >= 0.4)
    kept = own[own.confidence > 0.5]  # supervision's own filter
    assert len(kept) == int((detections.scores > 0.5).sum())


def test_what_a_task_detects_is_taken_as_it_comes_also_nothing() -> None:
    task = new_detector()
    (detections,) = task.detect([torch.randn(3, 64, 80)], sizes=[(128, 160)])
    own = to_supervision(detections, (128, 160))
    assert len(own) == len(detections.boxes)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), None)
    assert len(to_supervision(nothing, (64, 80), ["cup"])) == 0


# ---- datasets


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes of whole pixels, without crowds, which neither YOLO nor VOC nor supervision keeps apart."""
    return write_objects(tmp_path_factory.mktemp("coco") / "data", seed=3, masks=False)


def our_objects(root: Path, split: Any = "train", **settings: Any) -> Objects:
    data = CocoDataModule(str(root), **{**DATA, **settings})
    annotations, _ = data.source_on_disk.read(split)
    objects: Objects = {}
    for image in annotations.images:
        entries = []
        for entry in image.objects:
            x, y, width, height = entry.box
            edges = tuple(round(edge, 2) for edge in (x, y, x + width, y + height))
            entries.append((annotations.class_names[entry.label], edges))
        objects[Path(image.file_name).name] = sorted(entries)
    return objects


def their_objects(dataset: Any) -> Objects:
    return {
        Path(path).name: sorted(
            (dataset.classes[label], tuple(round(float(edge), 2) for edge in box))
            for box, label in zip(detections.xyxy, detections.class_id, strict=True)
        )
        if len(detections)
        else []
        for path, detections in dataset.annotations.items()
    }


def assert_alike(first: Objects, second: Objects, tolerance: float = 0.02) -> None:
    assert first.keys() == second.keys() and any(first.values())
    for file, objects in first.items():
        assert [name for name, _ in objects] == [name for name, _ in second[file]]
        boxes = [[box for _, box in own] for own in (objects, second[file])]
        if boxes[0]:
            np.testing.assert_allclose(boxes[0], boxes[1], atol=tolerance)


def test_supervision_reads_the_yolo_that_convert_writes(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "yolo"
    assert main(["data", "convert", str(coco), str(out), "--to", "yolo"]) == 0
    for split in ("train", "val"):
        folders = [str(out / name / split) for name in ("images", "labels")]
        dataset = sv.DetectionDataset.from_yolo(*folders, str(out / "data.yaml"))
        assert_alike(their_objects(dataset), our_objects(coco, split))


def test_supervision_reads_the_voc_that_convert_writes(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "voc"
    assert main(["data", "convert", str(coco), str(out), "--to", "voc"]) == 0
    dataset = sv.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    assert_alike(their_objects(dataset), our_objects(coco, "train") | our_objects(coco, "val"))


@pytest.mark.parametrize("layout", ["yolo", "voc", "coco"])
def test_what_supervision_writes_is_read_and_trained_on(layout: str, coco: Path, tmp_path: Path) -> None:
    file = coco / "annotations" / "instances_train2017.json"
    dataset = sv.DetectionDataset.from_coco(str(coco / "train2017"), str(file))
    root = tmp_path / layout
    if layout == "yolo":
        dataset.as_yolo(str(root / "images" / "train"), str(root / "labels" / "train"), str(root / "data.yaml"))
    elif layout == "voc":
        dataset.as_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    else:
        dataset.as_coco(str(root / "train2017"), str(root / "annotations" / "instances_train2017.json"))
    # VOC's are whole numbers of pixels.
    assert_alike(our_objects(root), our_objects(coco), tolerance=1.0 if layout == "voc" else 0.02)

    data = CocoDataModule(str(root), val_share=None if layout != "coco" else 0.2, masks=False, **DATA)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    boxes: list[Tensor] = [target["boxes"] for target in batch["targets"]]
    assert len(boxes) == DATA["batch_size"] and all(len(own) for own in boxes)

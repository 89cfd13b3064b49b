"""From regions to detections: soft-NMS against a plain reference, scales and horizontal flips, drawing masks."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_masks
from torch import Tensor, nn
from torchvision.ops import batched_nms

from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.datamodules.coco import CocoFiles
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.coco import CocoMetric, as_annotations, as_results
from swinv2_tasks.heads.mask_rcnn import Features, mask_targets
from swinv2_tasks.inference import detection as detection_inference
from swinv2_tasks.inference.detection import (
    DetectionInference,
    Detections,
    detect,
    encode_masks,
    pad_images,
    paste_mask,
    paste_masks,
    soft_nms,
    suppress,
)


def random_boxes(seed: int, number: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    corners = 60 * torch.rand(number, 2)
    boxes = torch.cat([corners, corners + 10 + 40 * torch.rand(number, 2)], 1)
    return boxes, torch.rand(number), torch.randint(0, 3, (number,))


def plain_iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inner = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return inner / (sum(areas) - inner)


def plain_soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, how: DetectionInference) -> list[tuple[int, float]]:
    """The paper's algorithm in loops, a class at a time; then the highest-scoring of all classes."""
    selected = []
    for label in set(labels.tolist()):
        waiting = {k: scores[k].item() for k in range(len(boxes)) if labels[k] == label}
        while waiting:
            best = max(waiting, key=lambda k: waiting[k])
            selected.append((best, waiting.pop(best)))
            for k in waiting:
                overlap = plain_iou(boxes[best].tolist(), boxes[k].tolist())
                if how.nms == "soft_gaussian":
                    waiting[k] *= math.exp(-(overlap**2) / how.sigma)
                elif overlap > how.nms_threshold:
                    waiting[k] *= 1 - overlap
    ordered = sorted(selected, key=lambda entry: -entry[1])
    return [entry for entry in ordered if entry[1] > how.score_threshold][: how.max_detections]


@pytest.mark.parametrize("nms", ["soft_linear", "soft_gaussian"])
@pytest.mark.parametrize("limit", [10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_soft_nms_is_the_plain_algorithm(nms: Any, limit: int, seed: int) -> None:
    how = DetectionInference(nms=nms, nms_threshold=0.3, sigma=0.5, max_detections=limit)
    boxes, scores, labels = random_boxes(seed)
    indices, lowered = soft_nms(boxes, scores, labels, how)
    expected = plain_soft_nms(boxes, scores, labels, how)
    assert indices.tolist() == [k for k, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], rel=1e-4)
    assert len(indices) < len(boxes) or limit == 100


@pytest.mark.parametrize("nms", ["soft_linear", "soft_gaussian"])
def test_equal_boxes_do_not_suppress_the_one_that_was_taken(nms: Any) -> None:
    """As where boxes of several regions are clipped to the whole image."""
    how = DetectionInference(nms=nms)
    boxes, scores = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 4), torch.tensor([0.9, 0.8, 0.7, 0.6])
    labels = torch.zeros(4, dtype=torch.int64)
    indices, lowered = soft_nms(boxes, scores, labels, how)
    expected = plain_soft_nms(boxes, scores, labels, how)
    assert indices.tolist() == [k for k, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], rel=1e-4)


class SoftNMSOfSome(nn.Module):
    """Soft-NMS of the boxes that are chosen: their number is not known before it runs."""

    def __init__(self, how: DetectionInference) -> None:
        super().__init__()
        self.how = how

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor, chosen: Tensor) -> Any:
        return suppress(boxes[chosen], scores[chosen], labels[chosen], self.how)


@pytest.mark.parametrize("nms", ["soft_linear", "soft_gaussian"])
def test_exported_soft_nms_is_the_same(nms: Any) -> None:
    how = DetectionInference(nms=nms, nms_threshold=0.3, max_detections=6)
    boxes, scores, labels = random_boxes(0)
    program = torch.export.export(SoftNMSOfSome(how), (boxes, scores, labels, scores > 0.5)).module()
    for threshold in (0.0, 0.9, 2.0):  # more boxes than detections, fewer, none
        chosen = scores > threshold
        expected = suppress(boxes[chosen], scores[chosen], labels[chosen], how)
        for part, other in zip(program(boxes, scores, labels, chosen), expected, strict=True):
            torch.testing.assert_close(part, other)


def test_hard_nms_is_torchvisions() -> None:
    boxes, scores, labels = random_boxes(0)
    indices = batched_nms(boxes, scores, labels, 0.5)[:20]
    detections = suppress(boxes, scores, labels, DetectionInference(max_detections=20))
    assert all(torch.equal(own, whole[indices]) for own, whole in zip(detections, (boxes, scores, labels), strict=True))


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
def test_nothing_stays_nothing(nms: Any) -> None:
    how = DetectionInference(nms=nms)
    boxes, scores, labels = suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), how)
    assert boxes.shape == (0, 4) and len(scores) == len(labels) == 0
    flat = suppress(torch.tensor([[1.0, 1.0, 1.0, 5.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), how)
    assert not len(flat[0])


class Finder:
    """A head that finds the bright pixels' bounds and draws them: what it says can be foretold."""

    has_masks = True

    def features(self, maps: list[Tensor]) -> Features:
        return Features(OrderedDict(image=maps[0]))

    def classify(self, features: Features, images: Any) -> list[tuple[Tensor, Tensor]]:
        results = []
        for image in features.levels["image"]:
            rows, columns = (image[0] > 0.5).nonzero(as_tuple=True)
            box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            results.append((box[None, None], torch.tensor([[0.1, 0.9]])))
        return results

    def mask_probabilities(self, features: Features, boxes: Any, labels: Any, images: Any) -> list[Tensor]:
        """The left half of each box, as the network sees it, times the image's mean."""
        masks = []
        for image, image_boxes in zip(features.levels["image"], boxes, strict=True):
            mask = torch.zeros(len(image_boxes), 28, 28)
            mask[:, :, :14] = 1
            dark = image[0, :, : image.shape[2] // 2].mean() > image[0, :, image.shape[2] // 2 :].mean()
            masks.append(mask if dark else mask.flip(2))
        return masks


def bright_image() -> Tensor:
    image = torch.zeros(3, 64, 96)
    image[:, 16:40, 8:32] = 1
    return image


def test_views_are_brought_back_upright_and_to_size() -> None:
    how = DetectionInference(scales=(0.5, 1.0, 2.0), flip=True, score_threshold=0.2)
    (detections,) = detect(lambda x: [x], Finder(), [bright_image()], how)  # type: ignore[arg-type]
    assert detections.labels.tolist() == [1]  # the six views agree, and one detection stays
    torch.testing.assert_close(detections.boxes, torch.tensor([[8.0, 16.0, 32.0, 40.0]]), atol=1.01, rtol=0)
    expected = torch.zeros(28, 28)
    expected[:, :14] = 1
    torch.testing.assert_close(detections.masks, expected[None])  # flipped masks were flipped back


def test_scales_are_those_that_come_with_the_images() -> None:
    """Only what is not an image's own size is asked for; what is found comes back in the image's own pixels."""
    scales = []
    inputs = []

    def rescaled(scale: float) -> Tensor:
        scales.append(scale)
        return F.interpolate(bright_image()[None], scale_factor=scale, mode="nearest") * 0.75

    def backbone(x: Tensor) -> list[Tensor]:
        inputs.append((tuple(x.shape[2:]), x.max().item()))
        return [x]

    how = DetectionInference(scales=(1.0, 2.0), score_threshold=0.2)
    (detections,) = detect(backbone, Finder(), [bright_image()], how, rescaled=[rescaled])  # type: ignore[arg-type]
    assert scales == [2.0] and inputs == [((64, 96), 1.0), ((128, 192), 0.75)]
    torch.testing.assert_close(detections.boxes, torch.tensor([[8.0, 16.0, 32.0, 40.0]]))


def test_images_of_several_sizes_go_through_together() -> None:
    wide, high = bright_image(), torch.zeros(3, 100, 50)
    high[:, 70:90, 20:45] = 1
    how = DetectionInference(score_threshold=0.2)
    together = detect(lambda x: [x], Finder(), [wide, high], how)  # type: ignore[arg-type]
    assert [detections.boxes[0].tolist() for detections in together] == [[8, 16, 32, 40], [20, 70, 45, 90]]


def test_padding_fills_up_at_the_right_and_below() -> None:
    images = [torch.rand(3, 30, 70), torch.rand(3, 45, 20)]
    batch = pad_images(images, 32)
    assert batch.tensors.shape == (2, 3, 64, 96) and batch.image_sizes == [(30, 70), (45, 20)]
    for row, image in zip(batch.tensors, images, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(row[:, :height, :width], image)
        assert row[:, height:].abs().sum() == row[:, :, width:].abs().sum() == 0


# ---- drawing masks


def sample_over_image(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask (M, M) of a box at the middle of every pixel of an image, by ``grid_sample``, as detectron2 pastes."""
    left, top, right, bottom = box.tolist()
    down = (torch.arange(size[0], dtype=torch.float64) + 0.5 - top) / (bottom - top) * 2 - 1
    across = (torch.arange(size[1], dtype=torch.float64) + 0.5 - left) / (right - left) * 2 - 1
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    positions = torch.stack([columns, rows], dim=-1)[None]
    return F.grid_sample(mask.double()[None, None], positions, align_corners=False)[0, 0]


def detections_of(masks: Tensor, boxes: Tensor) -> Detections:
    return Detections(boxes, torch.zeros(len(boxes), dtype=torch.int64), torch.ones(len(boxes)), masks)


def decode_masks(codes: list[dict[str, Any]]) -> Tensor:
    return torch.from_numpy(coco_masks.decode(codes)).permute(2, 0, 1).bool()


def boxes_of_every_shape(size: tuple[int, int]) -> Tensor:
    """Inside, across each edge, around the whole image, beside it, of less than a pixel, of whole pixels."""
    height, width = size
    return torch.tensor(
        [
            [3.2, 4.7, 20.1, 30.9],
            [-5.3, 10.2, 12.4, height + 21.0],
            [width - 7.7, -30.0, width + 9.1, 5.5],
            [-60.0, -70.0, width + 80.0, height + 90.0],
            [0.0, 0.0, width, height],
            [-40.0, -40.0, -1.0, -1.0],
            [width + 1.0, 3.0, width + 30.0, 20.0],
            [10.2, 10.3, 10.6, 10.7],
            [10.3, 5.2, 10.4, 30.1],
            [2.0, 3.0, 30.0, 31.0],
            [7.5, 8.5, 21.5, 36.5],
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("size", [(48, 40), (7, 90), (100, 3), (1, 1)])
@pytest.mark.parametrize("full", [False, True])
def test_masks_are_drawn_between_pixels(size: tuple[int, int], full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond their boxes, by half a cell; and run lengths are those of the drawn pixels, however few at a time."""
    torch.manual_seed(0)
    boxes = boxes_of_every_shape(size)
    masks = torch.ones(len(boxes), 28, 28) if full else torch.rand(len(boxes), 28, 28)
    expected = torch.stack([sample_over_image(*both, size) for both in zip(masks, boxes, strict=True)])
    drawn = torch.stack([paste_mask(*both, size) for both in zip(masks, boxes, strict=True)])
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, expected.float(), atol=1e-5, rtol=0)

    clear = (expected - 0.5).abs() > 1e-5
    for chunk in (1, 100, 2**20):
        monkeypatch.setattr(detection_inference, "CHUNK_PIXELS", chunk)
        codes = encode_masks(detections_of(masks, boxes), size, 0.5)
        pixels = decode_masks(codes)
        assert (pixels == (expected >= 0.5))[clear].all()
        again = coco_masks.encode(np.asfortranarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8)))
        assert [code["counts"].encode() for code in codes] == [code["counts"] for code in again]
        assert all(code["size"] == [*size] for code in codes)


class PastingOfSome(nn.Module):
    """Draws the masks that are chosen: their number is not known before it runs."""

    def forward(self, masks: Tensor, boxes: Tensor, chosen: Tensor) -> Tensor:
        return paste_masks(masks[chosen], boxes[chosen], (48, 40))


def test_exported_masks_are_drawn_between_pixels_too() -> None:
    torch.manual_seed(0)
    boxes = boxes_of_every_shape((48, 40))
    masks = torch.rand(len(boxes), 28, 28)
    every = torch.ones(len(boxes), dtype=torch.bool)
    program = torch.export.export(PastingOfSome(), (masks, boxes, every)).module()

    expected = torch.stack([sample_over_image(*both, (48, 40)) for both in zip(masks, boxes, strict=True)])
    torch.testing.assert_close(program(masks, boxes, every), expected.float(), atol=1e-5, rtol=0)
    assert program(masks, boxes, ~every).shape == (0, 48, 40)


def test_boxes_without_an_area_draw_nothing() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 20.0], [5.0, 5.0, 20.0, 5.0], [9.0, 9.0, 4.0, 4.0]])
    codes = encode_masks(detections_of(torch.ones(3, 28, 28), boxes), (30, 30), 0.5)
    assert not decode_masks(codes).any()
    assert not any(paste_mask(torch.ones(28, 28), box, (30, 30)).any() for box in boxes)


def test_a_mask_reaches_its_threshold_at_the_edge_of_its_box() -> None:
    """At the box's edge a full mask is a half; whole pixels of a box of whole pixels belong to it, no others."""
    pixels = decode_masks(
        encode_masks(detections_of(torch.ones(1, 28, 28), torch.tensor([[4.0, 6.0, 17.0, 25.0]])), (40, 30), 0.5)
    )
    expected = torch.zeros(1, 40, 30, dtype=torch.bool)
    expected[:, 6:25, 4:17] = True
    assert torch.equal(pixels, expected)


def test_drawing_masks_takes_memory_of_neither_image_nor_number() -> None:
    """300 masks that fill 16 million pixels: one of them in bytes would be 16 MB."""
    size = (4000, 4000)
    boxes = torch.tensor([[0.5, 0.5, 3999.5, 3999.5]]).repeat(300, 1)
    masks = torch.rand(1, 28, 28).expand(300, 28, 28)
    encode_masks(detections_of(masks[:1], boxes[:1]), (40, 40), 0.5)
    peaks = []
    for number in (1, 5):
        tracemalloc.start()
        codes = encode_masks(detections_of(masks[:number], boxes[:number]), size, 0.5)
        peaks.append(tracemalloc.get_traced_memory()[1] - sum(len(code["counts"]) for code in codes))
        tracemalloc.stop()
    assert max(peaks) < 12 * detection_inference.CHUNK_PIXELS
    assert peaks[1] < 1.2 * peaks[0]


# ---- how near perfect masks come to the objects


def perfect_detections(masks: Tensor, boxes: Tensor, rounded: bool) -> Detections:
    """Objects (n, H, W) in their boxes (n, 4), with the masks that training would teach.

    The masks are rounded to 0 and 1, as the published code does.
    """
    learned = mask_targets(masks, boxes.float(), torch.arange(len(boxes)), 28)
    return detections_of((learned >= 0.5).float() if rounded else learned, boxes)


def score_perfect(targets: list[dict[str, Any]], rounded: bool) -> dict[str, float]:
    """COCO's numbers of perfect detections of the objects of images, which are given as the evaluation's targets."""
    metric = CocoMetric(masks=True)
    ids = sorted({label for target in targets for label in target["labels"].tolist()})
    metric.classes = (ids, [str(number) for number in ids])
    numbers = range(max(ids) + 1)
    for target in targets:
        size = target["masks"].shape[1:]
        detections = perfect_detections(target["masks"], target["boxes"], rounded)
        detections.labels = target["labels"]
        results = as_results(detections, target["image_id"], size, numbers)
        metric.update(target["image_id"], results, as_annotations(target, size, numbers))
    return {name: float(value) for name, value in metric.compute().items()}


def draw_shapes(seed: int) -> dict[str, Any]:
    """The objects of an image: ellipses and stars of 8 to 200 pixels, at positions between pixels.

    Masks are the outlines as COCO's tools draw them; boxes are the outlines' own bounds.
    """
    rng = np.random.default_rng(seed)
    height, width = 240, 320
    masks, boxes = [], []
    for number in range(24):
        radius = np.exp(rng.uniform(np.log(4), np.log(100))) * rng.uniform(0.6, 1, 2)
        middle = rng.uniform(radius, np.array([width, height]) - radius)
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        reach = 1 - 0.4 * (number % 2) * np.cos(5 * angles + rng.uniform(0, 6)) ** 2
        outline = middle + radius * reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        code = coco_masks.frPyObjects([outline.ravel().tolist()], height, width)
        masks.append(torch.from_numpy(coco_masks.decode(code)[..., 0]))
        boxes.append(torch.from_numpy(np.concatenate([outline.min(0), outline.max(0)])))
    labels = torch.ones(len(boxes), dtype=torch.int64)
    target = {"masks": torch.stack(masks), "boxes": torch.stack(boxes), "labels": labels, "image_id": seed}
    return target | {"area": target["masks"].sum((1, 2)), "iscrowd": torch.zeros_like(labels)}


@pytest.mark.parametrize("rounded", [False, True])
def test_perfect_masks_come_near_drawn_objects(rounded: bool) -> None:
    scores = score_perfect([draw_shapes(seed) for seed in range(6)], rounded)
    assert scores["mask_ap"] >= (0.95 if rounded else 0.99)
    assert scores["mask_ap_small"] >= 0.985


@pytest.mark.parametrize("rounded", [False, True])
def test_perfect_masks_come_near_cocos_objects(rounded: bool, real_data: Path) -> None:
    """All 557 that are no crowds. Pasted at whole pixels they reach 0.896, small ones 0.840."""
    data = CocoDataModule(
        str(real_data / "coco-mini"),
        files=CocoFiles(test_images="train2017", test_annotations="annotations/instances_train2017.json"),
    )
    data.setup("test")
    data.setup("validate")
    targets = []
    for dataset in (data.val_dataset, data.test_dataset):
        for image in dataset.images:  # type: ignore[union-attr]
            objects = tuple(entry for entry in image.objects if not entry.crowd)
            targets.append(dataset.target(dataclasses.replace(image, objects=objects)))  # type: ignore[union-attr]
    assert sum(len(target["boxes"]) for target in targets) == 557
    scores = score_perfect(targets, rounded)
    assert scores["mask_ap"] >= (0.965 if rounded else 0.99)
    assert scores["mask_ap_small"] >= 0.985


def test_boxes_come_to_the_pixels_of_their_file_in_float64() -> None:
    """Of an image of 1333×800 to its file of 640×427: exactly as the factors say, and edges stay edges."""
    boxes = torch.tensor([[0.0, 0.0, 1333.0, 800.0], [123.456, 7.89, 1332.1, 799.99]])
    detections = Detections(boxes, torch.zeros(2, dtype=torch.int64), torch.ones(2), None).at((427, 640), (800, 1333))
    assert detections.boxes.dtype == torch.float64
    assert detections.boxes[0].tolist() == [0, 0, 640, 427]
    for box, exact in zip(detections.boxes.tolist(), boxes.tolist(), strict=True):
        expected = [
            float(Fraction(x) * Fraction(*factor))
            for x, factor in zip(exact, [(640, 1333), (427, 800)] * 2, strict=True)
        ]
        assert box == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nms": "soft"}, "hard, soft_linear or soft_gaussian"),
        ({"score_threshold": 1.5}, "score_threshold must be between 0 and 1"),
        ({"nms_threshold": -0.1}, "nms_threshold"),
        ({"mask_threshold": 0.0}, "mask_threshold must be above 0"),
        ({"sigma": 0.0}, "sigma is 0"),
        ({"max_detections": 0}, "max_detections 0"),
        ({"scales": ()}, "factors above 0"),
        ({"scales": (1.0, -1.0)}, "scales"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DetectionInference(**settings)

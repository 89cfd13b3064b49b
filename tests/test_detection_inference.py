"""From regions to detections: soft-NMS against a plain reference, scales and mirror images, drawing masks."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from pycocotools import mask as coco_masks
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms

from swinv2_tasks.detection_inference import (
    DetectionInference,
    Detections,
    detect,
    encoded_masks,
    padded,
    pasted,
    soft_nms,
    suppressed,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.mask_rcnn import Features


def random_boxes(seed: int, number: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    corners = 60 * torch.rand(number, 2)
    boxes = torch.cat([corners, corners + 10 + 40 * torch.rand(number, 2)], 1)
    return boxes, torch.rand(number), torch.randint(0, 3, (number,))


def plain_iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inner = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inner / (sum(areas) - inner)


def plain_soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, how: DetectionInference) -> list[tuple[int, float]]:
    """The paper's algorithm in loops, a class at a time; then the likeliest of all classes."""
    kept = []
    for label in set(labels.tolist()):
        waiting = {k: scores[k].item() for k in range(len(boxes)) if labels[k] == label}
        while waiting:
            best = max(waiting, key=lambda k: waiting[k])
            kept.append((best, waiting.pop(best)))
            for k in waiting:
                overlap = plain_iou(boxes[best].tolist(), boxes[k].tolist())
                if how.suppression == "gaussian":
                    waiting[k] *= math.exp(-(overlap**2) / how.sigma)
                elif overlap > how.nms_threshold:
                    waiting[k] *= 1 - overlap
    likeliest = sorted(kept, key=lambda one: -one[1])
    return [one for one in likeliest if one[1] > how.score_threshold][: how.max_detections]


@pytest.mark.parametrize("suppression", ["linear", "gaussian"])
@pytest.mark.parametrize("limit", [10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_soft_nms_is_the_plain_algorithm(suppression: Any, limit: int, seed: int) -> None:
    how = DetectionInference(suppression=suppression, nms_threshold=0.3, sigma=0.5, max_detections=limit)
    boxes, scores, labels = random_boxes(seed)
    taken, lowered = soft_nms(boxes, scores, labels, how)
    expected = plain_soft_nms(boxes, scores, labels, how)
    assert taken.tolist() == [k for k, _ in expected]
    assert lowered[taken].tolist() == pytest.approx([score for _, score in expected], rel=1e-4)
    assert len(taken) < len(boxes) or limit == 100


def test_hard_suppression_is_torchvisions() -> None:
    boxes, scores, labels = random_boxes(0)
    kept = batched_nms(boxes, scores, labels, 0.5)[:20]
    found = suppressed(boxes, scores, labels, DetectionInference(max_detections=20))
    assert all(torch.equal(one, other[kept]) for one, other in zip(found, (boxes, scores, labels), strict=True))


@pytest.mark.parametrize("suppression", ["hard", "linear", "gaussian"])
def test_nothing_stays_nothing(suppression: Any) -> None:
    how = DetectionInference(suppression=suppression)
    boxes, scores, labels = suppressed(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), how)
    assert boxes.shape == (0, 4) and len(scores) == len(labels) == 0
    flat = suppressed(torch.tensor([[1.0, 1.0, 1.0, 5.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), how)
    assert not len(flat[0])


class Finder:
    """A head that finds the bright pixels' bounds and draws them: what it says can be foretold."""

    has_masks = True

    def features(self, maps: list[Tensor]) -> Features:
        return Features(OrderedDict(image=maps[0]))

    def classify(self, features: Features, images: Any) -> list[tuple[Tensor, Tensor]]:
        found = []
        for image in features.levels["image"]:
            rows, columns = (image[0] > 0.5).nonzero(as_tuple=True)
            box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            found.append((box[None, None], torch.tensor([[0.1, 0.9]])))
        return found

    def mask_probabilities(self, features: Features, boxes: Any, labels: Any, images: Any) -> list[Tensor]:
        """The left half of each box, as the network sees it, times the image's mean."""
        masks = []
        for image, one in zip(features.levels["image"], boxes, strict=True):
            mask = torch.zeros(len(one), 28, 28)
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
    (found,) = detect(lambda x: [x], Finder(), [bright_image()], how)  # type: ignore[arg-type]
    assert found.labels.tolist() == [1]  # the six views agree, and one detection stays
    torch.testing.assert_close(found.boxes, torch.tensor([[8.0, 16.0, 32.0, 40.0]]), atol=1.01, rtol=0)
    expected = torch.zeros(28, 28)
    expected[:, :14] = 1
    torch.testing.assert_close(found.masks, expected[None])  # mirrored masks were mirrored back


def test_images_of_several_sizes_go_through_together() -> None:
    wide, high = bright_image(), torch.zeros(3, 100, 50)
    high[:, 70:90, 20:45] = 1
    how = DetectionInference(score_threshold=0.2)
    together = detect(lambda x: [x], Finder(), [wide, high], how)  # type: ignore[arg-type]
    assert [one.boxes[0].tolist() for one in together] == [[8, 16, 32, 40], [20, 70, 45, 90]]


def test_padding_fills_up_at_the_right_and_below() -> None:
    images = [torch.rand(3, 30, 70), torch.rand(3, 45, 20)]
    batch = padded(images, 32)
    assert batch.tensors.shape == (2, 3, 64, 96) and batch.image_sizes == [(30, 70), (45, 20)]
    for row, image in zip(batch.tensors, images, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(row[:, :height, :width], image)
        assert row[:, height:].abs().sum() == row[:, :, width:].abs().sum() == 0


def test_masks_are_drawn_as_torchvision_draws_them() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[3.2, 4.7, 20.1, 30.9], [-5.0, 10.0, 12.0, 70.0], [10.0, 10.0, 10.4, 10.2]])
    masks = torch.rand(3, 28, 28)
    expected = paste_masks_in_image(masks[:, None], boxes, (48, 40))[:, 0]
    for mask, box, other in zip(masks, boxes, expected, strict=True):
        torch.testing.assert_close(pasted(mask, box, (48, 40)), other)
    found = Detections(boxes, torch.zeros(3, dtype=torch.int64), torch.rand(3), masks)
    decoded = coco_masks.decode(encoded_masks(found, (48, 40), 0.5))
    assert torch.equal(torch.from_numpy(decoded).permute(2, 0, 1).bool(), expected > 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suppression": "soft"}, "hard, linear or gaussian"),
        ({"score_threshold": 1.5}, "score_threshold must be between 0 and 1"),
        ({"nms_threshold": -0.1}, "nms_threshold"),
        ({"sigma": 0.0}, "sigma is 0"),
        ({"max_detections": 0}, "max_detections 0"),
        ({"scales": ()}, "scales must be factors above 0"),
        ({"scales": (1.0, -1.0)}, "scales"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DetectionInference(**settings)

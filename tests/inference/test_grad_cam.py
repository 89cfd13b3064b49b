"""Grad-CAM: what the paper's formula gives by hand and by finite differences, and a network that is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.heads import UPerNet
from swinv2_tasks.inference.grad_cam import class_score, grad_cam, pixel_score
from swinv2_tasks.tasks import ClassificationTask, SegmentationTask, VideoClassificationTask
from tests.helpers.checkpoints import randomize

IMAGES: dict[str, Any] = {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2}
CLIPS: dict[str, Any] = {**IMAGES, "patch_size": (2, 4, 4), "window_size": [[2, 2, 2], [2, 2, 2]]}


class PooledClassifier(nn.Module):
    """A linear layer on the mean of the last map, without a norm."""

    def __init__(self, backbone: SwinTransformerV2, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x)[-1].flatten(2).mean(2))


def classifier() -> nn.Module:
    task = ClassificationTask(SwinTransformerV2(**IMAGES), num_classes=3, dropout=0.5)
    return randomize(task.double()).eval()


def video_classifier() -> nn.Module:
    task = VideoClassificationTask(SwinTransformerV2(**CLIPS), num_classes=3, dropout=0.5)
    return randomize(task.double()).eval()


def segmentation() -> nn.Module:
    decoder = UPerNet(channels=8)
    task = SegmentationTask(SwinTransformerV2(**IMAGES), num_classes=3, decoder=decoder, auxiliary_weight=0)
    return randomize(task.double()).eval()


def by_differences(task: Any, x: Tensor, score: Callable[[Tensor], Tensor], small: Callable[[Any], Tensor]) -> Tensor:
    """The weighted sum of channels of the last map, its gradient by central differences; (S…)."""
    with torch.no_grad():
        maps = task.backbone(x)
        features = maps[-1]
        gradients = torch.zeros_like(features)
        for index in np.ndindex(*features.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = features.clone()
                moved[index] += step
                values.append(score(small([*maps[:-1], moved])))
            gradients[index] = (values[0] - values[1]) / 2e-5
        weights = gradients.flatten(2).mean(2)
        return torch.stack([w * channel for w, channel in zip(weights[0], features[0], strict=True)]).sum(0).relu()


def test_of_a_linear_layer_on_the_mean_it_is_the_class_activation_map() -> None:
    """As section 3 of the paper shows: the layer's weights themselves, over the number of places."""
    backbone = SwinTransformerV2(embed_dim=8, depths=[2], num_heads=[2], window_size=3, patch_size=1)
    network: Any = randomize(PooledClassifier(backbone, 4)).eval()
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = backbone(x)[-1]
    for index in range(4):
        expected = torch.einsum("bchw,c->bhw", features, network.fc.weight[index].detach()).relu() / 35
        torch.testing.assert_close(grad_cam(network, backbone, x, class_score(index)), expected)


@pytest.mark.parametrize("new_task", [classifier, video_classifier], ids=["images", "clips"])
def test_it_is_the_formula_with_gradients_by_differences(new_task: Callable[[], Any]) -> None:
    task = new_task()
    sides = (4, 24, 16) if task.backbone.axes == 3 else (24, 16)
    x = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    places = grad_cam(task, task.backbone, x, class_score(1))
    assert places.shape == (1, *sides) and places.dtype == torch.float32 and places.any()
    small = by_differences(task, x, class_score(1), task.head).float()
    if task.backbone.axes == 3:  # two frames a token: the first and the last one are as their tokens
        places, small = places[:, [0, -1]], small[[0, -1]]
    for own, expected in zip(places.reshape(-1, 24, 16), small.reshape(-1, 3, 2), strict=True):
        enlarged = Image.fromarray(expected.numpy()).resize((16, 24), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(own.numpy(), np.asarray(enlarged), rtol=1e-4, atol=1e-6 * float(small.max()))


def test_of_a_segmentation_it_is_that_of_the_pixels_that_are_predicted_so() -> None:
    task: Any = segmentation()
    x = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        predicted = task(x).argmax(1)
    seen = predicted.unique().tolist()

    def sum_of(logits: Tensor) -> Tensor:
        full = torch.nn.functional.interpolate(logits, (16, 24), mode="bilinear", align_corners=False)
        return full[0, seen[0]][predicted[0] == seen[0]].sum()

    small = by_differences(task, x, sum_of, task.head).float()
    enlarged = Image.fromarray(small.numpy()).resize((24, 16), Image.Resampling.BILINEAR)
    places = grad_cam(task, task.backbone, x, pixel_score(seen[0]))[0].numpy()
    np.testing.assert_allclose(places, np.asarray(enlarged), rtol=1e-4, atol=1e-6 * float(small.max()))


@torch.no_grad()
def test_a_class_that_depends_on_one_corner_lights_that_corner() -> None:
    backbone = SwinTransformerV2(embed_dim=3, depths=[1], num_heads=[1], window_size=4, patch_size=4)
    network = PooledClassifier(backbone, 3).eval()
    backbone.patch_embed.proj.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
    backbone.patch_embed.proj.bias.zero_()
    network.fc.weight.copy_(torch.eye(3))  # a class for each color
    x = torch.zeros(1, 3, 32, 32)
    x[:, 2] = 1  # blue, …
    x[:, :, 16:, 16:] = torch.tensor([1.0, 0, 0])[None, :, None, None]  # … and red in one corner
    red = grad_cam(network, backbone, x, class_score(0))[0]
    assert red[18:, 18:].min() > 0.5 * red.max() > 0
    assert red[:14].max() == 0 and red[:, :14].max() == 0
    blue = grad_cam(network, backbone, x, class_score(2))[0]
    assert blue[18:, 18:].max() == 0 and blue[:14].min() > 0


@pytest.mark.parametrize("stage", [0, 1])
def test_the_network_is_left_as_it_was_and_what_is_frozen_does_not_matter(stage: int) -> None:
    task: Any = classifier()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = task(x).detach()
    places = grad_cam(task, task.backbone, x, class_score(0), stage)
    assert all(p.grad is None and p.requires_grad for p in task.parameters()) and not x.requires_grad
    assert torch.equal(task(x), expected) and not any(module.training for module in task.modules())
    task(x).sum().backward()
    assert task.backbone.patch_embed.proj.weight.grad.any()  # nothing is cut off any more

    task.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(grad_cam(task, task.backbone, x, class_score(0), stage), places)
    alone = [grad_cam(task, task.backbone, x[k : k + 1], class_score(0), stage)[0] for k in range(2)]
    torch.testing.assert_close(torch.stack(alone), places)

"""HTC: interleaved masks, information flow between mask branches, the semantic branch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import HTCConfig
from swinv2_tasks.heads.htc import InformationFlowMaskBranch, stuff_loss
from swinv2_tasks.inference.detection import pad_images
from tests.helpers import detectors
from tests.helpers.detectors import IMAGES, new_maps, new_target, spy_on_stages

new_head = partial(detectors.new_head, HTCConfig)


def test_mask_branches_are_trained_on_the_boxes_that_their_stage_refined() -> None:
    """Samplers are asked box, mask, box, mask, …; each stage's masks and the next stage's boxes start from the same."""
    head, images = new_head(), pad_images(IMAGES, 32)
    targets = [new_target(1), new_target(2, number=6)]
    samples, _ = spy_on_stages(head)
    pooled: list[list[Tensor]] = []
    head.mask_pool.register_forward_hook(lambda _, inputs, out: pooled.append(inputs[1]))
    head.losses(new_maps(), images, targets)
    assert len(samples) == 6 and len(pooled) == 3
    for stage, threshold in enumerate((0.5, 0.6, 0.7)):
        proposals, stage_samples = samples[2 * stage + 1]
        for k, target in enumerate(targets):
            positive = stage_samples.labels[k] > 0
            best = box_iou(stage_samples.boxes[k], target["boxes"]).max(1).values
            assert ((best >= threshold) == positive).all()
            torch.testing.assert_close(pooled[stage][k], stage_samples.boxes[k][positive])
        if stage < 2:
            following = samples[2 * stage + 2][0]
            assert all(torch.equal(first, second) for first, second in zip(proposals, following, strict=True))


def test_mask_information_flows_from_stage_to_stage() -> None:
    """By the paper's formula: the branch of stage 3 sees F + G(stage 2's features), and so back to stage 1."""
    head = new_head().eval()
    x = torch.randn(4, 16, 14, 14)
    first, second, third = head.masks
    with torch.no_grad():
        first_maps = first.convs(x)
        second_maps = second.convs(x + F.relu(second.before[0](first_maps)))
        third_maps = third.convs(x + F.relu(third.before[0](second_maps)))
        expected = [
            branch.predictor(y) for branch, y in zip(head.masks, (first_maps, second_maps, third_maps), strict=True)
        ]
        for stage in range(3):
            torch.testing.assert_close(head.mask_logits(stage, x), expected[stage])
        for logits, expected_logits in zip(head.all_mask_logits(x), expected, strict=True):
            torch.testing.assert_close(logits, expected_logits)


def test_the_last_mask_loss_trains_the_convolutions_of_all_stages() -> None:
    head, images = new_head(), pad_images(IMAGES, 32)
    losses = head.losses(new_maps(), images, [new_target(1), new_target(2)])
    losses["mask3"].backward()
    for branch in head.masks:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branch.convs.parameters())
    assert isinstance(head.masks[2], InformationFlowMaskBranch)
    assert all(p.grad is None for p in head.masks[0].predictor.parameters())


def test_without_stuff_maps_there_is_no_semantic_branch() -> None:
    head = new_head(stuff_classes=0)
    assert head.semantic is None and head.features(new_maps()).context is None
    with_it = new_head(stuff_classes=7)
    assert sum(p.numel() for p in with_it.parameters()) > sum(p.numel() for p in head.parameters())


def with_stuff(seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    labels = torch.randint(0, 7, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {**new_target(seed), "stuff": labels}


def test_the_semantic_branch_adds_its_features_to_rois_and_its_loss() -> None:
    head, images = new_head(stuff_classes=7), pad_images(IMAGES, 32)
    features = head.features(new_maps())
    assert features.context is not None and features.stuff_logits is not None
    assert features.context.shape == (2, 16, 16, 24) and features.stuff_logits.shape == (2, 7, 16, 24)
    boxes = [torch.tensor([[3.0, 5.0, 60.0, 77.0]]), torch.tensor([[0.0, 0.0, 20.0, 20.0], [9.0, 9.0, 90.0, 120.0]])]
    rois = torch.cat([F.pad(image_boxes, (1, 0), value=k) for k, image_boxes in enumerate(boxes)])
    for method, pool, side in ((head.box_features, head.box_pool, 7), (head.mask_features, head.mask_pool, 14)):
        plain = pool(features.levels, boxes)
        extra = roi_align(features.context, rois, side, spatial_scale=1 / 8, sampling_ratio=0, aligned=True)
        torch.testing.assert_close(method(features, boxes), plain + extra)
    targets = [with_stuff(1, (100, 180)), with_stuff(2, (128, 192))]
    losses = head.losses(new_maps(), images, targets)
    torch.testing.assert_close(losses["stuff"], 0.2 * stuff_loss(features.stuff_logits, targets, 1 / 8))
    total = torch.stack([*losses.values()]).sum()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_semantic_loss_is_a_mean_over_known_cells() -> None:
    """Cell (r, c) is compared with the label at the middle of its 8×8 pixels; padding and 255 do not count."""
    logits = torch.randn(2, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = [with_stuff(1, (32, 40)), with_stuff(2, (25, 30))]
    targets[0]["stuff"][:, 20:] = 255
    total, number = 0.0, 0
    for k, target in enumerate(targets):
        height, width = target["stuff"].shape
        for row in range(4):
            for column in range(5):
                y, x = 8 * row + 4, 8 * column + 4
                if y < height and x < width and target["stuff"][y, x] != 255:
                    total += float(-logits[k, :, row, column].log_softmax(0)[int(target["stuff"][y, x])])
                    number += 1
    assert stuff_loss(logits, targets, 1 / 8).item() == pytest.approx(total / number, rel=1e-5)
    unknown = [{"stuff": torch.full((32, 40), 255, dtype=torch.uint8)}]
    assert stuff_loss(logits[:1], unknown, 1 / 8) == 0


def test_missing_stuff_maps_are_reported() -> None:
    head, images = new_head(stuff_classes=7), pad_images(IMAGES, 32)
    with pytest.raises(UserError, match=r"data.files.train_stuff"):
        head.losses(new_maps(), images, [new_target(1), new_target(2)])
    with pytest.raises(UserError, match="stuff_classes must be between 0 and 254"):
        HTCConfig(stuff_classes=300)


def test_boxes_alone_can_be_trained() -> None:
    head, images = new_head(masks=False), pad_images(IMAGES, 32)
    targets = [{k: v for k, v in new_target(seed).items() if k != "masks"} for seed in (1, 2)]
    losses = head.losses(new_maps(), images, targets)
    assert not any(name.startswith("mask") for name in losses)
    assert isinstance(head.masks, nn.ModuleList) and not len(head.masks)

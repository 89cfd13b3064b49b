"""Hybrid Task Cascade: boxes and masks in turns, and a semantic branch.

https://arxiv.org/abs/1901.07518

Over Cascade Mask R-CNN: a stage's mask branch takes the boxes which that stage has refined (interleaved execution,
section 3.1), and the features of the mask branch of the stage before (mask information flow); a branch that segments
the background, where maps of it are given, adds its features to those of RoIs (section 3.2).

Shapes: as in mask_rcnn.py; S classes of the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.cascade import CascadeMaskRCNN
from swinv2_tasks.heads.mask_rcnn import DetectorConfig, Features, MaskBranch, SampledProposals
from swinv2_tasks.heads.roi_align import pool_rois, to_roi_format

STUFF_WEIGHT = 0.2
"""Weight of the semantic branch's loss."""

IGNORED = 255


class HTCConfig(DetectorConfig):
    """Settings of Hybrid Task Cascade; the others are those of ``DetectorConfig``.

    Args:
        stuff_classes: classes S of the semantic branch, 183 for COCO's stuff maps; 0 leaves the branch out, where there
            are no such maps.
    """

    def __init__(
        self,
        masks: bool = True,
        channels: int = 256,
        representation_size: int = 1024,
        anchor_scale: float = 8.0,
        post_nms_top_n: int = 1000,
        batch_size_per_image: int = 512,
        stuff_classes: int = 0,
    ) -> None:
        super().__init__(masks, channels, representation_size, anchor_scale, post_nms_top_n, batch_size_per_image)
        if not 0 <= stuff_classes < IGNORED:
            raise UserError(f"detector.stuff_classes must be between 0 and {IGNORED - 1}, not {stuff_classes}")
        self.stuff_classes = stuff_classes

    def build(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> HTC:
        """The HTC on maps of these channels and strides."""
        return HTC(self, in_channels, strides, num_classes)


class HTC(CascadeMaskRCNN):
    """Hybrid Task Cascade. The arguments are those of ``DetectionHead``."""

    def __init__(self, config: HTCConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(config, in_channels, strides, num_classes)
        self.stuff_classes = number = config.stuff_classes
        self.semantic = SemanticBranch(config.channels, len(strides) + 1, number) if number else None
        self.semantic_scale = 1 / strides[SemanticBranch.LEVEL]

    def mask_branches(self, config: DetectorConfig, num_classes: int) -> list[MaskBranch]:
        """The mask branch of each stage; those after the first take the features of the one before."""
        first = MaskBranch(config.channels, num_classes)
        return [first, *(InformationFlowMaskBranch(config.channels, num_classes) for _ in self.boxes[1:])]

    def features(self, maps: Sequence[Tensor]) -> Features:
        """The pyramid's levels and, with a semantic branch, its context and logits."""
        features = super().features(maps)
        if self.semantic is not None:
            features.context, features.stuff_logits = self.semantic(list(features.levels.values()))
        return features

    def roi_losses(
        self, features: Features, proposals: list[Tensor], images: ImageList, targets: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The losses of each stage and, with a semantic branch, that of the background, ``stuff``."""
        losses = super().roi_losses(features, proposals, images, targets)
        if features.stuff_logits is not None:
            losses["stuff"] = STUFF_WEIGHT * stuff_loss(features.stuff_logits, targets, self.semantic_scale)
        return losses

    def box_features(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features (ΣR, C, 7, 7) of each image's boxes (R, 4), with the context."""
        return self._with_context(super().box_features(features, boxes), features, boxes)

    def mask_features(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features (ΣR, C, 14, 14) of each image's boxes (R, 4), with the context."""
        return self._with_context(super().mask_features(features, boxes), features, boxes)

    def _with_context(self, x: Tensor, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features (ΣR, C, side, side) of boxes, with those of the semantic branch added."""
        if features.context is None:
            return x
        context = pool_rois(features.context, to_roi_format(boxes), x.shape[-1], self.semantic_scale)
        return x + context.to(x.dtype)

    def sample_for_masks(
        self, stage: int, samples: SampledProposals, refined: list[Tensor], targets: Sequence[Any]
    ) -> SampledProposals:
        """The proposals that a stage's mask branch is trained on: samples of the boxes that its box branch refined."""
        return self.samplers[stage](refined, targets)

    def mask_logits(self, stage: int, x: Tensor) -> Tensor:
        """Features (R, C, 14, 14) → logits (R, K, 28, 28) of a stage, with the flow from all before it."""
        return self.all_mask_logits(x, stage + 1)[-1]

    def all_mask_logits(self, x: Tensor, stages: int | None = None) -> list[Tensor]:
        """Features (R, C, 14, 14) → logits (R, K, 28, 28) of every stage, each with the flow from the one before it.

        Args:
            x: the features.
            stages: of the last one of so many stages alone; None: of every stage.
        """
        branches: list[Any] = [*self.masks][:stages]
        features = [branches[0].convs(x)]
        for branch in branches[1:]:
            features.append(branch.flow(x, features[-1]))

        selection = slice(None) if stages is None else slice(-1, None)
        pairs = zip(branches[selection], features[selection], strict=True)
        return [branch.predictor(stage_features).float() for branch, stage_features in pairs]


class InformationFlowMaskBranch(MaskBranch):
    """A mask branch that also takes the features of the one of the stage before.

    Args:
        channels: channels C of the features and in between.
        num_classes: number of classes K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes)
        self.before = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())

    def flow(self, x: Tensor, before: Tensor) -> Tensor:
        """Features (R, C, 14, 14) of RoIs and of the stage before → the same shape, for the next stage."""
        return self.convs(x + self.before(before))


class SemanticBranch(nn.Module):
    """Segments the background from all levels of the pyramid, brought to the size of the second one.

    Args:
        channels: channels C of the levels.
        levels: number of levels.
        num_classes: number of classes S.
    """

    LEVEL = 1

    def __init__(self, channels: int, levels: int, num_classes: int) -> None:
        super().__init__()

        def conv(side: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, channels, side, padding=side // 2), nn.ReLU())

        self.laterals = nn.ModuleList(conv(1) for _ in range(levels))
        self.convs = nn.Sequential(*(conv(3) for _ in range(4)))
        self.embedding = conv(1)
        self.classes = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels (B, C, h, w) → features (B, C, h, w) and logits (B, S, h, w), both at the second level's size."""
        size = levels[self.LEVEL].shape[2:]
        laterals = [lateral(x) for lateral, x in zip(self.laterals, levels, strict=True)]
        enlarged = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in laterals]
        x = self.convs(torch.stack(enlarged).sum(0))
        return self.embedding(x), self.classes(x)


def stuff_loss(logits: Tensor, targets: Sequence[Any], scale: float) -> Tensor:
    """Cross-entropy (scalar) of the background's classes at the branch's own stride; 255 does not count.

    Args:
        logits: (B, S, h, w).
        targets: of each image, with ``stuff`` (H, W).
        scale: size of the logits' map over that of the padded images.
    """
    step = round(1 / scale)
    labels = torch.full((len(targets), *logits.shape[2:]), IGNORED, dtype=torch.int64, device=logits.device)
    for row, target in zip(labels, targets, strict=True):
        if "stuff" not in target:
            raise UserError(
                "HTC's semantic branch needs maps of the background: set data.files.train_stuff to their folder, or "
                "--model.detector.stuff_classes=0 to do without"
            )
        small = target["stuff"][step // 2 :: step, step // 2 :: step]  # the label at the center of each cell
        row[: small.shape[0], : small.shape[1]] = small
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return loss / (labels != IGNORED).sum().clamp(min=1)

"""SimMIM: learning without labels, by reconstructing masked patches.

https://arxiv.org/abs/2111.09886, for Swin V2 https://arxiv.org/abs/2111.09883, appendix A2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import SimMIMBatch
from swinv2_tasks.callbacks import SimMIMImages, SimMIMPredictions, SimMIMVisualizations
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.mean_loss import MeanLoss
from swinv2_tasks.heads.simmim import SimMIMHead, enlarge_mask
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.losses import local_statistics, masked_l1
from swinv2_tasks.training.optim import NO_WEIGHT_DECAY, StepSchedule


class SimMIMTask(BaseTask):
    """Reconstructs masked patches; ``task(images, mask)`` gives pixels (B, 3, H, W).

    Args:
        backbone: turns images into feature maps.
        norm_target_patch_size: side in pixels of the sliding window in which the pixels to predict are normalized, odd;
            0: they are predicted unchanged.
        weights: checkpoint to start from (official, SimMIM, timm, Hugging Face, torchvision or this package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
    """

    no_weight_decay = (*NO_WEIGHT_DECAY, "mask_token")
    head_methods = ("token",)

    def __init__(
        self,
        backbone: SwinTransformerV2,
        norm_target_patch_size: int = 47,
        weights: str | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: StepSchedule = StepSchedule(),
    ) -> None:
        stride = backbone.strides[-1]
        if not isinstance(stride, int):
            raise UserError(
                "SimMIM works on images and square patches: give the backbone one patch_size for both sides. "
                "Clips start from its weights by inflation"
            )
        if norm_target_patch_size and (norm_target_patch_size < 3 or norm_target_patch_size % 2 == 0):
            raise UserError(
                f"model.norm_target_patch_size must be 0 or an odd number of at least 3, not {norm_target_patch_size}"
            )
        head = SimMIMHead(backbone.channels[0], backbone.channels[-1], stride, backbone.in_channels)
        super().__init__(backbone, head, weights, optimizer, schedule)
        self.head: SimMIMHead
        self.stride, self.norm_target_patch_size = stride, norm_target_patch_size
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predicted pixels, in the normalization of the targets.

        Args:
            x: normalized images (B, 3, H, W).
            mask: bool (B, h, w), True for patches of H/h × W/w pixels that the model does not see; None: it sees all.

        Returns:
            (B, 3, H, W).

        Raises:
            UserError: when mask, image and the backbone's patches do not divide one another.
        """
        if mask is None:
            maps = self.backbone(x)
        else:
            maps = self.backbone(x, self._masked_tokens(mask, (int(x.shape[2]), int(x.shape[3]))), self.head.token())
        pixels = self.head(maps)
        return pixels[..., : x.shape[2], : x.shape[3]]

    def _masked_tokens(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """The mask over the tokens of the patch embedding."""
        tokens = [-(-side // patch) for side, patch in zip(size, self.backbone.patch_size, strict=True)]
        for side, count, parts in zip(size, tokens, mask.shape[1:], strict=True):
            if side % parts or count % parts or side % count:
                raise UserError(
                    f"a mask of {tuple(mask.shape[1:])} patches does not fit images of {size} pixels and tokens of "
                    f"{self.backbone.patch_size}: data.image_size must be a multiple of data.mask_patch_size, and that "
                    "of the backbone's patch_size"
                )
        return enlarge_mask(mask, tokens)

    def targets(self, images: Tensor) -> Tensor:
        """What the pixels of images (B, 3, H, W) are to be predicted as."""
        if not self.norm_target_patch_size:
            return images
        mean, deviation = local_statistics(images, self.norm_target_patch_size)
        return (images - mean) / deviation

    def compute_losses(self, batch: SimMIMBatch) -> dict[str, Tensor]:
        """Mean absolute error of the masked patches' pixels."""
        pixels, targets = self(batch["image"], batch["mask"]), self.targets(batch["image"])
        return {"loss": masked_l1(pixels, targets, batch["mask"])}

    def validation_step(self, batch: SimMIMBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Adds the loss of each image to the validation's mean, and returns it: {losses (B,)}."""
        return self._evaluate(batch, self.of_loader(self.val_loss, dataloader_idx))

    def test_step(self, batch: SimMIMBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Adds the loss of each image to the test's mean, and returns it: {losses (B,)}."""
        return self._evaluate(batch, self.of_loader(self.test_loss, dataloader_idx))

    def _evaluate(self, batch: SimMIMBatch, mean: MeanLoss) -> dict[str, Tensor]:
        losses = losses_of_each(self(batch["image"], batch["mask"]), self.targets(batch["image"]), batch["mask"])
        mean.update(losses)
        return {"losses": losses}

    def on_validation_epoch_end(self) -> None:
        """Logs the validation's mean loss."""
        self.log_epoch_metrics(self.val_loss, "val/loss")

    def on_test_epoch_end(self) -> None:
        """Logs the test's mean loss."""
        self.log_epoch_metrics(self.test_loss, "test/loss")

    def reconstruct(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructs masked patches, without gradients.

        Predictions of normalized targets get the mean and the deviation that the true pixels have around them.

        Args:
            images: normalized (B, 3, H, W).
            mask: bool (B, h, w), True for masked patches.

        Returns:
            The images with what the model puts into their masked patches, and the loss of each (B,).
        """
        was_training = self.training
        self.eval()
        with torch.no_grad():
            pixels, targets = self(images, mask), images
            mean, deviation = images.new_zeros(()), images.new_ones(())
            if self.norm_target_patch_size:
                mean, deviation = local_statistics(images, self.norm_target_patch_size)
                targets = (images - mean) / deviation
            losses = losses_of_each(pixels, targets, mask)
            pixels = pixels * deviation + mean
        self.train(was_training)

        is_masked = enlarge_mask(mask, images.shape[2:])[:, None]
        return torch.where(is_masked, pixels.to(images.dtype), images), losses

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes visualizations of predictions and of each validation, and the table of images."""
        return [SimMIMPredictions(output), SimMIMVisualizations(run_folder), SimMIMImages(run_folder)]

    def predict_step(self, batch: SimMIMBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """{path: list or None, losses (B,), reconstruction (B, 3, H, W)}."""
        reconstruction, losses = self.reconstruct(batch["image"], batch["mask"])
        return {"path": batch.get("path"), "losses": losses, "reconstruction": reconstruction}


def losses_of_each(pixels: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """``masked_l1`` of each image, (B,)."""
    images = zip(pixels.split(1), targets.split(1), mask.split(1), strict=True)
    return torch.stack([masked_l1(*image) for image in images])

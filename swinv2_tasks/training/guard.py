"""What stands between a bad batch and the weights: non-finite losses and gradients, and losses out of the ordinary."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from swinv2_tasks.batches import task_data
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.seeding import derive_seed, seed_generators
from swinv2_tasks.torch_internals import unscales_gradients
from swinv2_tasks.training.sharding import gather, total_norm

log = logging.getLogger("swinv2_tasks")


class SkippedStep(Exception):
    """Leaves an optimizer's step before it changes anything."""


class SpikeDetector:
    """Finds losses far above the recent ones.

    Args:
        window: losses that count as recent.
        spread: how many times the usual deviation (median absolute deviation, scaled to that of a normal distribution)
            above the median a loss must lie.
    """

    def __init__(self, window: int = 128, spread: float = 6.0) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.window, self.spread = window, spread
        self.median = 0.0
        self.in_a_row = 0

    def is_spike(self, loss: float) -> bool:
        """Whether the loss is a spike, which later ones are not measured against; eight in a row are a new level."""
        if 4 * len(self.recent) >= self.window:
            self.median = statistics.median(self.recent)
            deviation = 1.4826 * statistics.median(abs(value - self.median) for value in self.recent)
            if loss > self.median + self.spread * deviation and loss > 1.1 * self.median:
                self.in_a_row += 1
                if self.in_a_row == 8:
                    self.recent.clear()
                return True
        self.in_a_row = 0
        self.recent.append(loss)
        return False


class GuardedTask(LightningModule):
    """Checks loss and gradients before each optimizer step, and seeds the random numbers of each step.

    One number per step goes from the device to the host: the gradients' norm, which clipping needs anyway, together
    with the loss. In manual optimization the check comes as an optimizer is about to step.
    """

    max_skipped_steps: int = 0
    """Optimizer steps with a non-finite loss or gradient that are left out before training stops."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_steps = 0
        self.gradient_norm: float | None = None
        """Of the last optimizer step, before clipping; None before the first one."""
        self._loss: Tensor | None = None  # sum over the backward passes since the last step
        self._passes = 0
        self._first_batch = 0
        self._spikes = SpikeDetector()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the random numbers of the step: the same whether or not the run was resumed."""
        if not self._passes:
            self._first_batch = batch_idx
        seed = task_data(self.trainer).seed
        if seed is not None:  # a resumed run drops the same paths as one that was never interrupted
            seed_generators(derive_seed(seed, self.trainer.global_rank, self.trainer.current_epoch, batch_idx))

    def on_train_epoch_end(self) -> None:
        """Shares with the other processes which samples could not be read."""
        task_data(self.trainer).share_faults()

    def on_before_backward(self, loss: Tensor) -> None:
        """Adds the loss to those of the step, without waiting for its value."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss
        self._passes += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """In manual optimization, checks the step that the optimizer is about to make."""
        if self.automatic_optimization:
            return
        try:
            self._check_step(optimizer)
        except SkippedStep:  # by a step without gradients, which changes nothing: the step itself is the user's code
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        finally:
            self._forget_losses()

    def _forget_losses(self) -> None:
        self._loss, self._passes = None, 0

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips gradients after checking that they and the loss are finite.

        With a gradient scaler (float16), which skips such steps itself, only the loss is checked.

        Raises:
            UserError: the loss or a gradient is not finite, and no more steps may be skipped.
        """
        if self._loss is None:  # training_step gave None: there is nothing to step by
            return
        parameters, norm = self._check_step(optimizer)
        scaler = self._scaler()
        # Not by Lightning, which refuses fused optimizers, that with a gradient scaler alone would clip wrongly.
        if gradient_clip_val and scaler is not None and unscales_gradients(optimizer):
            raise UserError(
                "a fused optimizer undoes the scaling of float16 by itself, after gradients were clipped: train in "
                "bf16-mixed, or without optimizer.fused or trainer.gradient_clip_val"
            )
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)

    def _check_step(self, optimizer: Optimizer) -> tuple[list[nn.Parameter], Tensor]:
        """The parameters that have gradients, and the norm of these.

        Raises:
            SkippedStep: the loss or a gradient is not finite.
            UserError: so it is, and no more steps may be skipped.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        if self._loss is None:  # with several optimizers one may step after another by the same losses
            loss = norm.new_zeros((), dtype=torch.float32)
        else:
            # Lightning has divided by the number of accumulated batches, whether there were as many or not.
            loss = self._loss / self._passes * self.trainer.accumulate_grad_batches
        if self.trainer.world_size > 1:  # all processes must come to one decision
            loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        norm_value, loss_value = torch.stack([norm.to(loss), loss]).tolist()
        scaler = self._scaler()
        if scaler is not None:
            loss_value /= scaler.get_scale()
        if not math.isfinite(loss_value) or (scaler is None and not math.isfinite(norm_value)):
            self._refuse(loss_value)
        # The losses of several optimizers are of several kinds.
        if len(self.trainer.optimizers) == 1 and self._spikes.is_spike(loss_value):
            self._report_spike(loss_value)
        self.gradient_norm = norm_value
        return parameters, norm

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Steps as Lightning does, unless the check ended the step: then the weights stay unchanged."""
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        except SkippedStep:
            optimizer.zero_grad()
            if (scaler := self._scaler()) is not None:
                scaler.update()
        finally:
            self._forget_losses()

    def _scaler(self) -> Any:
        """What scales losses in float16; None with other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _refuse(self, loss: float) -> None:
        """Writes down which samples and tensors it was, then stops the step or the training."""
        trainer, step = self.trainer, self.trainer.global_step
        gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        bad = [name for name, gradient in gradients.items() if not gather(gradient).isfinite().all()]
        samples = self._samples()
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        position = f"step {step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.epoch_loop.batch_idx})"
        details = {
            "event": "non-finite step",
            "loss": str(loss),
            "tensors": bad,
            "samples": samples,
        }
        file = folder / f"nonfinite_step_{step}_rank_{trainer.global_rank}.json"
        text = json.dumps({"step": step, "epoch": trainer.current_epoch, **details}, indent=2) + "\n"
        replace_file(file, lambda path: path.write_text(text, "utf-8"))
        few = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        problem = f"the loss is {loss:g}" + (f" and gradients are not finite: {few}" if bad else "")
        listed = f"Its {len(samples)} samples are listed in {file}." if samples else f"It is described in {file}."
        self.skipped_steps += 1
        if self.skipped_steps > self.max_skipped_steps:
            skipped = f" after {self.skipped_steps - 1} skipped ones" if self.skipped_steps > 1 else ""
            raise UserError(
                f"stopped before {position}{skipped}: {problem}. {listed} Look at it, lower the learning rate, clip "
                "gradients (trainer.gradient_clip_val), use bf16-mixed or 32-true, or let some steps be skipped "
                "(guard.max_skipped_steps)."
            )
        log.warning("skipped %s: %s; it is described in %s", position, problem, file, extra={"details": details})
        raise SkippedStep

    def _report_spike(self, loss: float) -> None:
        trainer, usual = self.trainer, self._spikes.median
        details = {"event": "loss spike", "loss": loss, "median": usual, "samples": self._samples()}
        log.warning(
            "loss spike at step %d: %.4g, the recent median is %.4g",
            trainer.global_step,
            loss,
            usual,
            extra={"details": details},
        )

    def _samples(self) -> list[str]:
        """The samples of this process that the step is made of."""
        data = task_data(self.trainer)
        batches = range(self._first_batch, self.trainer.fit_loop.epoch_loop.batch_idx + 1)
        return [name for batch in batches for name in data.train_sample_ids(batch)]

"""Parameter groups and the learning-rate schedules of the published recipes: pure functions.

https://arxiv.org/abs/2111.09883 and the published code: of classification and SimMIM, whose warmup starts and whose
cosine ends at the same rate in all layers, and of detection, segmentation and video (mmcv's hooks), whose warmup is a
factor of the rate that each layer has at the time.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from swinv2_tasks.errors import UserError

NO_WEIGHT_DECAY = ("logit_scale", "cpb_mlp")
"""Parts of parameter names without weight decay, beside 1-D parameters and biases."""


@dataclass(frozen=True)
class Schedule:
    """What the schedules of all tasks share: each gives the learning rate over time, iteration by iteration.

    Args:
        warmup_lr: learning rate at the first step.
        min_lr: learning rate at the last step, of all layers.
        base_batch_size: samples per step (over processes and accumulated batches) for which learning rates are
            stated, to be scaled with the true number; 0 leaves them unchanged.
        layer_decay: factor of the learning rate from one block to the one before it; 1 treats all alike.
        backbone_lr_mult: factor of the backbone's learning rate.
    """

    warmup_lr: float = 0.0
    min_lr: float = 0.0
    base_batch_size: int = 0
    layer_decay: float = 1.0
    backbone_lr_mult: float = 1.0

    @property
    def epochs(self) -> int:
        """Epochs of the published training, and of one on a loader that does not say how long epochs are."""
        return 300

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            smallest = min(value, default=0) if isinstance(value, tuple | list) else value
            if smallest < 0:
                raise UserError(f"schedule.{name} must not be negative, as {value} is")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"schedule.layer_decay must be above 0 and at most 1, not {self.layer_decay}")

    def factor(self, step: int, epoch_steps: int, total_steps: int, peak: float, layer_scale: float = 1.0) -> float:
        """Learning rate of a layer at a step, as a share of the layer's peak.

        Args:
            step: steps taken so far, from 0.
            epoch_steps: steps of an epoch.
            total_steps: steps of the whole training; later steps stay at its end's rate.
            peak: the largest learning rate.
            layer_scale: the layer's peak as a share of that.
        """
        raise NotImplementedError

    def in_steps(self, steps_of: Callable[[float], float]) -> Schedule:
        """The schedule with steps in the place of epochs, for epochs of unequally many: ``epoch_steps`` is then 1.

        Args:
            steps_of: optimizer steps of the first so many epochs.

        Raises:
            UserError: a schedule of one's own does not say how.
        """
        raise UserError(
            f"{type(self).__name__} cannot count epochs of unequal length, as GradientAccumulationScheduler makes "
            "them: give it a method in_steps, or take another schedule"
        )


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Linear warmup, then half a cosine; the other arguments are those of ``Schedule``.

    Args:
        warmup_epochs: epochs of linear warmup, which rises in all layers from ``warmup_lr``.
    """

    warmup_lr: float = 5e-7
    min_lr: float = 5e-6
    base_batch_size: int = 512
    warmup_epochs: float = 20.0

    def factor(self, step: int, epoch_steps: int, total_steps: int, peak: float, layer_scale: float = 1.0) -> float:
        """The warmup's line, then half a cosine over the steps left; both end at the same rate in all layers."""
        warmup_steps = round(self.warmup_epochs * epoch_steps)
        layer_peak = peak * layer_scale
        return cosine_factor(step, total_steps, warmup_steps, self.warmup_lr / layer_peak, self.min_lr / layer_peak)

    def in_steps(self, steps_of: Callable[[float], float]) -> Schedule:
        """The same schedule, its warmup counted in steps."""
        return dataclasses.replace(self, warmup_epochs=steps_of(self.warmup_epochs))


@dataclass(frozen=True)
class EpochCosineSchedule(CosineSchedule):
    """Half a cosine that falls once per epoch, from the first one on, under a warmup: that of Video Swin's code.

    The warmup is a factor that rises linearly, from ``warmup_lr``'s share of the peak, in all layers. The arguments are
    those of ``CosineSchedule``.
    """

    warmup_lr: float = 1e-4
    min_lr: float = 0.0
    base_batch_size: int = 64
    warmup_epochs: float = 2.5

    @property
    def epochs(self) -> int:
        """As published."""
        return 30

    def factor(self, step: int, epoch_steps: int, total_steps: int, peak: float, layer_scale: float = 1.0) -> float:
        """The factor of the epoch that the step is in; only the warmup rises within epochs."""
        warmup_steps = round(self.warmup_epochs * epoch_steps)
        min_factor = self.min_lr / (peak * layer_scale)
        return epoch_cosine_factor(step, epoch_steps, total_steps, warmup_steps, self.warmup_lr / peak, min_factor)

    def in_steps(self, steps_of: Callable[[float], float]) -> Schedule:
        """Raises UserError: it falls from epoch to epoch, however long they are."""
        return Schedule.in_steps(self, steps_of)  # raises: it falls from epoch to epoch, however long they are


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Linear warmup, then linearly down; the other arguments are those of ``Schedule``.

    Args:
        warmup_steps: iterations of linear warmup.
    """

    base_batch_size: int = 16
    warmup_steps: int = 1500

    def factor(self, step: int, epoch_steps: int, total_steps: int, peak: float, layer_scale: float = 1.0) -> float:
        """The warmup as a factor of a line that falls from the peak to ``min_lr``."""
        min_factor = self.min_lr / (peak * layer_scale)
        return linear_factor(step, total_steps, self.warmup_steps, self.warmup_lr / peak, min_factor)

    def in_steps(self, steps_of: Callable[[float], float]) -> LinearSchedule:
        """The schedule itself, which counts no epochs."""
        return self  # which counts no epochs


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Linear warmup, then steps down; the other arguments are those of ``Schedule``.

    Args:
        warmup_steps: iterations of linear warmup.
        warmup_epochs: epochs of linear warmup, which count instead where they are above 0.
        milestones: epochs after which the learning rate is multiplied by ``gamma``; it stays at ``min_lr`` at least.
        gamma: that factor.
    """

    warmup_lr: float = 1e-7
    base_batch_size: int = 16
    warmup_steps: int = 500
    milestones: tuple[int, ...] = (27, 33)
    gamma: float = 0.1
    warmup_epochs: float = 0.0

    @property
    def epochs(self) -> int:
        """In proportion to the milestones 27 and 33 of 36 epochs."""
        return math.ceil(max(self.milestones, default=33) * 36 / 33)

    def factor(self, step: int, epoch_steps: int, total_steps: int, peak: float, layer_scale: float = 1.0) -> float:
        """The warmup as a factor of the rate that falls at each milestone."""
        milestones = [epoch * epoch_steps for epoch in self.milestones]
        warmup_steps = round(self.warmup_epochs * epoch_steps) if self.warmup_epochs else self.warmup_steps
        min_factor = self.min_lr / (peak * layer_scale)
        return step_factor(step, milestones, self.gamma, warmup_steps, self.warmup_lr / peak, min_factor)

    def in_steps(self, steps_of: Callable[[float], float]) -> StepSchedule:
        """The same schedule, its milestones and warmup counted in steps."""
        milestones = tuple(round(steps_of(epoch)) for epoch in self.milestones)
        return dataclasses.replace(self, milestones=milestones, warmup_epochs=steps_of(self.warmup_epochs))


def cosine_factor(step: int, total_steps: int, warmup_steps: int, warmup_factor: float, min_factor: float) -> float:
    """Learning rate at a step as a share of the peak.

    Args:
        step: steps taken so far, from 0.
        total_steps: steps of the whole training; later steps stay at ``min_factor``.
        warmup_steps: steps over which the rate rises from ``warmup_factor`` to 1.
        warmup_factor: share of the peak at step 0, when there is a warmup.
        min_factor: share of the peak at the end.
    """
    if step < warmup_steps:
        return warmup_factor + (1 - warmup_factor) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def epoch_cosine_factor(
    step: int, epoch_steps: int, total_steps: int, warmup_steps: int, warmup_factor: float, min_factor: float
) -> float:
    """Learning rate at a step as a share of the peak; the other arguments as those of ``cosine_factor``.

    As published, the cosine takes one value per epoch, from the first epoch on, and the warmup's ramp multiplies it.

    Args:
        step: steps taken so far, from 0.
        epoch_steps: steps of an epoch.
        total_steps: steps of the whole training; later steps stay at ``min_factor``.
        warmup_steps: steps over which the ramp rises.
        warmup_factor: share of the peak at step 0, when there is a warmup.
        min_factor: share of the peak at the end.
    """
    progress = min(1.0, step // epoch_steps * epoch_steps / max(1, total_steps))
    factor = min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    if step < warmup_steps:
        factor *= warmup_factor + (1 - warmup_factor) * step / warmup_steps
    return factor


def linear_factor(step: int, total_steps: int, warmup_steps: int, warmup_factor: float, min_factor: float) -> float:
    """Learning rate at a step as a share of the peak; arguments as those of ``cosine_factor``.

    As published, the warmup's ramp multiplies the falling line instead of going before it.
    """
    progress = min(1.0, step / max(1, total_steps))
    factor = min_factor + (1 - min_factor) * (1 - progress)
    if step < warmup_steps:
        factor *= warmup_factor + (1 - warmup_factor) * step / warmup_steps
    return factor


def step_factor(
    step: int, milestones: Sequence[int], gamma: float, warmup_steps: int, warmup_factor: float, min_factor: float
) -> float:
    """Learning rate at a step as a share of the peak; the other arguments as those of ``cosine_factor``.

    Args:
        step: steps taken so far, from 0.
        milestones: steps from which on the rate is multiplied by ``gamma``, each time.
        gamma: that factor.
        warmup_steps: steps over which the rate rises, whatever the milestones say.
        warmup_factor: share of the peak at step 0, when there is a warmup.
        min_factor: the smallest share of the peak.
    """
    factor = max(min_factor, gamma ** sum(step >= milestone for milestone in milestones))
    if step < warmup_steps:
        factor *= warmup_factor + (1 - warmup_factor) * step / warmup_steps
    return factor


def layer_id(name: str, depths: Sequence[int]) -> int:
    """Which layer a task's parameter belongs to: 0 the patch embedding, k + 1 block k, after the blocks the head.

    A downsample belongs to the last block of its stage.
    """
    if name.startswith("backbone.patch_embed."):
        return 0
    match = re.match(r"backbone\.layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name)
    if match is None:
        return sum(depths) + 1
    stage = int(match[1])
    block = int(match[2]) if match[2] else depths[stage] - 1
    return sum(depths[:stage]) + block + 1


def parameter_groups(
    parameters: Iterable[tuple[str, Tensor]],
    depths: Sequence[int],
    weight_decay: float,
    layer_decay: float = 1.0,
    backbone_lr_mult: float = 1.0,
    no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
) -> list[dict[str, Any]]:
    """Optimizer groups by weight decay and, with layer decay, by layer; frozen parameters are left out.

    Args:
        parameters: ``task.named_parameters()``; the backbone's names begin with ``backbone.``.
        depths: the backbone's blocks per stage.
        weight_decay: weight decay of matrices and kernels.
        layer_decay: factor d; layer ``id`` of N gets d^(N−1−id) of the learning rate.
        backbone_lr_mult: factor of the backbone's learning rate.
        no_weight_decay: parts of names that get none, beside 1-D parameters and biases.

    Returns:
        Groups {params, weight_decay, lr_scale}, from the input to the output.

    Raises:
        UserError: when an entry of ``no_weight_decay`` matches no parameter: a renamed part would silently decay.
    """
    last_layer = sum(depths) + 1
    unmatched = set(no_weight_decay)
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        matches = {part for part in no_weight_decay if part in name}
        unmatched -= matches
        if not parameter.requires_grad:
            continue

        has_decay = parameter.ndim > 1 and not name.endswith("bias") and not matches
        layer = layer_id(name, depths) if layer_decay != 1 else last_layer
        is_full_rate = backbone_lr_mult == 1 or not name.startswith("backbone.")
        key = (is_full_rate, layer, has_decay)
        if key not in groups:
            lr_scale = layer_decay ** (last_layer - layer) * (1 if is_full_rate else backbone_lr_mult)
            groups[key] = {"params": [], "weight_decay": weight_decay if has_decay else 0.0, "lr_scale": lr_scale}
        groups[key]["params"].append(parameter)

    if unmatched:
        raise UserError(f"no_weight_decay names {sorted(unmatched)} match no parameter; mend the names")
    return [groups[key] for key in sorted(groups)]


def optimizer_class(optimizer: Callable[..., Optimizer]) -> type[Optimizer]:
    """The class of what a function of parameters builds."""
    return type(_build_trial(optimizer))


def _build_trial(optimizer: Callable[..., Optimizer]) -> Optimizer:
    """An optimizer of one number, which shows how others will be set.

    Raises:
        UserError: it cannot be built with its settings, or one of them is not finite.
    """
    try:
        trial = optimizer([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer: {error}; expected settings that the optimizer takes") from error
    for name, value in trial.defaults.items():
        numbers = value if isinstance(value, tuple | list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"model.optimizer.{name} is {value}; expected a finite number")
    return trial


class PlannedLR(LambdaLR):
    """Steps a task's schedule, which is planned again where a training gets longer.

    Schedulers of other classes, which users' tasks bring, are left alone.
    """


def build_optimizer(
    optimizer: Callable[..., Optimizer],
    parameters: Iterable[tuple[str, Tensor]],
    depths: Sequence[int],
    schedule: Schedule,
    samples_per_step: int,
    epoch_steps: int,
    total_steps: int,
    no_weight_decay: Sequence[str] = NO_WEIGHT_DECAY,
) -> tuple[Optimizer, PlannedLR]:
    """The optimizer over ``parameter_groups`` and the scheduler to step after each of its steps.

    Args:
        optimizer: builds an optimizer from parameter groups; states the peak learning rate and the weight decay.
        parameters: ``task.named_parameters()``.
        depths: the backbone's blocks per stage.
        schedule: learning rate over time and layers.
        samples_per_step: samples over all processes and accumulated batches.
        epoch_steps: optimizer steps per epoch.
        total_steps: optimizer steps of the whole training.
        no_weight_decay: as for ``parameter_groups``.
    """
    defaults = _build_trial(optimizer).param_groups[0]
    peak = float(defaults["lr"])
    if peak <= 0:
        raise UserError(f"the optimizer's lr is {peak}; expected a learning rate above 0")
    weight_decay = defaults.get("weight_decay", 0.0)
    groups = parameter_groups(
        parameters, depths, weight_decay, schedule.layer_decay, schedule.backbone_lr_mult, no_weight_decay
    )
    built = optimizer(groups)

    # Each group's own peak is where its scheduler's factor is 1.
    batch_scale = samples_per_step / schedule.base_batch_size if schedule.base_batch_size else 1.0
    layer_scales = [group.pop("lr_scale") for group in built.param_groups]
    for group, layer_scale in zip(built.param_groups, layer_scales, strict=True):
        group["lr"] = peak * batch_scale * layer_scale

    def factor_of_layer(layer_scale: float) -> Callable[[int], float]:
        return lambda step: schedule.factor(step, epoch_steps, total_steps, peak, layer_scale)

    return built, PlannedLR(built, [factor_of_layer(layer_scale) for layer_scale in layer_scales])

"""Parameter groups, learning rates over time and layers: against the published recipe, worked out by hand."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from swinv2_tasks.backbone import BiasTable, SwinTransformerV2
from swinv2_tasks.cli.config_files import find_config
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.training.optim import (
    CosineSchedule,
    EpochCosineSchedule,
    LinearSchedule,
    StepSchedule,
    build_optimizer,
    cosine_factor,
    layer_id,
    linear_factor,
    parameter_groups,
    step_factor,
)

DEPTHS = (2, 1)
DECAY = 0.05


def classifier(**arguments: Any) -> Any:
    """Two stages of two and one blocks, and a head, under the names of a task."""
    module = nn.Module()
    module.backbone = SwinTransformerV2(8, DEPTHS, (1, 2), 4, **arguments)
    module.head = ClassificationHead(16, 3)
    return module


def groups_by_name(module: nn.Module, **arguments: Any) -> dict[str, dict]:
    """Each parameter's group, under its name; a parameter in two groups fails."""
    groups: dict[str, dict] = {}
    names = {parameter: name for name, parameter in module.named_parameters()}
    for group in parameter_groups(module.named_parameters(), DEPTHS, DECAY, **arguments):
        for parameter in group["params"]:
            assert names[parameter] not in groups
            groups[names[parameter]] = group
    return groups


# ---- weight decay

BLOCK_WITH_DECAY = {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}


def test_matrices_decay_and_nothing_else() -> None:
    """Reference, section 1: none on 1-D parameters, biases, logit_scale and every cpb_mlp weight."""
    groups = groups_by_name(classifier())
    with_decay = {name for name, group in groups.items() if group["weight_decay"]}
    blocks = ("backbone.layers.0.blocks.0", "backbone.layers.0.blocks.1", "backbone.layers.1.blocks.0")
    expected = {f"{block}.{name}" for block in blocks for name in BLOCK_WITH_DECAY}
    expected |= {"backbone.patch_embed.proj.weight", "backbone.layers.0.downsample.reduction.weight", "head.fc.weight"}
    assert with_decay == expected
    assert {group["weight_decay"] for group in groups.values()} == {0.0, DECAY}


def test_position_networks_and_logit_scales_are_more_than_one_dimensional() -> None:
    """So the rule for 1-D parameters alone would let them decay."""
    groups = groups_by_name(classifier())
    named = {name: p for name, p in classifier().named_parameters() if "cpb_mlp" in name or "logit_scale" in name}
    assert sum(p.ndim > 1 for p in named.values()) == 3 * 3  # per block: two matrices and the logit scale
    assert all(groups[name]["weight_decay"] == 0.0 for name in named)


def test_bias_tables_do_not_decay() -> None:
    groups = groups_by_name(classifier(position_bias=BiasTable))
    tables = [name for name in groups if name.endswith("relative_position_bias_table")]
    assert len(tables) == 3
    assert all(groups[name]["weight_decay"] == 0.0 for name in tables)


def test_biases_do_not_decay_whatever_their_shape() -> None:
    parameters = [
        ("head.bias", torch.zeros(2, 2, requires_grad=True)),
        ("head.weight", torch.zeros(2, 2, requires_grad=True)),
    ]
    decays = {
        id(p): group["weight_decay"]
        for group in parameter_groups(parameters, (1,), DECAY, no_weight_decay=())
        for p in group["params"]
    }
    assert [decays[id(p)] for _, p in parameters] == [0.0, DECAY]


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_every_trained_parameter_is_in_one_group(layer_decay: float) -> None:
    module = classifier()
    assert set(groups_by_name(module, layer_decay=layer_decay)) == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_frozen_parameters_are_left_out(layer_decay: float) -> None:
    names = set(groups_by_name(classifier(frozen_stages=1), layer_decay=layer_decay))
    frozen = ("backbone.patch_embed.", "backbone.layers.0.")
    assert names == {name for name, _ in classifier().named_parameters() if not name.startswith(frozen)}


def test_a_name_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="rpe_mlp"):
        parameter_groups(classifier().named_parameters(), DEPTHS, DECAY, no_weight_decay=("cpb_mlp", "rpe_mlp"))


def test_a_name_that_matches_frozen_parameters_only_is_none() -> None:
    module = classifier(frozen_stages=2)
    groups = parameter_groups(module.named_parameters(), DEPTHS, DECAY)
    assert sum(len(group["params"]) for group in groups) == len(list(module.head.parameters()))


# ---- layers


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.patch_embed.proj.weight", 0),
        ("backbone.patch_embed.norm.bias", 0),
        ("backbone.layers.0.blocks.0.attn.qkv.weight", 1),
        ("backbone.layers.0.blocks.1.norm1.weight", 2),
        ("backbone.layers.0.downsample.reduction.weight", 2),  # that of the last block of its stage
        ("backbone.layers.1.blocks.0.mlp.fc1.bias", 3),
        ("backbone.layers.2.blocks.5.attn.logit_scale", 10),  # 2 + 2 blocks before its stage
        ("backbone.layers.2.downsample.norm.weight", 10),
        ("backbone.layers.3.blocks.1.mlp.fc2.weight", 12),
        ("head.norm.weight", 13),
        ("head.fc.bias", 13),
    ],
)
def test_layers_of_the_tiny_model(name: str, layer: int) -> None:
    """Reference, section 3: patch_embed 0, block k → k + 1, norm and head last; T has 2 + 2 + 6 + 2 blocks."""
    assert layer_id(name, (2, 2, 6, 2)) == layer


def test_learning_rates_fall_by_the_decay_from_layer_to_layer() -> None:
    """N = 5 layers: the patch embedding, three blocks, the head; scale d^(N − 1 − id)."""
    groups = groups_by_name(classifier(), layer_decay=0.5)
    expected = {
        "backbone.patch_embed.": 0.5**4,
        "backbone.layers.0.blocks.0.": 0.5**3,
        "backbone.layers.0.blocks.1.": 0.5**2,
        "backbone.layers.0.downsample.": 0.5**2,
        "backbone.layers.1.blocks.0.": 0.5,
        "head.": 1.0,
    }
    for name, group in groups.items():
        (scale,) = [scale for prefix, scale in expected.items() if name.startswith(prefix)]
        assert group["lr_scale"] == scale, name


def test_without_layer_decay_all_layers_learn_alike() -> None:
    groups = parameter_groups(classifier().named_parameters(), DEPTHS, DECAY)
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]
    assert [group["weight_decay"] for group in groups] == [0.0, DECAY]


# ---- schedule


def test_warmup_rises_evenly_to_the_peak() -> None:
    factors = [cosine_factor(step, 100, 10, 0.2, 0.01) for step in range(11)]
    assert factors[0] == 0.2
    assert factors[5] == pytest.approx(0.6)
    assert factors[10] == 1.0
    steps = [after - before for before, after in itertools.pairwise(factors)]
    assert steps == pytest.approx([0.08] * 10)


def test_after_warmup_half_a_cosine_falls_to_the_minimum() -> None:
    factors = [cosine_factor(step, 100, 10, 0.2, 0.01) for step in range(10, 101)]
    assert factors == sorted(factors, reverse=True)
    assert len(set(factors)) == len(factors)  # every iteration has a rate of its own
    assert factors[45] == pytest.approx((1 + 0.01) / 2)  # the middle of the cosine
    assert factors[30] == pytest.approx(0.01 + 0.99 * 0.75)  # a third of it: (1 + cos 60°) / 2
    assert factors[-1] == pytest.approx(0.01)


def test_the_rate_stays_at_the_minimum_after_the_end() -> None:
    assert cosine_factor(101, 100, 10, 0.2, 0.01) == cosine_factor(1000, 100, 10, 0.2, 0.01) == pytest.approx(0.01)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert cosine_factor(0, 100, 0, 0.2, 0.01) == 1.0


def test_a_training_shorter_than_its_warmup_does_not_divide_by_zero() -> None:
    assert cosine_factor(5, 5, 10, 0.0, 0.01) == 0.5
    assert cosine_factor(10, 10, 10, 0.0, 0.01) == 1.0


@pytest.mark.parametrize(
    "arguments",
    [{"warmup_epochs": -1}, {"warmup_lr": -1e-6}, {"min_lr": -1e-6}, {"base_batch_size": -1}, {"layer_decay": 0}],
    ids=str,
)
def test_impossible_schedules_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        CosineSchedule(**arguments)


# ---- optimizer


def rates(schedule: CosineSchedule, samples: int, steps: int, lr: float = 1e-3) -> list[list[float]]:
    """The learning rates of all groups before each step, of an epoch of 10 steps and a training of 40."""
    optimizer, scheduler = build_optimizer(
        partial(AdamW, lr=lr, weight_decay=DECAY), classifier().named_parameters(), DEPTHS, schedule, samples, 10, 40
    )
    history = []
    for _ in range(steps):
        history.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return history


def test_learning_rates_grow_with_the_global_batch() -> None:
    """Reference, section 3: lr × global batch / 512, for the peak, the warmup and the minimum alike."""
    schedule = CosineSchedule(warmup_epochs=1, warmup_lr=1e-5, min_lr=1e-6)
    for samples, scale in ((512, 1.0), (1024, 2.0), (64, 0.125)):
        history = rates(schedule, samples, 41)
        for step, expected in ((0, 1e-5), (10, 1e-3), (40, 1e-6)):
            assert history[step] == pytest.approx([expected * scale] * 2), (samples, step)


def test_a_base_batch_size_of_zero_leaves_rates_as_stated() -> None:
    schedule = CosineSchedule(warmup_epochs=0, base_batch_size=0)
    assert rates(schedule, 8192, 1) == [pytest.approx([1e-3] * 2)]


def test_rates_change_at_every_step_of_an_epoch() -> None:
    history = [groups[0] for groups in rates(CosineSchedule(warmup_epochs=1, base_batch_size=0), 1, 30)]
    assert len(set(history)) == 30


def test_half_an_epoch_of_warmup() -> None:
    history = [groups[0] for groups in rates(CosineSchedule(warmup_epochs=0.5, warmup_lr=0, base_batch_size=0), 1, 6)]
    assert history == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3])


LAYERS = (4, 4, 3, 3, 2, 2, 1, 1, 0, 0)
"""How many layers each group is below the head: from the patch embedding on, each without and with weight decay."""


def test_with_layer_decay_warmup_starts_and_the_cosine_ends_at_one_rate() -> None:
    """The scheduler of the published code, timm's, over the same groups: it has absolute rates, not factors."""
    schedule = CosineSchedule(warmup_epochs=1, warmup_lr=1e-5, min_lr=2e-6, base_batch_size=8, layer_decay=0.5)
    scale = 24 / 8
    parameters = [nn.Parameter(torch.zeros(1)) for _ in LAYERS]
    optimizer = SGD([{"params": [p], "lr": 1e-3 * scale * 0.5**k} for p, k in zip(parameters, LAYERS, strict=True)])
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=30,
        lr_min=2e-6 * scale,
        warmup_t=10,
        warmup_lr_init=1e-5 * scale,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )
    history = rates(schedule, 24, 45)
    for step, ours in enumerate(history):
        theirs.step_update(step)
        assert ours == pytest.approx([group["lr"] for group in optimizer.param_groups])
    assert history[0] == pytest.approx([3e-5] * 10) and history[-1] == pytest.approx([6e-6] * 10)
    assert history[10] == pytest.approx([3e-3 * 0.5**k for k in LAYERS])


@pytest.mark.parametrize(
    "schedule",
    [
        LinearSchedule(warmup_steps=10, warmup_lr=1e-6, base_batch_size=0, layer_decay=0.5),
        StepSchedule(warmup_steps=10, warmup_lr=1e-6, milestones=(2, 3), base_batch_size=0, layer_decay=0.5),
        EpochCosineSchedule(warmup_epochs=1, warmup_lr=1e-4, base_batch_size=0, layer_decay=0.5),
    ],
)
def test_where_warmup_is_a_factor_layer_decay_holds_throughout(schedule: Any) -> None:
    """As published for detection, segmentation and video: a ratio of the rate that each layer has."""
    for step in rates(schedule, 1, 35):
        assert step == pytest.approx([step[-1] * 0.5**k for k in LAYERS])


def test_the_least_rate_is_that_of_all_layers() -> None:
    for schedule in (
        LinearSchedule(warmup_steps=0, min_lr=1e-5, base_batch_size=0, layer_decay=0.5),
        StepSchedule(warmup_steps=0, min_lr=1e-5, milestones=(1,), gamma=1e-9, base_batch_size=0, layer_decay=0.5),
        EpochCosineSchedule(warmup_epochs=0, min_lr=1e-5, base_batch_size=0, layer_decay=0.5),
    ):
        assert rates(schedule, 1, 41)[40] == pytest.approx([1e-5] * 10)


# ---- the cosine of video


def test_the_cosine_of_video_is_the_published_rule() -> None:
    """By its formulas, as training goes through epochs and iterations.

    Each epoch has a value of the cosine of its own, from epoch 0 on, and in the first 2.5 epochs an iteration's
    distance from their end is taken off it.
    """
    epochs, iterations, peak, ratio = 30, 8, 1e-3, 0.1
    schedule = EpochCosineSchedule()
    step = 0
    for epoch in range(epochs):
        regular = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for _ in range(iterations):
            rate = regular
            if step < 2.5 * iterations:
                rate = regular * (1 - (1 - step / (2.5 * iterations)) * (1 - ratio))
            assert peak * schedule.factor(step, iterations, epochs * iterations, peak) == pytest.approx(rate)
            step += 1
    assert schedule.factor(step, iterations, step, peak) == schedule.factor(step + 99, iterations, step, peak) == 0


def test_the_kinetics_recipe_warms_up_from_a_tenth() -> None:
    """In the backbone, which learns ten times slower, as well."""
    config = yaml.safe_load(find_config("kinetics.yaml").read_text())["model"]["init_args"]
    schedule = EpochCosineSchedule(**config["schedule"])
    build = partial(AdamW, lr=config["optimizer"]["init_args"]["lr"])
    optimizer, scheduler = build_optimizer(build, classifier().named_parameters(), DEPTHS, schedule, 64, 10, 300)
    history = []
    for _ in range(151):
        history.append(sorted({group["lr"] for group in optimizer.param_groups}))
        optimizer.step()
        scheduler.step()
    assert history[0] == pytest.approx([1e-5, 1e-4])
    assert history[25] == pytest.approx([rate * 0.5 * (1 + math.cos(math.pi * 2 / 30)) for rate in (1e-4, 1e-3)])
    assert history[150] == pytest.approx([0.5e-4, 0.5e-3])  # half of the epochs, wherever the warmup ended


def test_weight_decay_and_other_settings_are_those_of_the_optimizer() -> None:
    optimizer, _ = build_optimizer(
        partial(AdamW, lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9)),
        classifier().named_parameters(),
        DEPTHS,
        CosineSchedule(),
        512,
        10,
        40,
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3]
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_one_step_moves_parameters_by_their_own_rate() -> None:
    """Plain gradient descent without weight decay: the step is the group's rate times the gradient."""
    module = classifier()
    schedule = CosineSchedule(warmup_epochs=0, layer_decay=0.5)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer, _ = build_optimizer(
        partial(SGD, lr=0.1),
        module.named_parameters(),
        DEPTHS,
        schedule,
        samples_per_step=256,
        epoch_steps=1,
        total_steps=2,
    )
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved: dict[str, Tensor] = {name: before[name] - p.detach() for name, p in module.named_parameters()}
    rate = 0.1 * 256 / 512
    for name, scale in (
        ("backbone.patch_embed.proj.bias", 0.5**4),
        ("backbone.layers.1.blocks.0.attn.q_bias", 0.5),
        ("head.fc.bias", 1),
    ):
        torch.testing.assert_close(moved[name], torch.full_like(moved[name], rate * scale))


def test_a_learning_rate_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="lr"):
        rates(CosineSchedule(), 1, 1, lr=0.0)


def test_the_cosine_is_that_of_pytorch() -> None:
    """Another implementation of the same curve, over a training without warmup."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.1)
    for step in range(30):
        assert cosine_factor(step, 30, 0, 0.0, 0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert math.isclose(cosine_factor(30, 30, 0, 0.0, 0.1), 0.1)


# ---- the linear schedule of segmentation


def test_the_line_is_the_published_rule() -> None:
    """Polynomial of power 1 to the minimum; in the warmup times a ramp from the warmup's share of the rate."""
    total, warmup, ratio, least = 100, 15, 1e-3, 0.1
    for step in range(total + 10):
        line = (1 - least) * (1 - min(step, total) / total) + least
        ramp = 1 - (1 - step / warmup) * (1 - ratio) if step < warmup else 1
        assert linear_factor(step, total, warmup, ratio, least) == pytest.approx(line * ramp)


def test_the_linear_schedule_goes_by_iterations() -> None:
    """With warmup_lr 0.01 at a peak of 0.1, over 4 steps of 40; an epoch's length does not matter."""
    schedule = LinearSchedule(warmup_steps=4, warmup_lr=0.01, min_lr=0.0, base_batch_size=8)
    for epoch_steps in (1, 7):
        module = classifier()
        build = partial(SGD, lr=0.1)
        optimizer, scheduler = build_optimizer(
            build, module.named_parameters(), DEPTHS, schedule, 16, epoch_steps, total_steps=40
        )
        rates = []
        for _ in range(41):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates[0] == pytest.approx(2 * 0.01)  # twice the reference batch
        assert rates[4] == pytest.approx(2 * 0.1 * 0.9)
        assert rates[20] == pytest.approx(2 * 0.1 * 0.5)
        assert rates[40] == 0


def test_the_backbone_may_learn_slower_than_the_head() -> None:
    groups = groups_by_name(classifier(), layer_decay=0.5, backbone_lr_mult=0.1)
    assert groups["head.fc.weight"]["lr_scale"] == 1
    assert groups["backbone.layers.1.blocks.0.mlp.fc1.weight"]["lr_scale"] == pytest.approx(0.1 * 0.5)
    assert groups["backbone.patch_embed.proj.weight"]["lr_scale"] == pytest.approx(0.1 * 0.5**4)
    assert len(groups) == len([*classifier().parameters()])
    flat = groups_by_name(classifier(), backbone_lr_mult=0.1)
    scales = {name: group["lr_scale"] for name, group in flat.items()}
    assert set(scales.values()) == {1.0, 0.1}
    assert all((scale == 0.1) == name.startswith("backbone.") for name, scale in scales.items())


@pytest.mark.parametrize(
    "arguments", [{"warmup_steps": -1}, {"min_lr": -1.0}, {"layer_decay": 0.0}, {"backbone_lr_mult": -0.1}]
)
def test_impossible_linear_schedules_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError, match="schedule"):
        LinearSchedule(**arguments)


# ---- the steps of detection


def test_steps_are_those_of_the_published_schedule() -> None:
    """Reference, section 3: warmup over 500 iterations from a thousandth; a tenth from epoch 27 on, then from 33."""
    schedule = StepSchedule()
    for step, expected in (
        (0, 1e-3), (250, 0.5005), (499, 1e-3 + 0.999 * 499 / 500), (500, 1), (26_999, 1), (27_000, 0.1), (32_999, 0.1),
        (33_000, 0.01), (99_999, 0.01),
    ):  # fmt: skip
        assert schedule.factor(step, 1000, 36_000, 1e-4) == pytest.approx(expected)


def test_steps_of_simmim_warm_up_by_epochs() -> None:
    """Reference, section 3: 10 epochs from 0.005 of the rate, a tenth from epoch 700 on."""
    schedule = StepSchedule(warmup_lr=5e-7, warmup_epochs=10, milestones=(700,))
    for step, expected in ((0, 0.005), (3125, 0.5025), (6250, 1), (437_499, 1), (437_500, 0.1), (500_000, 0.1)):
        assert schedule.factor(step, 625, 500_000, 1e-4) == pytest.approx(expected)


def test_a_warmup_of_less_than_a_step_is_none() -> None:
    assert StepSchedule(warmup_epochs=0.01).factor(0, 20, 100, 1e-4) == 1


def test_steps_within_the_warmup_and_a_least_rate() -> None:
    assert step_factor(5, [3, 4], 0.5, 10, 0.2, 0.0) == pytest.approx(0.25 * (0.2 + 0.8 * 0.5))
    assert step_factor(100, [1, 2, 3], 0.1, 0, 0.0, 0.05) == 0.05
    assert step_factor(0, [], 0.1, 0, 0.0, 0.0) == 1


@pytest.mark.parametrize("arguments", [{"milestones": (-1,)}, {"gamma": -0.1}, {"warmup_steps": -1}])
def test_impossible_step_schedules_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError, match="must not be negative"):
        StepSchedule(**arguments)

"""Training samples that come as often as their classes ask for: by brute force, over processes, resumed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.datamodules.class_sampling import BalancedOrder, RepeatFactorOrder, SampleClasses
from swinv2_tasks.datamodules.loader import BatchOrder, group_batches
from swinv2_tasks.errors import UserError
from tests.helpers import objects, tiny


def random_classes(rng: np.random.Generator, several: bool) -> tuple[list[Any], int]:
    """Labels of samples, of which few show the last classes."""
    number = int(rng.integers(1, 60))
    shares = 1 / np.arange(1, 6) ** 2
    labels: list[Any] = [int(label) for label in rng.choice(5, number, p=shares / shares.sum())]
    if several:
        labels = [sorted({label, *rng.integers(0, 6, rng.integers(0, 3)).tolist()})[1:] for label in labels]
    return labels, 7


def lists_of(labels: list[Any]) -> list[list[int]]:
    return [[label] if isinstance(label, int) else label for label in labels]


def test_pairs_and_counts() -> None:
    classes = SampleClasses.of_labels([[1, 0], [], [1]], 3)
    assert [*zip(classes.samples.tolist(), classes.labels.tolist(), strict=True)] == [(0, 0), (0, 1), (2, 1)]
    assert classes.counts.tolist() == [1, 2, 0]
    again = SampleClasses.of_objects(3, 3, np.array([2, 0, 0, 0]), np.array([1, 1, 0, 1]))
    assert again.samples.tolist() == classes.samples.tolist() and again.labels.tolist() == classes.labels.tolist()


@pytest.mark.parametrize("several", [False, True])
def test_balanced_orders_have_each_class_equally_often(several: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        labels, number = random_classes(rng, several)
        order = BalancedOrder(SampleClasses.of_labels(labels, number))
        drawn = order(np.random.default_rng(1))
        assert len(drawn) == len(order) == len(labels)
        times = Counter(drawn.tolist())
        of_none = [index for index, own in enumerate(lists_of(labels)) if not own]
        assert all(times[index] == 1 for index in of_none)
        if several:
            continue
        per_class = Counter(labels[index] for index in drawn)
        assert set(per_class) == set(labels)
        assert max(per_class.values()) - min(per_class.values()) <= 1
        for label in per_class:
            own = [times[index] for index, other in enumerate(labels) if other == label]
            assert max(own) - min(own) <= 1


def test_balanced_orders_of_several_labels_are_even_over_many_draws() -> None:
    """Sample 0 shows both classes, 1 the first one and 2 the second: each class has half of the places."""
    order = BalancedOrder(SampleClasses.of_labels([[0, 1], [0], [1], []], 2))
    generator = np.random.default_rng(0)
    times = Counter(np.concatenate([order(generator) for _ in range(2000)]).tolist())
    assert times[3] == 2000
    assert times[0] == pytest.approx(3000, rel=0.05)
    assert times[1] == pytest.approx(1500, rel=0.05) and times[2] == pytest.approx(1500, rel=0.05)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
def test_repeat_factors_are_the_published_ones(several: bool, threshold: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        labels, number = random_classes(rng, several)
        lists = lists_of(labels)
        shares = [sum(k in own for own in lists) / len(lists) for k in range(number)]
        factors = [max([1.0, *(math.sqrt(threshold / shares[k]) for k in own)]) for own in lists]
        order = RepeatFactorOrder(SampleClasses.of_labels(labels, number), threshold)
        assert order.factors == pytest.approx(factors)
        assert abs(len(order) - sum(factors)) <= 0.5 + 1e-9
        for seed in range(3):
            drawn = order(np.random.default_rng(seed))
            assert len(drawn) == len(order)
            times = np.bincount(drawn, minlength=len(lists))
            assert (np.floor(np.array(factors) - 1e-9) <= times).all()
            assert (times <= np.ceil(np.array(factors) + 1e-9)).all()


def test_repeat_factors_are_met_on_average() -> None:
    labels = [0] * 50 + [1] * 8 + [2]
    order = RepeatFactorOrder(SampleClasses.of_labels(labels, 3), 0.5)
    generator = np.random.default_rng(0)
    draws = 3000
    times = sum(np.bincount(order(generator), minlength=len(labels)) for _ in range(draws))
    assert times / draws == pytest.approx(order.factors, abs=0.12)  # 7.8 further places are 8


def test_processes_share_an_epoch_and_it_can_begin_anywhere() -> None:
    labels = [0] * 30 + [1] * 5 + [2] * 2
    classes = SampleClasses.of_labels(labels, 3)
    for draw in (BalancedOrder(classes), RepeatFactorOrder(classes, 0.9)):
        plans: dict[int, list[Any]] = {}
        for world_size in (1, 2, 3):
            orders = [
                BatchOrder(len(draw), 2, rank, world_size, 5, drop_last=True, shuffle=True, permute=draw)
                for rank in range(world_size)
            ]
            for order in orders:
                order.set_epoch(4)
            assert len({len(list(order.plans())) for order in orders}) == 1
            turns = zip(*(order.plans() for order in orders), strict=True)
            plans[world_size] = [plan for turn in turns for plan in turn]
            assert list(orders[0].plans(3)) == list(orders[0].plans())[3:]
        for world_size in (2, 3):
            assert plans[world_size] == plans[1][: len(plans[world_size])]
        other = BatchOrder(len(draw), 2, 0, 1, 5, drop_last=True, shuffle=True, permute=draw)
        assert list(other.plans()) != plans[1]  # of epoch 0


def test_groups_keep_each_place_of_a_repeated_sample() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = rng.integers(0, 9, rng.integers(1, 40))
        groups = rng.integers(0, 2, 9).tolist()
        grouped = group_batches(order, groups, 4)
        assert sorted(grouped.tolist()) == sorted(order.tolist())
        whole = sum(count // 4 for count in Counter(groups[index] for index in order.tolist()).values())
        for batch in grouped[: 4 * whole].reshape(-1, 4).tolist():
            assert len({groups[index] for index in batch}) == 1


# ---- datamodules


def indices_of(data: Any, epoch: int = 0) -> list[int]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return [index for plan in loader.batch_sampler.plans() for index in plan.indices]


def test_images_of_rare_classes(tmp_path: Path, capsys: Any) -> None:
    root = tiny.write_images(tmp_path / "images", train=10)
    for path in sorted((root / "train" / "n03").iterdir())[2:]:
        path.unlink()
    stated = {"class_names": str(root / "classes.csv"), "batch_size": 2}
    data = tiny.new_data(root, sampling="balanced", **stated)
    data.setup("fit")
    labels = [label for _, label in data.train_dataset.samples]
    assert data.train_batches() == 11
    assert sorted(Counter(labels[index] for index in indices_of(data)).values()) == [7, 7, 8]
    assert indices_of(data) == indices_of(data) != indices_of(data, 1)
    assert "an epoch has 22 samples as before, 7.333 of each of 3 classes" in capsys.readouterr().out

    data = tiny.new_data(root, sampling="repeat_factor", repeat_threshold=0.5, **stated)
    data.setup("fit")
    factor = math.sqrt(0.5 / (2 / 22))
    common = math.sqrt(0.5 / (10 / 22))
    expected = round(2 * factor + 20 * common)
    assert data.epoch_samples == expected and data.train_batches() == expected // 2
    assert len(indices_of(data)) == 2 * (expected // 2)
    assert f"an epoch has {expected} samples of 22; classes repeated: blue sea 2.35×" in capsys.readouterr().out

    tiny.new_data(root, sampling="repeat_factor", **stated).setup("fit")
    assert "no class is that rare" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"repeat_threshold"):
        tiny.new_data(root, repeat_threshold=0.0)


def test_images_of_rare_objects_in_groups(tmp_path: Path) -> None:
    root = objects.write_objects(tmp_path)
    stated = {**objects.DATA, "batch_size": 2, "keep_empty": True}
    data = CocoDataModule(str(root), sampling="repeat_factor", repeat_threshold=1.0, **stated)
    data.setup("fit")
    images = data.train_dataset.images  # type: ignore[union-attr]
    shown = [{annotation.label for annotation in image.objects} for image in images]
    shares = {label: sum(label in own for own in shown) / len(shown) for label in range(3)}
    factors = [max([1.0, *(shares[label] ** -0.5 for label in own)]) for own in shown]
    assert data.epoch_samples == round(sum(factors)) > len(shown)
    indices = indices_of(data)
    assert len(indices) == 2 * data.train_batches()
    assert set(Counter(indices)) <= set(range(len(shown)))

    data = CocoDataModule(str(root), sampling="balanced", **stated)
    data.setup("fit")
    assert data.epoch_samples == len(shown)
    assert 1 in indices_of(data)  # without objects

"""The command ``memory``: every config gets figures, options save what they say, and what is said to fit fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.cli.configs import shipped_configs
from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.memory.command import gpu_bytes
from swinv2_tasks.commands.memory.estimate import (
    GIB,
    Estimates,
    available,
    candidates,
    changes,
    cheapest,
    least_bytes,
    memory_saving_plans,
)
from swinv2_tasks.commands.memory.planned_training import read_training
from swinv2_tasks.errors import UserError

ALL = sorted(str(path.relative_to(shipped_configs())) for path in shipped_configs().rglob("*.yaml"))
CONFIGS = [name for name in ALL if not name.startswith("overlays/")]
SMALL = ["--config=imagenet.yaml", "--config=overlays/small.yaml", "--data.image_size=64", "--data.batch_size=16"]
SMALL += ["--model.backbone.init_args.depths=[1,1,1]"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "imagenet.yaml" else pytest.mark.slow) for name in CONFIGS]
)
def test_every_config_gets_an_estimate(name: str) -> None:
    training = read_training([f"--config={name}"])
    for device in ("cuda", "cpu") if name.startswith("demo") else ("cuda",):  # a CPU takes many small steps
        found = Estimates(training, device)[training.plan]
        step = found.step
        assert step.sum("weights") > 0
        assert all(part.activations > 0 for part in step.parts)
        assert all(part.gradients == part.parameters for part in step.parts)
        assert step.sum("optimizer") == 2 * step.sum("parameters")  # AdamW everywhere
        assert step.temporary >= 0
        held = step.sum("parameters") + step.sum("gradients") + step.sum("optimizer") + step.sum("activations")
        assert held < found.total < 2**44


@pytest.mark.parametrize("name", ["ema", "small"])
def test_overlays_count(name: str) -> None:
    arguments = SMALL if name == "ema" else ["--config=imagenet.yaml"]
    overlay = [*arguments, f"--config=overlays/{name}.yaml"]
    plain, over = (read_training([*given, "--data.batch_size=2"]) for given in (arguments, overlay))
    before, after = (Estimates(one, "cuda")[one.plan] for one in (plain, over))
    if name == "ema":  # the average of the weights
        assert after.ema_copy == after.step.sum("parameters") + after.step.buffers
        assert after.total == before.total + after.ema_copy
    else:
        assert after.total < before.total / 4


def test_overridden_values_count() -> None:
    training = read_training([*SMALL, "--model.backbone.init_args.checkpoint_stages=true", "--trainer.precision=bf16"])
    assert training.plan.precision == "bf16-mixed"
    plain = read_training([*SMALL, "--trainer.precision=bf16"])
    found, before = (Estimates(one, "cuda")[one.plan].step for one in (training, plain))
    assert found.sum("activations") < before.sum("activations") / 2


def test_classes_are_the_data_s_or_stated_or_assumed_and_said(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    stated = read_training([*SMALL, f"--data.class_names={tmp_path}/classes.txt"])
    assert (stated.task.num_classes, stated.notes) == (3, ())
    assert read_training(SMALL, num_classes=7).task.num_classes == 7
    assumed = read_training([*SMALL, f"--data.root={tmp_path}/none"])
    assert assumed.task.num_classes == 1000
    assert "1000 classes assumed" in assumed.notes[0]
    assert read_training(["--config=paper/swinv2_base_22k_w12_192.yaml"]).task.num_classes == 21_841


def test_detection_takes_the_largest_images_of_a_batch() -> None:
    plain = read_training(["--config=coco.yaml"])
    assert plain.data.largest_size() == (800, 1333)
    mixed = read_training(["--config=coco.yaml", "--data.aspect_ratio_grouping=false"])
    assert mixed.data.largest_size() == (1333, 1333)
    jittered = read_training(["--config=coco.yaml", "--data.augmentation=ScaleJitterAugmentation"])
    assert jittered.data.largest_size() == (1024, 1024)
    assert any("objects" in note for note in plain.notes)


def test_shares_of_processes() -> None:
    training = read_training([*SMALL, "--trainer.devices=4"])
    assert training.processes == 4
    estimates = Estimates(training, "cuda")
    kinds = {plan.sharding: plan for plan in reversed([*candidates(training)])}
    whole, optimizer, full = (estimates[kinds[kind]] for kind in ("none", "optimizer", "full"))
    assert whole.plan == training.plan
    step = whole.step
    assert whole.ddp_buckets == step.sum("gradients")  # what processes exchange
    assert full.ddp_buckets == 0
    saved = whole.total - optimizer.total
    assert saved == pytest.approx(0.75 * step.sum("optimizer"), rel=0.01)
    assert full.total < optimizer.total


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("80GB", 80 * 10**9), ("1.5 GiB", 3 * GIB // 2), ("512MiB", GIB // 2), ("h100", 79 * GIB)],
)
def test_sizes_of_gpus(text: str, size: int) -> None:
    assert gpu_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GiB", "-3GiB", "0GB", "24 parsecs", "H1000"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"24GiB.*H100"):
        gpu_bytes(text)


def test_the_cheapest_that_fits_fits_as_the_arguments_say() -> None:
    training = read_training(SMALL)
    estimates = Estimates(training, "cuda")
    total = estimates[training.plan].total
    for share in (1.0, 0.7, 0.5):
        found = cheapest(estimates, training, int(share * total))
        assert found is not None
        assert found.total <= share * total
        assert (found.plan == training.plan) == (share == 1.0)
        arguments = [part for _, text in changes(found.plan, training) for part in text.split()]
        again = read_training([*SMALL, *arguments])
        assert Estimates(again, "cuda")[again.plan].total == found.total
        assert again.plan.batch_size * again.plan.accumulated == 16
    assert cheapest(estimates, training, 2**20) is None


def test_optimizer_states_in_8_bits() -> None:
    """Two moments of a byte and, of 256 values each, a scale in float32; the tables of values are one for all."""
    training = read_training(SMALL)
    estimates = Estimates(training, "cuda")
    plan = replace(training.plan, eight_bit=True)
    assert plan in [*memory_saving_plans(training), *candidates(training)]
    ((_, arguments),) = changes(plan, training)
    for precision in ("32-true", "bf16-true"):
        found = estimates[replace(plan, precision=precision)]
        assert found.step.sum("optimizer") == pytest.approx(2 * (1 + 4 / 256) * found.step.sum("weights"), rel=0.05)
        again = read_training([*SMALL, *arguments.split(), f"--trainer.precision={precision}"])
        assert Estimates(again, "cuda")[again.plan].total == found.total
        assert not any(one.eight_bit for one in [*memory_saving_plans(again), *candidates(again)])


def test_plans_that_cannot_fit_are_passed_over() -> None:
    training = read_training([*SMALL, "--trainer.devices=2"])
    estimates = Estimates(training, "cuda")
    base = estimates[training.plan]
    for kind, eight_bit in (
        ("none", False),
        ("optimizer", False),
        ("full", False),
        ("none", True),
        ("optimizer", True),
    ):
        plan = replace(training.plan, sharding=kind, eight_bit=eight_bit)
        assert 0 < least_bytes(base, plan, training.processes) < estimates[plan].total
    half = replace(training.plan, precision="bf16-true")
    assert least_bytes(base, half, 2) == least_bytes(base, training.plan, 2) // 2


def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # or words are broken over lines
    file = tmp_path / "memory.json"
    assert main(["memory", *SMALL, "--gpu", "24GiB", "--json", str(file), "--num_classes", "5"]) == 0
    printed = capsys.readouterr().out
    for words in ("patches", "stage 3", "head, loss", "checkpoint_stages true", "fits:"):
        assert words in printed
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["fits"] is True
    assert found["gpu"]["available"] == available(24 * GIB) < 24 * GIB
    parts = sum(part["total"] for part in found["parts"])
    beside = sum(found[name] for name in ("buffers", "temporary", "ema_copy", "ddp_buckets"))
    assert found["peak"] == parts + beside
    assert found["plans"][0]["bytes"] == found["peak"]


def test_what_does_not_fit_is_said_with_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *SMALL, "--data.batch_size=256", "--gpu=1GiB"]) == 0
    printed = capsys.readouterr().out
    assert "does not fit" in printed
    assert "cheapest that fits" in printed
    assert "--data.batch_size" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "memory needs --config"),
        (["--config=imagnet.yaml"], "Did you mean imagenet.yaml"),
        ([*SMALL, "--gpu=24"], "24GiB"),
        ([*SMALL, "--num_classes=0"], "num_classes must be at least 1"),
        ([*SMALL, "--processes=0"], "processes must be at least 1"),
        ([*SMALL, "--data.batch_size=0"], "data.batch_size=0"),
        (["--config=simmim.yaml", "--data.image_size=100"], "mask_patch_size"),
        (["--config=coco.yaml", "--data.augmentation.max_size=100"], "max_size"),
        ([*SMALL, "--model.backbone.init_args.num_heads=[5,4,8]"], "num_heads"),
    ],
)
def test_mistakes_end_in_one_message(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("swinv2-tasks: ")
    assert words in printed
    assert "Traceback" not in printed

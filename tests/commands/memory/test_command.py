"""The command ``memory``: every config has an estimate, options change it, and plans that fit do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.cli.config_files import shipped_configs
from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.memory.command import parse_gpu
from swinv2_tasks.commands.memory.estimate import (
    GIB,
    Estimates,
    available_bytes,
    candidates,
    find_cheapest,
    least_bytes,
    list_changes,
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
        estimate = Estimates(training, device)[training.plan]
        step = estimate.step
        assert step.sum("weights") > 0
        assert all(part.activations > 0 for part in step.parts)
        assert all(part.gradients == part.parameters for part in step.parts)
        assert step.sum("optimizer") == 2 * step.sum("parameters")  # AdamW everywhere
        assert step.temporary >= 0
        parts = sum(step.sum(name) for name in ("parameters", "gradients", "optimizer", "activations"))
        assert parts < estimate.total < 2**44
    assert memory_saving_plans(training)


@pytest.mark.parametrize("name", ["ema", "small"])
def test_overlays_count(name: str) -> None:
    arguments = SMALL if name == "ema" else ["--config=imagenet.yaml"]
    overlay = [*arguments, f"--config=overlays/{name}.yaml"]
    plain, over = (read_training([*given, "--data.batch_size=2"]) for given in (arguments, overlay))
    before, after = (Estimates(training, "cuda")[training.plan] for training in (plain, over))
    if name == "ema":  # the average of the weights
        assert after.ema_copy == after.step.sum("parameters") + after.step.buffers
        assert after.total == before.total + after.ema_copy
    else:
        assert after.total < before.total / 4


@pytest.mark.slow
def test_overridden_values_count() -> None:
    plain = read_training([*SMALL, "--trainer.precision=bf16"])
    assert plain.plan.precision == "bf16-mixed"
    checkpointed = read_training(
        [*SMALL, "--model.backbone.init_args.checkpoint_stages=true", "--trainer.precision=bf16"]
    )
    before, after = (Estimates(training, "cuda")[training.plan].step for training in (plain, checkpointed))
    assert after.sum("activations") < before.sum("activations") / 2


@pytest.mark.slow
def test_classes_are_the_data_s_or_stated_or_assumed_with_a_note(tmp_path: Path) -> None:
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


def test_sharding_over_processes() -> None:
    training = read_training([*SMALL, "--trainer.devices=4"])
    assert training.processes == 4
    estimates = Estimates(training, "cuda")
    plans = {plan.sharding: plan for plan in reversed([*candidates(training)])}  # the first of each
    ddp, zero1, fsdp = (estimates[plans[sharding]] for sharding in ("none", "optimizer", "full"))
    assert ddp.plan == training.plan
    step = ddp.step
    assert ddp.ddp_buckets == step.sum("gradients")
    assert fsdp.ddp_buckets == 0
    saved = ddp.total - zero1.total
    assert saved == pytest.approx(0.75 * step.sum("optimizer"), rel=0.01)
    assert fsdp.total < zero1.total


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("80GB", 80 * 10**9), ("1.5 GiB", 3 * GIB // 2), ("512MiB", GIB // 2), ("h100", 79 * GIB)],
)
def test_sizes_of_gpus(text: str, size: int) -> None:
    assert parse_gpu(text) == size


@pytest.mark.parametrize("text", ["24", "GiB", "-3GiB", "0GB", "24 parsecs", "H1000"])
def test_other_texts_than_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"24GiB.*H100"):
        parse_gpu(text)


def test_the_cheapest_plan_that_fits_fits_when_read_from_its_arguments() -> None:
    training = read_training(SMALL)
    estimates = Estimates(training, "cuda")
    total = estimates[training.plan].total
    for share in (1.0, 0.7, 0.5):
        cheapest = find_cheapest(estimates, training, int(share * total))
        assert cheapest is not None
        assert cheapest.total <= share * total
        assert (cheapest.plan == training.plan) == (share == 1.0)
        arguments = [part for _, text in list_changes(cheapest.plan, training) for part in text.split()]
        again = read_training([*SMALL, *arguments])
        assert Estimates(again, "cuda")[again.plan].total == cheapest.total
        assert again.plan.batch_size * again.plan.accumulate_grad_batches == 16
    assert find_cheapest(estimates, training, 2**20) is None


@pytest.mark.slow
def test_8bit_optimizer_states() -> None:
    """Two moments of a byte and, of 256 values each, a scale in float32; the tables of values are one for all."""
    training = read_training(SMALL)
    estimates = Estimates(training, "cuda")
    plan = replace(training.plan, eight_bit_states=True)
    assert plan in [*memory_saving_plans(training), *candidates(training)]
    ((_, arguments),) = list_changes(plan, training)
    for precision in ("32-true", "bf16-true"):
        estimate = estimates[replace(plan, precision=precision)]
        expected = 2 * (1 + 4 / 256) * estimate.step.sum("weights")
        assert estimate.step.sum("optimizer") == pytest.approx(expected, rel=0.05)
        again = read_training([*SMALL, *arguments.split(), f"--trainer.precision={precision}"])
        assert Estimates(again, "cuda")[again.plan].total == estimate.total
        assert not any(other.eight_bit_states for other in [*memory_saving_plans(again), *candidates(again)])


def test_plans_have_a_lower_bound_by_which_they_are_skipped() -> None:
    training = read_training([*SMALL, "--trainer.devices=2"])
    estimates = Estimates(training, "cuda")
    base = estimates[training.plan]
    for sharding, eight_bit_states in (
        ("none", False),
        ("optimizer", False),
        ("full", False),
        ("none", True),
        ("optimizer", True),
    ):
        plan = replace(training.plan, sharding=sharding, eight_bit_states=eight_bit_states)
        assert 0 < least_bytes(base, plan, training.processes) < estimates[plan].total
    half = replace(training.plan, precision="bf16-true")
    assert least_bytes(base, half, 2) == least_bytes(base, training.plan, 2) // 2


@pytest.mark.slow
def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "memory.json"
    assert main(["memory", *SMALL, "--gpu", "24GiB", "--json", str(file), "--num_classes", "5"]) == 0
    printed, errors = capsys.readouterr()
    for words in ("patches", "stage 3", "head, loss", "parameters", "activations", "fits:"):
        assert words in printed
    assert "    --model.backbone.init_args.checkpoint_stages true" in printed.splitlines()
    assert "    --data.batch_size 8 --trainer.accumulate_grad_batches 2" in printed.splitlines()
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80
    assert errors.startswith("Estimating the memory of a training step")
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["fits"] is True
    assert record["gpu"]["available"] == available_bytes(24 * GIB) < 24 * GIB
    parts = sum(part["total"] for part in record["parts"])
    others = sum(record[name] for name in ("buffers", "temporary", "ema_copy", "ddp_buckets"))
    assert record["peak"] == parts + others
    assert record["plans"][0]["bytes"] == record["peak"]


@pytest.mark.slow
def test_a_training_that_does_not_fit_is_reported_with_a_plan_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *SMALL, "--data.batch_size=256", "--gpu=1GiB"]) == 0
    printed = capsys.readouterr().out
    assert "does not fit" in printed
    _, _, cheapest = printed.partition("cheapest that fits: ")
    copied = cheapest.partition("\n")[2].replace("\\\n", " ").split()  # as a shell joins lines
    assert copied[0] == "--data.batch_size" and all(word.startswith("--") for word in copied[::2])
    assert max(map(len, printed.splitlines())) <= 80

    assert main(["memory", *SMALL, "--data.batch_size=256", "--gpu=1GiB", *copied]) == 0
    assert "\nfits: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "memory needs --config"),
        (["--config=imagnet.yaml"], "Did you mean imagenet.yaml"),
        ([*SMALL, "--gpu=24"], "24GiB"),
        ([*SMALL, "--gpu=700MiB"], "--gpu 700MiB: CUDA and its libraries alone take about 768.0 MiB"),
        ([*SMALL, "--gpu=0.75GiB"], "expected more, such as 8GiB"),
        ([*SMALL, "--num_classes=0"], "num_classes must be at least 1"),
        ([*SMALL, "--processes=0"], "processes must be at least 1"),
        ([*SMALL, "--data.num_workers=-1"], "data.num_workers is -1"),
        (["--config=simmim.yaml", "--data.image_size=100"], "mask_patch_size"),
        (["--config=coco.yaml", "--data.augmentation.max_size=100"], "max_size"),
        ([*SMALL, "--model.backbone.init_args.num_heads=[5,4,8]"], "num_heads"),
    ],
)
def test_mistakes_end_in_one_message(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *arguments]) == 1
    begun, _, printed = capsys.readouterr().err.partition("\n")
    assert begun == "Estimating the memory of a training step …"
    assert printed.startswith("swinv2-tasks: ")
    assert words in printed
    assert "Traceback" not in printed

"""Sharded trainings: the same numbers as on one process, and checkpoints that any number of processes resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.swin_v2 import blocks_on_meta_device
from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.run_checkpoint import newest_intact
from swinv2_tasks.weights import load_weights
from swinv2_tasks.weights.files import find_corruption, read_checkpoint
from tests.helpers import objects, photos, scenes
from tests.helpers.processes import Result, run, run_together
from tests.helpers.runs import read_column
from tests.helpers.tiny import BACKBONE, QUIET, write_config, write_images

FSDP = ["--config=overlays/fsdp.yaml"]
EIGHT_BIT = ["--model.optimizer=bitsandbytes.optim.AdamW8bit"]
SHARDED = [*FSDP, "--trainer.strategy.save_distributed_checkpoint=true"]
ALONE = ["--data.batch_size=12", "--trainer.strategy=auto", "--trainer.devices=1", "--trainer.accelerator=cpu"]
TOLERANCE = 1e-5
"""Of losses and of weights after four steps: what is rounded differently in sums over two processes and over one."""


def together(arguments: list[str], folder: Path, processes: int) -> Result:
    """How the first process of a run ended; it starts alone where it is the only one."""
    return run(arguments, folder) if processes == 1 else run_together(arguments, folder, processes)[0]


def losses(folder: Path, run: str = "0") -> list[float]:
    """The validation loss of each epoch of a training, or that of an evaluation."""
    return read_column(folder / run, "val/loss")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a config, weights to start from, and runs of two epochs of two steps.

    ``plain`` was trained by one process, ``sharded`` by two with full sharding and sharded checkpoints.
    """
    folder = tmp_path_factory.mktemp("world")
    data = write_images(folder / "images", train=8)
    backbone = {"init_args": {"drop_path_rate": 0.0, "checkpoint_stages": [0]}}
    write_config(folder / "tiny.yaml", data, model={"init_args": {"backbone": backbone}})
    begin = ["fit", "--config=tiny.yaml"]
    assert (
        run([*begin, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--name=start"], folder).status == 0
    )
    begin.append("--model.weights=runs/start/0/weights.safetensors")
    for processes, name, settings in ((1, "plain", ALONE), (2, "sharded", SHARDED)):
        process = together([*begin, *settings, f"--name={name}"], folder, processes)
        assert process.status == 0, process.errors
        assert "Warning" not in process.errors
    return folder


@pytest.fixture
def sharded_run(world: Path, tmp_path: Path) -> Path:
    """A copy of the run with sharded checkpoints, to be corrupted, beside the config and the images of the others."""
    shutil.copytree(world / "runs" / "sharded", tmp_path / "runs" / "sharded")
    (tmp_path / "images").symlink_to(world / "images")
    shutil.copy(world / "tiny.yaml", tmp_path)
    return tmp_path / "runs" / "sharded" / "0"


def test_two_fully_sharded_processes_learn_as_one_does(world: Path) -> None:
    plain, sharded = (losses(world / "runs" / name) for name in ("plain", "sharded"))
    assert len(plain) == 2 and plain[1] < plain[0]
    assert sharded == pytest.approx(plain, abs=TOLERANCE)


def resume_losses(world: Path, processes: int, source: str, name: str, *settings: str) -> list[float]:
    """Losses of a run that was resumed from a checkpoint after one of two epochs."""
    checkpoint = f"--ckpt_path=runs/{source}/0/checkpoints/previous.ckpt"
    process = together(["fit", "--config=tiny.yaml", *settings, checkpoint, f"--name={name}"], world, processes)
    assert process.status == 0, process.errors
    return losses(world / "runs" / name)


def test_one_process_resumes_a_sharded_run_of_two(world: Path) -> None:
    resumed_losses = resume_losses(world, 1, "sharded", "sharded_then_one", *ALONE)
    assert resumed_losses == pytest.approx(losses(world / "runs" / "plain")[1:], abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "source", "settings"),
    [
        pytest.param(2, "sharded", FSDP, id="sharded, then one file"),
        pytest.param(2, "sharded", ["--config=overlays/ddp.yaml"], id="sharded, then DDP"),
        pytest.param(2, "sharded", ["--config=overlays/zero1.yaml"], id="sharded, then ZeRO-1"),
        pytest.param(2, "plain", FSDP, id="one process, then two sharded"),
        pytest.param(3, "plain", [*SHARDED, "--data.batch_size=4"], id="one process, then three sharded"),
        pytest.param(1, "sharded", [*SHARDED, *ALONE[:1], *ALONE[2:]], id="shards of two, then a shard of one"),
    ],
)
def test_each_strategy_resumes_another(
    processes: int, source: str, settings: list[str], world: Path, request: pytest.FixtureRequest
) -> None:
    resumed_losses = resume_losses(
        world, processes, source, request.node.callspec.id.replace(", ", "_").replace(" ", "_"), *settings
    )
    assert resumed_losses == pytest.approx(losses(world / "runs" / "plain")[1:], abs=TOLERANCE)


def test_a_sharded_checkpoint_becomes_one_file(world: Path, tmp_path: Path) -> None:
    run_folder = world / "runs" / "sharded" / "0"
    target = tmp_path / "whole.safetensors"
    assert (
        main(["weights", "convert", str(run_folder / "checkpoints/last.ckpt"), str(target), "--format=lightning"]) == 0
    )
    whole = load_file(target)
    assert whole.keys() == load_file(run_folder / "weights.safetensors").keys()
    plain = load_file(world / "runs" / "plain" / "0" / "weights.safetensors")  # of the same epoch, the better one
    assert whole.keys() == plain.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, plain[name], atol=1e-4, rtol=0)
    assert read_checkpoint(target).record["classes"]["ids"] == ["n01", "n02", "n03"]


def test_a_sharded_checkpoint_is_evaluated(world: Path, tmp_path: Path) -> None:
    checkpoint = world / "runs" / "sharded" / "0" / "checkpoints" / "last.ckpt"
    command = [f"--ckpt_path={checkpoint}", f"--data.root={world / 'images'}", "--trainer.accelerator=cpu"]
    command.append(f"--data.class_names={world / 'images' / 'classes.csv'}")
    assert run(["validate", *command, "--name=checked"], tmp_path).status == 0
    evaluated = losses(tmp_path / "runs" / "checked", "validate_0")
    assert evaluated == pytest.approx(losses(world / "runs" / "sharded")[1:], abs=1e-6)
    task = ClassificationTask.load_from_checkpoint(checkpoint)
    assert task.class_names is not None and len(task.class_names) == 3


@pytest.mark.slow
def test_an_evaluation_by_sharded_processes_is_that_of_one(world: Path, tmp_path: Path) -> None:
    """The overlay alone: the checkpoint brings the rest. Batches are 5, 5 and 2 of 12 images."""
    checkpoint = world / "runs" / "plain" / "0" / "checkpoints" / "last.ckpt"
    command = ["validate", f"--ckpt_path={checkpoint}", f"--data.root={world / 'images'}", "--data.batch_size=5"]
    command.append(f"--data.class_names={world / 'images' / 'classes.csv'}")
    for processes, settings in ((1, ["--trainer.accelerator=cpu"]), (2, FSDP)):
        process = together([*command, *settings, f"--name={processes}"], tmp_path, processes)
        assert process.status == 0, process.errors
    alone, shared = (losses(tmp_path / "runs" / processes, "validate_0") for processes in ("1", "2"))
    assert alone == pytest.approx(shared, abs=1e-6)


@pytest.mark.slow
def test_initial_weights_are_the_same_on_any_number_of_processes(world: Path) -> None:
    begin = ["fit", "--config=tiny.yaml", *FSDP, "--trainer.max_epochs=1"]
    for processes, settings in ((1, [*ALONE[:1], *ALONE[2:]]), (2, [])):
        process = together([*begin, *settings, f"--name=drawn_{processes}"], world, processes)
        assert process.status == 0, process.errors
    single, double = (losses(world / "runs" / f"drawn_{processes}") for processes in (1, 2))
    assert single == pytest.approx(double, abs=TOLERANCE)


# ---- ZeRO stage 1


@pytest.mark.slow
def test_sharded_optimizer_states_change_nothing(world: Path) -> None:
    begin = ["fit", "--config=tiny.yaml", "--model.weights=runs/start/0/weights.safetensors"]
    for name in ("ddp", "zero1"):
        process = together([*begin, f"--config=overlays/{name}.yaml", f"--name={name}"], world, 2)
        assert process.status == 0, process.errors
    ddp, zero1 = (read_checkpoint(world / f"runs/{name}/0/checkpoints/last.ckpt").contents for name in ("ddp", "zero1"))
    assert all(torch.equal(tensor, zero1["state_dict"][name]) for name, tensor in ddp["state_dict"].items())
    (before,), (after,) = ddp["optimizer_states"], zero1["optimizer_states"]
    assert before["state"].keys() == after["state"].keys()
    for number, entries in before["state"].items():
        assert all(torch.equal(tensor, after["state"][number][name]) for name, tensor in entries.items())
    resumed_losses = resume_losses(world, 1, "zero1", "zero1_then_one", *ALONE)
    assert resumed_losses == pytest.approx(losses(world / "runs" / "plain")[1:], abs=TOLERANCE)


@pytest.mark.slow
def test_sharded_8_bit_optimizer_states(world: Path) -> None:
    """Their optimizer writes states in a way of its own, which torch's ZeroRedundancyOptimizer does not read."""
    settings = ["--config=overlays/zero1.yaml", *EIGHT_BIT, "--model.optimizer.init_args.min_8bit_size=16"]
    begin = ["fit", "--config=tiny.yaml", "--model.weights=runs/start/0/weights.safetensors", *settings]
    process = together([*begin, "--name=eight_bit"], world, 2)
    assert process.status == 0, process.errors
    straight = losses(world / "runs" / "eight_bit")
    assert straight[1] < straight[0]
    (states,) = read_checkpoint(world / "runs/eight_bit/0/checkpoints/last.ckpt").contents["optimizer_states"]
    assert "torch.uint8" in {str(leaf.dtype) for leaf in tree_leaves(states) if isinstance(leaf, torch.Tensor)}
    assert resume_losses(world, 2, "eight_bit", "eight_bit_resumed", *settings) == straight[1:]


# ---- other tasks and settings


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sharded_segmentation_is_that_of_plain_processes(precision: str, tmp_path: Path) -> None:
    """Batch norm over all processes, an auxiliary head, a frozen stage, accumulated batches."""
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "weight_decay": 0.0}}  # Adam enlarges roundings
    model = {"init_args": {"optimizer": plain, "dropout": 0.0, "backbone": {"init_args": {"frozen_stages": 1}}}}
    scenes.write_config(tmp_path / "scenes.yaml", scenes.write_scenes(tmp_path / "scenes"), model=model)
    begin = ["fit", "--config=scenes.yaml", "--trainer.max_epochs=1", f"--trainer.precision={precision}"]
    assert run([*begin, "--trainer.limit_train_batches=1", "--name=start"], tmp_path).status == 0
    begin += ["--model.weights=runs/start/0/weights.safetensors", "--trainer.accumulate_grad_batches=2"]
    for name in ("ddp", "fsdp"):
        command = [*begin, f"--config=overlays/{name}.yaml", "--data.batch_size=2", f"--name={name}"]
        process = together(command, tmp_path, 2)
        assert process.status == 0, process.errors
    start, ddp, fsdp = (load_file(tmp_path / f"runs/{name}/0/weights.safetensors") for name in ("start", "ddp", "fsdp"))
    assert ddp.keys() == fsdp.keys()
    for name, tensor in ddp.items():
        torch.testing.assert_close(fsdp[name], tensor, atol=1e-5, rtol=1e-4)
    assert not torch.equal(start["head.decoder.pyramid.0.weight"], ddp["head.decoder.pyramid.0.weight"])


@pytest.mark.slow
def test_detectors_are_trained_sharded(tmp_path: Path) -> None:
    """Proposals differ between processes, and so do the losses of the branches; all take one path through the head."""
    objects.write_config(tmp_path / "objects.yaml", objects.write_objects(tmp_path / "objects"))
    begin = ["fit", "--config=objects.yaml", "--data.batch_size=2"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--name=start"]
    assert run([*begin, *short], tmp_path).status == 0
    begin.append("--model.weights=runs/start/0/weights.safetensors")
    for name in ("ddp", "fsdp"):
        process = together([*begin, f"--config=overlays/{name}.yaml", f"--name={name}"], tmp_path, 2)
        assert process.status == 0, process.errors
    ddp, fsdp = (load_file(tmp_path / f"runs/{name}/0/weights.safetensors") for name in ("ddp", "fsdp"))
    for name, tensor in ddp.items():
        torch.testing.assert_close(fsdp[name], tensor, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_sharded_simmim_is_that_of_plain_processes(tmp_path: Path) -> None:
    """The head's mask token goes through the backbone."""
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "weight_decay": 0.0}}  # Adam enlarges roundings
    data = photos.write_photos(tmp_path / "photos")
    photos.write_config(tmp_path / "photos.yaml", data, model={"init_args": {"optimizer": plain}})
    begin = ["fit", "--config=photos.yaml", "--trainer.max_epochs=1"]
    assert run([*begin, "--trainer.limit_train_batches=1", "--name=start"], tmp_path).status == 0
    begin.append("--model.weights=runs/start/0/weights.safetensors")
    for name in ("ddp", "fsdp"):
        process = together(
            [*begin, f"--config=overlays/{name}.yaml", "--data.batch_size=2", f"--name={name}"], tmp_path, 2
        )
        assert process.status == 0, process.errors
    start, ddp, fsdp = (load_file(tmp_path / f"runs/{name}/0/weights.safetensors") for name in ("start", "ddp", "fsdp"))
    for name, tensor in ddp.items():
        torch.testing.assert_close(fsdp[name], tensor, atol=1e-5, rtol=1e-4)
    assert not torch.equal(start["head.mask_token"], ddp["head.mask_token"])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_gives_the_same(algorithm: str, world: Path) -> None:
    """Also with clipping in mixed precision, which Lightning itself refuses."""
    begin = ["fit", "--config=tiny.yaml", "--model.weights=runs/start/0/weights.safetensors", *ALONE]
    begin += ["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=0.01"]
    begin.append(f"--trainer.gradient_clip_algorithm={algorithm}")
    for fused in ("false", "true"):
        settings = [f"--model.optimizer.init_args.fused={fused}", f"--name={algorithm}_{fused}"]
        process = run([*begin, *settings], world)
        assert process.status == 0, process.errors
    plain, fused_losses = (losses(world / "runs" / f"{algorithm}_{fused}") for fused in ("false", "true"))
    assert plain == pytest.approx(fused_losses, abs=1e-3)  # bfloat16 enlarges what is rounded differently
    assert plain != losses(world / "runs" / "plain")


@pytest.mark.slow
def test_a_bad_step_is_skipped_by_all(world: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    write_config(tmp_path / "tiny.yaml", data, data={"class_path": "tests.helpers.faults.NotANumber"})
    command = ["fit", "--config=tiny.yaml", *FSDP, "--data.batch_size=3", "--guard.max_skipped_steps=2"]
    process = together(command, tmp_path, 2)
    assert process.status == 0, process.errors
    summary = json.loads((tmp_path / "runs/tiny/0/summary.json").read_text())
    assert summary["events"]["non-finite step"] == 2 * 2
    weights = load_file(tmp_path / "runs/tiny/0/weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


# ---- what cannot be


def test_a_missing_or_corrupt_shard_is_named(sharded_run: Path) -> None:
    last, previous = (sharded_run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    shard = last / "shard_1_of_2.pt"
    assert find_corruption(last) is None
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "shard_1_of_2.pt" in str(find_corruption(last))
    path, step, messages = newest_intact(sharded_run)
    assert path != last and step > 0 and any("last.ckpt is corrupt" in message for message in messages)
    shard.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt lacks shard_1_of_2\.pt: the checkpoint has 2 shards"):
        read_checkpoint(last)
    (previous / "rest.pt").unlink()
    assert "rest.pt" in str(find_corruption(previous))


def test_shards_of_different_checkpoints_are_not_mixed(sharded_run: Path) -> None:
    last, previous = (sharded_run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    shutil.copy(previous / "shard_0_of_2.pt", last)
    with pytest.raises(UserError, match=r"shard_0_of_2\.pt belongs to another checkpoint"):
        read_checkpoint(last)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(images: Path, tmp_path: Path) -> None:
    """One process cannot write its shard: both end, one of them says why, and nothing half-written stays."""
    write_config(tmp_path / "tiny.yaml", images, trainer={"callbacks": ["tests.helpers.faults.NoRoom"]})
    first, second = run_together(["fit", "--config=tiny.yaml", *SHARDED], tmp_path)
    assert first.status == 1
    message = first.errors.splitlines()[-1]
    assert message.startswith("swinv2-tasks: process 1 cannot write its shard of ") and "MiB are free" in message
    assert "cannot write" not in second.errors and "Traceback" not in first.errors + second.errors
    checkpoints = tmp_path / "runs" / "tiny" / "0" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    path, step, messages = newest_intact(checkpoints.parent)
    assert (path.name, step, messages) == ("last.ckpt", 1, [])


@pytest.mark.slow
def test_a_missing_shard_stops_a_resumed_run_before_it_begins(sharded_run: Path) -> None:
    (sharded_run / "checkpoints/last.ckpt/shard_0_of_2.pt").unlink()
    command = ["fit", "--config=tiny.yaml", *FSDP, "--ckpt_path=runs/sharded/0/checkpoints/last.ckpt"]
    process = together(command, sharded_run.parents[2], 2)
    assert process.status == 1
    assert "lacks shard_0_of_2.pt" in process.errors and "Traceback" not in process.errors
    assert [folder.name for folder in (sharded_run.parents[1]).iterdir()] == ["sharded"]


def test_a_checkpoint_of_another_variant_is_refused(
    sharded_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sharded_run.parents[2])
    command = ["fit", "--config=tiny.yaml", "--ckpt_path=runs/sharded/0/checkpoints/last.ckpt", *ALONE]
    assert main([*command, "--model.backbone.init_args.embed_dim=16"]) == 1
    assert "does not fit the model" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([*FSDP, "--config=overlays/ema.yaml"], "ShardedStrategy cannot average weights"),
        ([*FSDP, "--trainer.precision=16-mixed"], "precision"),
        ([*FSDP, *EIGHT_BIT], "AdamW8bit (model.optimizer) does not support sharded weights"),
        (["--trainer.strategy=fsdp"], "trainer"),
        (
            ['--trainer.strategy={"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}'],
            "overlays/fsdp.yaml",
        ),
    ],
)
def test_what_a_strategy_cannot_do_is_reported(
    settings: list[str], expected: str, images: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", images, trainer={**QUIET, "devices": 1})
    assert main(["fit", "--config=tiny.yaml", *settings, "--trainer.devices=1"]) == 1
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not any((tmp_path / "runs").glob("*/*"))


@pytest.mark.slow
def test_more_processes_than_samples(images: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", images)
    process = together(["fit", "--config=tiny.yaml", *FSDP, "--data.batch_size=10"], tmp_path, 2)
    assert process.status == 1
    assert "only 18 training samples" in process.errors and "Traceback" not in process.errors


def test_loading_weights_fills_blocks_on_the_meta_device(world: Path) -> None:
    with blocks_on_meta_device():
        backbone = SwinTransformerV2(**BACKBONE)
    assert all(parameter.is_meta for parameter in backbone.layers.get_submodule("0.blocks").parameters())
    assert not backbone.patch_embed.proj.weight.is_meta
    load_weights(backbone, world / "runs/start/0/weights.safetensors")
    expected = SwinTransformerV2(**BACKBONE)
    load_weights(expected, world / "runs/start/0/weights.safetensors")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])

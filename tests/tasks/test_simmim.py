"""SimMIM from a folder of images to weights that every other task starts from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from transformers import Swinv2Config, Swinv2ForMaskedImageModeling

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import SimMIMDataModule
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import MaskRCNNConfig, UPerNet
from swinv2_tasks.tasks import ClassificationTask, DetectionTask, SegmentationTask, SimMIMTask, VideoClassificationTask
from swinv2_tasks.training.losses import masked_l1
from swinv2_tasks.weights import load_weights, save_weights
from tests.helpers.checkpoints import CHANNELS, DEPTHS, HEADS, randomize, simmim_state
from tests.helpers.objects import DETECTOR
from tests.helpers.photos import DATA, new_simmim, write_config
from tests.helpers.processes import run
from tests.helpers.runs import from_last, has_no_runs, last_checkpoint, predict, read_column, read_table, user_error
from tests.helpers.tiny import BACKBONE, new_trainer


@pytest.fixture(scope="module")
def photos(dataset: Callable[[str], Path]) -> Path:
    return dataset("simmim")


@pytest.fixture(scope="module")
def pretrained(trained_run: Callable[[str], Path]) -> Path:
    """The folder of a run that learned from the photos; not to be changed."""
    return trained_run("simmim")


# ---- the model


@pytest.mark.parametrize(("image", "window"), [(64, 4), (96, 3)])
def test_loss_and_reconstruction_are_those_of_transformers(image: int, window: int) -> None:
    settings = Swinv2Config(
        image_size=image,
        window_size=window,
        embed_dim=24,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 3, 6],
        encoder_stride=32,
        drop_path_rate=0.0,
    )
    theirs = randomize(Swinv2ForMaskedImageModeling(settings)).eval()
    task = SimMIMTask(SwinTransformerV2(24, (2, 2, 2, 2), (1, 2, 3, 6), window), norm_target_patch_size=0).eval()
    load_weights(task, theirs.state_dict(), window_size=window, image_size=image)
    x = torch.randn(3, 3, image, image, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, image // 16, image // 16, generator=torch.Generator().manual_seed(1)) < 0.6
    tokens = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    ours = task(x, mask)
    loss = masked_l1(ours, task.targets(x), mask)
    output = theirs(x, bool_masked_pos=tokens)
    torch.testing.assert_close(
        ours, output.reconstruction, rtol=1e-4, atol=1e-4 * float(output.reconstruction.detach().std())
    )
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=0)
    grads = [torch.autograd.grad(loss_of_model, parameters)[0] for loss_of_model, parameters in (
        (loss, task.head.mask_token), (output.loss, theirs.swinv2.embeddings.mask_token)
    )]  # fmt: skip
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3 * float(grads[1].abs().max()))


def test_what_is_masked_is_not_seen_and_what_is_not_is_not_in_the_loss() -> None:
    task = randomize(new_simmim(norm_target_patch_size=0)).eval()
    x = torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 3, 0] = True
    other = x.clone()
    other[0, :, 8:16, 16:24] = 5
    other[1, :, 24:, :8] = -5
    torch.testing.assert_close(task(x, mask), task(other, mask), rtol=0, atol=0)
    assert not torch.allclose(task(x), task(other))
    predicted = task(x, mask).detach()
    loss = masked_l1(predicted, x, mask)
    predicted[0, :, :8] += 100
    torch.testing.assert_close(masked_l1(predicted, x, mask), loss, rtol=0, atol=0)


def test_the_mask_token_is_trained_without_weight_decay(photos: Path, tmp_path: Path) -> None:
    task, data = new_simmim(), SimMIMDataModule(str(photos), **DATA)
    trainer = new_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    before = task.head.mask_token.detach().clone()
    trainer.fit(task, data)
    (decays,) = (
        group["weight_decay"] for group in trainer.optimizers[0].param_groups
        if any(parameter is task.head.mask_token for parameter in group["params"])
    )  # fmt: skip
    assert decays == 0
    assert not torch.equal(before, task.head.mask_token)


def test_reconstruction_changes_masked_patches_alone() -> None:
    task = randomize(new_simmim(norm_target_patch_size=9)).train()
    x = torch.randn(2, 3, 32, 32)
    mask = torch.rand(2, 4, 4) < 0.5
    filled, losses = task.reconstruct(x, mask)
    changed = (filled != x).any(1).unflatten(2, (4, 8)).unflatten(1, (4, 8))
    assert torch.equal(changed.any(4).any(2), mask)
    assert task.training and losses.shape == (2,)


# ---- from files to files


def test_each_validation_draws_reconstructions(pretrained: Path) -> None:
    assert len(read_column(pretrained, "val/loss")) == 2
    folder = pretrained / "visualizations"
    assert [path.name for path in sorted(folder.iterdir())] == ["epoch_0005.png", "epoch_0011.png"]
    sheet = np.asarray(Image.open(folder / "epoch_0011.png"))
    assert sheet.shape == (22 + 4 * 132, 3 * 132, 3)  # headings, and a batch of four, enlarged four times
    for k in range(3):
        heading = sheet[:22, k * 132 : k * 132 + 132]
        assert 0.02 < (heading < 128).mean() < 0.3
    rows = [sheet[22:150, k * 132 : k * 132 + 128].astype(int) for k in range(3)]
    assert all(np.array_equal(row, row[::4, ::4].repeat(4, 0).repeat(4, 1)) for row in rows)
    image, masked, filled = (row[::4, ::4] for row in rows)
    hidden = (image != masked).any(2)
    assert hidden.mean() == pytest.approx(10 / 16, abs=0.02)  # 0.6 of 16 patches, rounded up
    assert np.array_equal(image[~hidden], filled[~hidden])


def test_each_image_has_its_loss_in_a_table(pretrained: Path, photos: Path) -> None:
    losses = {row["file"]: float(row["loss"]) for row in read_table(pretrained / "val_images.csv")}
    assert np.mean([*losses.values()]) == pytest.approx(read_column(pretrained, "val/loss")[-1], abs=1e-6)
    task = SimMIMTask.load_from_checkpoint(last_checkpoint(pretrained))
    data = SimMIMDataModule(str(photos), **DATA)
    data.setup("validate")
    expected = {}
    for batch in data.val_dataloader():
        expected |= dict(zip(batch["path"], task.reconstruct(batch["image"], batch["mask"])[1].tolist(), strict=True))
    assert losses == pytest.approx(expected, abs=1e-6) and [*losses] == [*expected]


@pytest.mark.slow
def test_two_processes_write_the_losses_that_one_does(pretrained: Path, tmp_path: Path) -> None:
    tables = []
    for processes in (1, 2):
        name = f"--name=on_{processes}"
        arguments = ["validate", from_last(pretrained), f"--runs={tmp_path}", name, "--data.batch_size=5"]
        assert run(arguments, tmp_path, processes).status == 0
        (table,) = tmp_path.glob(f"on_{processes}/*/val_images.csv")
        tables.append(table.read_text())
    assert tables[0] == tables[1]


def test_predictions_are_a_table_of_losses_and_reconstructions(pretrained: Path, photos: Path, tmp_path: Path) -> None:
    output = predict(tmp_path, from_last(pretrained), f"--data.source={photos / 'val'}")
    rows = read_table(output / "predictions.csv")
    assert len(rows) == 12
    for row in rows:
        assert Image.open(output / row["visualization"]).size == (3 * 132, 22 + 132)
        assert 0 < float(row["loss"]) < 10


# ---- its weights in other tasks


def other_task(task_name: str, numbers: dict[str, Any]) -> LightningModule:
    """A task over a backbone of these numbers, with a window of its own."""
    if task_name == "video":
        return VideoClassificationTask(SwinTransformerV2(**numbers, window_size=(2, 8, 8), patch_size=(2, 4, 4)), 2)
    backbone = SwinTransformerV2(**numbers, window_size=8)
    if task_name == "classification":
        return ClassificationTask(backbone, 3)
    if task_name == "segmentation":
        return SegmentationTask(backbone, 3, decoder=UPerNet(channels=16), auxiliary_channels=8)
    return DetectionTask(backbone, MaskRCNNConfig(**DETECTOR), 3)


@pytest.mark.parametrize("origin", ["own", "official"])
@pytest.mark.parametrize("task_name", ["classification", "segmentation", "detection", "video"])
def test_every_other_task_starts_from_it(task_name: str, origin: str, pretrained: Path, tmp_path: Path) -> None:
    if origin == "own":
        file = pretrained / "checkpoints" / "best.ckpt"
        numbers = {name: value for name, value in BACKBONE.items() if name != "window_size"}
        windows = ((4, 4), (4, 4))
    else:
        file, numbers = tmp_path / "simmim.pth", {"embed_dim": CHANNELS, "depths": DEPTHS, "num_heads": HEADS}
        torch.save({"model": simmim_state((6, 6, 6, 3))}, file)
        windows = ((6, 6), (6, 6), (6, 6), (3, 3))
    task: Any = other_task(task_name, numbers)
    report = load_weights(task, file)
    backbone = SwinTransformerV2(**numbers, window_size=8)
    load_weights(backbone, file)
    assert backbone.pretrained_window_size == windows
    image = torch.randn(1, 3, 64, 64)
    expected = backbone.eval()(image)
    if task_name == "video":
        maps = [own[:, :, 0] for own in task.eval().backbone(image[:, :, None].repeat(1, 1, 4, 1, 1))]
    else:
        maps = task.eval().backbone(image)
    for own, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-4)
    assert task.backbone.window_size[0][-2:] == (8, 8)
    assert {"mask_token", "decoder.0.weight", "decoder.0.bias"} <= set(report.unused)
    assert [name for name in report.randomly_initialized if name.startswith("backbone.")] == []
    assert f"{windows[0][0]}×{windows[0][0]} → 8×8" in str(report) or task_name == "video"


def test_official_files_are_read_and_written_whole(tmp_path: Path) -> None:
    torch.save({"model": simmim_state()}, tmp_path / "simmim.pth")
    task = SimMIMTask(SwinTransformerV2(CHANNELS, DEPTHS, HEADS, 4))
    report = load_weights(task, tmp_path / "simmim.pth")
    assert (report.randomly_initialized, report.unused) == ([], [])
    save_weights(task, tmp_path / "again.pth", format="simmim")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    for name, value in simmim_state().items():
        if "relative_" not in name:
            assert torch.equal(again[name], value), name


# ---- mistakes


def test_a_target_window_or_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"norm_target_patch_size must be 0 or an odd number"):
        new_simmim(norm_target_patch_size=8)
    task = new_simmim()
    for mask, size in (((3, 4), 32), ((16, 16), 32), ((4, 4), 36)):
        with pytest.raises(UserError, match=r"does not fit images of"):
            task(torch.randn(1, 3, size, size), torch.ones(1, *mask, dtype=torch.bool))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--data.image_size=36", ["data.image_size is 36", "Take 32"]),
        ("--data.mask_patch_size=2", ["a mask of (16, 16) patches does not fit"]),
    ],
)
def test_mistakes_in_settings_are_reported(
    argument: str, words: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    message = user_error(capsys, "fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", argument)
    assert [word for word in words if word not in message] == []
    assert has_no_runs(tmp_path / "runs")


def test_unreadable_files_stop_by_name_or_are_left_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    for k, path in enumerate(sorted(root.rglob("*.*"))[:2]):
        path.write_bytes(path.read_bytes()[: 200 * k])
    config = write_config(tmp_path / "photos.yaml", root)
    arguments = ["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]
    assert main(arguments) == 1
    assert "Cannot read the image" in (errors := capsys.readouterr().err) and str(root) in errors
    assert main([*arguments, "--data.faulty_samples=skip", "--trainer.num_sanity_val_steps=0"]) == 0

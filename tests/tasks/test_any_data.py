"""Tasks train, evaluate and predict on anybody's loaders, datamodules, modules and loops: batches are all they need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from swinv2_tasks.batches import TaskData
from swinv2_tasks.callbacks import DetectionScores, SegmentedImages, SimMIMImages
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.optim import CosineSchedule
from tests.helpers.every_task import BUILDERS, CLASSES, EACH_TASK, new_backbone, new_batch, new_images
from tests.helpers.tiny import new_trainer

SCORES = {"classification": "val/top1", "segmentation": "val/miou", "video": "val/top1", "simmim": "val/loss"}
"""What each task logs of an evaluation; detectors box_ap."""


def new_task(name: str) -> BaseTask:
    torch.manual_seed(0)
    return BUILDERS[name]()


def new_loader(name: str, batches: int = 3) -> DataLoader:
    """A plain loader of ready batches, without paths, ids or sizes."""
    return DataLoader([new_batch(name) for _ in range(batches)], batch_size=None)


def evaluation_batch(name: str) -> dict[str, Any]:
    batch = new_batch(name)
    for image_id, target in enumerate(batch.get("targets", []), start=1):
        boxes = target["boxes"]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        target.update(image_id=image_id, area=area, iscrowd=torch.zeros(len(boxes), dtype=torch.int64))
    return batch


def evaluation_loader(name: str, batches: int = 1) -> DataLoader:
    return DataLoader([evaluation_batch(name) for _ in range(batches)], batch_size=None)


def weights_of(task: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def has_learned(task: LightningModule, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize("name", EACH_TASK)
def test_plain_loaders(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, trainer = new_task(name), new_trainer(tmp_path)
    before = weights_of(task)
    trainer.fit(task, new_loader(name), evaluation_loader(name))
    assert has_learned(task, before)
    assert trainer.global_step == 3
    score = SCORES.get(name, "val/box_ap")
    (validated,) = trainer.validate(task, evaluation_loader(name), verbose=False)
    (tested,) = trainer.test(task, evaluation_loader(name), verbose=False)
    assert validated[score] == tested[score.replace("val/", "test/")]
    (predicted,) = trainer.predict(task, evaluation_loader(name))
    assert predicted
    assert "learning rates are taken as stated" in capsys.readouterr().out  # such loaders do not say a batch's size


def test_the_schedule_has_the_length_that_the_trainer_counts(tmp_path: Path) -> None:
    """Two accumulated batches of three, the last step of one, in each of four epochs: eight steps of four samples."""
    samples = [{"image": image, "label": k % CLASSES} for k, image in enumerate(new_images(6))]
    schedule = CosineSchedule(warmup_epochs=0, warmup_lr=0.0, min_lr=0.0, base_batch_size=8)
    task = ClassificationTask(new_backbone(), CLASSES, schedule=schedule)
    rates = []

    def note(*_: Any) -> None:
        rates.append(task.trainer.optimizers[0].param_groups[0]["lr"])

    task.on_before_zero_grad = note  # type: ignore[method-assign]  # called once per step, before the schedule's
    new_trainer(tmp_path, max_epochs=4, accumulate_grad_batches=2).fit(task, DataLoader(samples, batch_size=2))
    peak = 1e-3 * 4 / 8
    expected = [peak * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx(expected)


class PlainData(LightningDataModule):
    """Without class names, counts or anything else that is this package's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def train_dataloader(self) -> DataLoader:
        return new_loader(self.name)

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.name)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


@pytest.mark.parametrize("name", EACH_TASK)
def test_a_plain_datamodule(name: str, tmp_path: Path) -> None:
    task, trainer, data = new_task(name), new_trainer(tmp_path), PlainData(name)
    before = weights_of(task)
    trainer.fit(task, datamodule=data)
    assert has_learned(task, before)
    assert trainer.validate(task, datamodule=data, verbose=False)[0]
    assert trainer.test(task, datamodule=data, verbose=False)[0]
    assert trainer.predict(task, datamodule=data)


class NamedData(PlainData, TaskData):
    """Offers its classes."""

    @property
    def class_ids(self) -> list[int]:
        return [7, 8, 9]

    @property
    def class_names(self) -> list[str]:
        return ["cat", "dog", "cow"]


def test_what_a_datamodule_offers_is_taken(tmp_path: Path) -> None:
    task = new_task("classification")
    new_trainer(tmp_path).fit(task, datamodule=NamedData("classification"))
    assert (task.class_ids, task.class_names) == ([7, 8, 9], ["cat", "dog", "cow"])


@pytest.mark.parametrize("name", EACH_TASK)
def test_a_checkpoint_of_plain_loaders_is_resumed_and_built_again(name: str, tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, "first", save_last=False)
    trainer = new_trainer(tmp_path, saved, max_epochs=1, enable_checkpointing=True)
    task = new_task(name)
    trainer.fit(task, new_loader(name))
    again = new_task(name)
    resumed = new_trainer(tmp_path, max_epochs=2)
    resumed.fit(again, new_loader(name), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert resumed.global_step == 6
    built = type(task).load_from_checkpoint(tmp_path / "first.ckpt")
    assert not has_learned(built, weights_of(task))


class Endless(IterableDataset):
    def __init__(self, name: str) -> None:
        self.name = name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield new_batch(self.name)


@pytest.mark.parametrize("name", EACH_TASK)
def test_an_endless_stream(name: str, tmp_path: Path) -> None:
    task, trainer = new_task(name), new_trainer(tmp_path, max_epochs=-1, max_steps=4)
    before = weights_of(task)
    trainer.fit(task, DataLoader(Endless(name), batch_size=None))
    assert trainer.global_step == 4
    assert has_learned(task, before)


def test_an_endless_stream_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        new_trainer(tmp_path, max_epochs=2).fit(
            new_task("classification"), DataLoader(Endless("classification"), batch_size=None)
        )


def as_list(*loaders: DataLoader) -> list[DataLoader]:
    return list(loaders)


def as_dict(*loaders: DataLoader) -> dict[str, DataLoader]:
    return dict(zip("ab", loaders, strict=True))


@pytest.mark.parametrize("together", [as_list, as_dict])
@pytest.mark.parametrize("name", ["classification", "segmentation", "video", "simmim"])
def test_the_loss_of_several_loaders_is_the_mean_of_theirs(name: str, together: Any, tmp_path: Path) -> None:
    other = new_batch(name)
    other["image" if "image" in other else "clip"].mul_(2)
    alone = [DataLoader([batch], batch_size=None) for batch in (new_batch(name), other)]
    logged = []
    for loaders in (*alone, together(*alone)):
        task, trainer = new_task(name).eval(), new_trainer(tmp_path)  # no path and no feature is dropped
        trainer.fit(task, loaders)
        logged.append(trainer.callback_metrics["train/loss"].item())
    assert logged[2] == pytest.approx((logged[0] + logged[1]) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["mask_rcnn", *EACH_TASK[-2:]])
def test_detectors_learn_from_several_loaders(name: str, tmp_path: Path) -> None:
    task, trainer = new_task(name), new_trainer(tmp_path)
    before = weights_of(task)
    trainer.fit(task, [new_loader(name, 1), new_loader(name, 1)])
    assert has_learned(task, before)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert logged.pop("train/loss") == pytest.approx(sum(logged.values()), rel=1e-5)


@pytest.mark.parametrize("name", ["classification", "segmentation", "video", "simmim", "mask_rcnn"])
def test_several_evaluation_loaders_have_scores_of_their_own(name: str, tmp_path: Path) -> None:
    task, trainer = new_task(name), new_trainer(tmp_path)
    first, second = evaluation_batch(name), evaluation_batch(name)
    if name == "mask_rcnn":
        second["images"] = [image * 2 for image in second["images"]]
    else:
        second["image" if "image" in second else "clip"].mul_(2)
    alone = [
        trainer.validate(task, DataLoader([batch], batch_size=None), verbose=False)[0] for batch in (first, second)
    ]
    loaders = [DataLoader([batch], batch_size=None) for batch in (first, second)]
    logged = {key: value for part in trainer.validate(task, loaders, verbose=False) for key, value in part.items()}
    for key, value in alone[0].items():
        assert logged[key] == pytest.approx(value, nan_ok=True)
    for key, value in alone[1].items():
        assert logged[f"{key}/dataloader_idx_1"] == pytest.approx(value, nan_ok=True)


class OwnOptimizer(ClassificationTask):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    task = OwnOptimizer(new_backbone(), CLASSES)
    before = weights_of(task)
    new_trainer(tmp_path).fit(task, new_loader("classification"))
    assert has_learned(task, before)


class Around(LightningModule):
    """Another module, which has a task as one of its parts."""

    def __init__(self, task: BaseTask) -> None:
        super().__init__()
        self.task = task

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.task.training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.task.validation_step(batch, batch_idx)  # type: ignore[attr-defined]

    def on_validation_epoch_end(self) -> None:
        self.task.on_validation_epoch_end()

    def configure_optimizers(self) -> Any:
        return self.task.configure_optimizers()


@pytest.mark.parametrize("name", EACH_TASK)
def test_inside_another_module(name: str, tmp_path: Path) -> None:
    """Computes what the task computes by itself."""
    logged = []
    for wrapped in (False, True):
        task = new_task(name)
        torch.manual_seed(1)
        module, trainer = Around(task) if wrapped else task, new_trainer(tmp_path)
        trainer.fit(module, new_loader(name), evaluation_loader(name))
        logged.append({key: value.item() for key, value in trainer.callback_metrics.items()})
    assert logged[0].keys() == logged[1].keys()
    for key, value in logged[0].items():
        assert logged[1][key] == pytest.approx(value, nan_ok=True), key


@pytest.mark.parametrize("name", EACH_TASK)
def test_in_a_bare_loop(name: str) -> None:
    task = new_task(name)
    before = weights_of(task)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    task.train()
    for _ in range(2):
        loss = task.compute_losses(new_batch(name))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert has_learned(task, before)
    task.eval()
    with torch.no_grad():
        assert task.predict_step(evaluation_batch(name), 0)


@pytest.mark.parametrize(
    ("name", "new_callback"),
    [("segmentation", SegmentedImages), ("simmim", SimMIMImages), ("mask_rcnn", DetectionScores)],
    ids=["segmentation", "simmim", "mask_rcnn"],
)
def test_of_batches_without_names_nothing_is_written_of_single_images(
    name: str, new_callback: type[Any], tmp_path: Path
) -> None:
    trainer = new_trainer(tmp_path, new_callback(tmp_path / "run"))
    (scores,) = trainer.validate(new_task(name), evaluation_loader(name, 2), verbose=False)
    assert SCORES.get(name, "val/box_ap") in scores
    written = {path.name for path in (tmp_path / "run").glob("*")}
    assert not written & {"val_images.csv", "val_truth.json", "val_worst"}
    assert ("val_classes.json" in written) == (name == "mask_rcnn")
    assert ("val_boundary.json" in written) == (name == "segmentation")

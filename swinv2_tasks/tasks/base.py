"""What the tasks share: weights, optimizer and schedule, and checkpoints that say how to build the task again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2, load_weights
from swinv2_tasks.backbone.checkpoint_files import read_checkpoint
from swinv2_tasks.backbone.weights import checkpoint_record, unfit_keys
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import UserError
from swinv2_tasks.optim import CosineSchedule, build_optimizer
from swinv2_tasks.records import Recorded, recorded_arguments, task_record


class BaseTask(Recorded, LightningModule):
    """A backbone and a head, trained with AdamW and a cosine schedule; subclasses add steps and metrics.

    Args:
        backbone: turns pixels into feature maps.
        head: turns feature maps into predictions.
        weights: checkpoint to start from, in any format of ``load_weights``; for going on with a run or for evaluating
            one, its ``ckpt_path`` is the way.
        optimizer: builds the optimizer from parameter groups; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
    """

    def __init__(
        self,
        backbone: SwinTransformerV2,
        head: nn.Module,
        weights: str | None,
        optimizer: OptimizerCallable,
        schedule: CosineSchedule,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.optimizer, self.schedule = optimizer, schedule
        self.class_ids: list[Any] | None = None
        self.class_names: list[str] | None = None
        self.input_size: tuple[int, ...] | None = None
        self.run_name = "run"
        if weights is not None:
            report = load_weights(self, weights)
            rank_zero_only(print)(f"{report}\n")

    def forward(self, x: Tensor) -> Any:
        """Plain inference: what the head makes of the maps of normalised images or clips."""
        return self.head(self.backbone(x))

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and stage != "predict":
            self._meet_classes(list(data.class_ids), list(data.class_names), "the data")

    def _meet_classes(self, ids: list[Any], names: list[str], whose: str) -> None:
        """Takes over the classes of the data or of a checkpoint, or stops when they are not the ones known already."""
        if self.class_ids is not None and self.class_ids != ids:
            other = "the model" if whose == "the data" else "the data"
            raise UserError(
                f"{whose} has {len(ids)} classes ({abbreviate(ids)}), {other} {len(self.class_ids)} "
                f"({abbreviate(self.class_ids)}). State the trained ones with data.class_names, or train a new head "
                "with model.weights."
            )
        self.class_ids, self.class_names = ids, names

    def configure_optimizers(self) -> Any:
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError("fit needs a datamodule: the schedule's length follows from its size and the batch size")
        # Lightning's own estimate would build the training loader too early and so lose the state of a resumed one.
        batches, limit = data.train_batches(trainer.world_size), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        epoch_steps = math.ceil(batches / trainer.accumulate_grad_batches)
        ends = [epochs * epoch_steps for epochs in (trainer.max_epochs,) if epochs not in (None, -1)]
        ends += [steps for steps in (trainer.max_steps,) if steps != -1]
        if not ends:
            raise UserError("trainer.max_epochs or trainer.max_steps must say when the training ends")
        samples = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        optimizer, scheduler = build_optimizer(
            self.optimizer,
            self.named_parameters(),
            self.backbone.depths,
            self.schedule,
            samples,
            epoch_steps,
            min(ends),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.input_size = tuple(batch["image"].shape[2:])  # the checkpoint's windows are those in effect at it

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self._trainer, "datamodule", None) if self._trainer else None
        checkpoint["swinv2_tasks"] = {
            **checkpoint_record(self.backbone, self.input_size),
            "name": self.run_name,
            "task": {"class": type(self).__name__, "init_args": {**self.init_args, "weights": None}},
            "backbone": self.backbone.config,
            "classes": {"ids": self.class_ids, "names": self.class_names},
            "data": {"class": type(data).__name__, "init_args": getattr(data, "init_args", {})} if data else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        record = task_record(checkpoint, "the checkpoint")
        if record["classes"]["ids"] is not None:
            self._meet_classes(record["classes"]["ids"], record["classes"]["names"], "the checkpoint")
        problems = unfit_keys(checkpoint["state_dict"], self.state_dict())
        if problems:
            raise UserError(
                f"the checkpoint does not fit the model, which must be built as it was: {'; '.join(problems)}"
            )
        self.backbone.set_pretrained_window(record["windows"]["pretrained"])

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any) -> Self:  # type: ignore[override]
        """The trained task of a checkpoint, in eval mode; nothing that the file names is imported or run.

        Args:
            checkpoint_path: a checkpoint of a run.
            map_location: device to put the task on.
            **overrides: constructor arguments that replace the recorded ones, ``backbone`` among them.

        Raises:
            UserError: when the file is no checkpoint of this task.
        """
        contents = read_checkpoint(checkpoint_path).contents
        record = task_record(contents, str(checkpoint_path))
        if record["task"]["class"] != cls.__name__:
            raise UserError(f"{checkpoint_path} holds a {record['task']['class']}, not a {cls.__name__}")
        arguments = recorded_arguments(cls, record["task"]["init_args"], str(checkpoint_path))
        arguments |= {"weights": None, **overrides}
        arguments.setdefault("backbone", SwinTransformerV2.from_config(record["backbone"]))
        task = cls(**arguments)
        task.on_load_checkpoint(dict(contents))
        task.load_state_dict(contents["state_dict"])
        return task.to(map_location).eval()

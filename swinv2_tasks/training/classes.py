"""What model and data must agree on: classes, taken over from the data or a checkpoint, and channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.batches import TaskData, task_data
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.class_losses import WeightedLoss
from swinv2_tasks.text import say
from swinv2_tasks.training.class_weights import ClassWeights, check_setting, describe, resolve
from swinv2_tasks.weights import LoadReport
from swinv2_tasks.weights.formats import some


def check_channels(task: Any, data: TaskData) -> None:
    """Makes sure that a task's backbone takes the images of the data, where these say how many channels they have.

    Raises:
        UserError: it takes images of other channels.
    """
    expected = getattr(getattr(task, "backbone", None), "in_channels", None)
    channels = data.image_channels
    if None not in (expected, channels) and expected != channels:
        raise UserError(
            f"model.backbone.in_channels is {expected}, but the data's images have {channels} channels: set "
            f"data.channels to {expected} where the images have as many; else start a training with in_channels "
            f"{channels}, to which model.weights of RGB are adapted"
        )


class ClassAwareTask(LightningModule):
    """Knows the ids and names of its classes, and stops where the data or a checkpoint have others."""

    num_classes: int | None = None
    """Number of classes; None for a task without classes."""

    compare_class_names = False
    """Whether classes of the same ids and other names are other classes: where ids merely count, in every dataset."""

    ids_are_the_datasets = False
    """Whether classes are told by their names: ids are numbers that each dataset gives them."""

    has_background = False
    """Whether losses have a class of the background before all others."""

    def __init__(self) -> None:
        super().__init__()
        self.class_weights: ClassWeights | None = None
        """As stated; ``weigh_classes`` says what the numbers are."""
        self.class_weight_numbers: list[float] | None = None
        """Of each class; None where all count alike, or it is not known yet."""
        self._weighted_losses: list[WeightedLoss] = []
        self.class_ids: list[Any] | None = None
        self.class_names: list[str] | None = None
        self._head_source: str | None = None
        """The file that the head's weights were loaded from."""
        self.fresh_head: str | None = None
        """Why the head is randomly initialized, though weights were loaded; None where it is not."""

    def note_head_source(self, report: LoadReport) -> None:
        """Remembers where the head's weights came from, if they were loaded as a whole, or that they were not."""
        # An auxiliary head is for training alone.
        fresh = [name for name in report.randomly_initialized if name.startswith("head.") and "auxiliary" not in name]
        if fresh:
            is_said = "randomly initialized" in report.head
            reason = report.head if is_said else f"randomly initialized in {len(fresh)} tensors: {some(fresh)}"
            self.fresh_head = f"{reason} ({report.source})"
        elif report.head.startswith("loaded"):
            self._head_source = report.source

    def setup(self, stage: str) -> None:
        """Takes over the classes of the data.

        Raises:
            UserError: they are not those of the checkpoint, or not as many as ``num_classes``; or the images have
                another number of channels than the backbone.
        """
        super().setup(stage)
        data = task_data(self.trainer)
        check_channels(self, data)
        if stage != "predict" and data.class_ids is not None:  # to predict, the data need not know its classes
            ids = list(data.class_ids)
            self.set_classes(ids, list(data.class_names or map(str, ids)), "the data")
            self._report_order_of_numbers()
        if self.class_ids is not None and self.num_classes not in (None, len(self.class_ids)):
            raise UserError(f"the data has {len(self.class_ids)} classes, model.num_classes is {self.num_classes}")

    # ---- class weights

    def weigh_classes_in(self, losses: Sequence[WeightedLoss], setting: ClassWeights | None) -> None:
        """Lets losses weigh classes as a setting says; called as a task is built.

        Raises:
            UserError: it does not fit the number of classes.
        """
        check_setting(setting, self.num_classes or 0)
        self.class_weights, self._weighted_losses = setting, [*losses]
        if isinstance(setting, list):
            self.set_class_weights(setting)
        elif setting is not None:
            for loss in losses:
                loss.expect_class_weights()

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """States the weight of each class, in the order of the class indices; None: all are 1.

        A trainer's data say it by themselves; a training loop of one's own calls this where ``class_weights`` names
        classes or goes by their numbers.

        Raises:
            UserError: they are not as many as classes, or no numbers that weigh.
        """
        numbers = None if weights is None else [float(weight) for weight in weights]
        check_setting(numbers, self.num_classes or 0)
        self.class_weight_numbers = numbers
        for loss in self._weighted_losses:
            loss.set_class_weights(numbers and [1.0] * self.has_background + numbers)

    def weigh_classes(self, every_class_counts: bool = False) -> None:
        """Takes over from the data what ``class_weights`` comes to, which is said; called as a training is set up.

        Args:
            every_class_counts: whether each sample has a loss for each class.

        Raises:
            UserError: a class is named that is none, or the data do not say how often they show each.
        """
        setting, data = self.class_weights, task_data(self.trainer)
        if setting is None:
            return
        names = self.class_names or [str(index) for index in range(self.num_classes or 0)]
        weights = resolve(setting, self.class_ids or names, names, data.class_counts, every_class_counts)
        self.set_class_weights(weights)
        line = describe(setting, weights, names, data.class_counts, self.has_background)
        if isinstance(setting, str) and data.is_sampled_by_class:
            line += ". data.sampling repeats rare classes already, which such weights do not take into account"
        rank_zero_only(say)(line)

    # ---- classes

    def set_classes(self, ids: list[Any], names: list[str], whose: str) -> None:
        """Takes over the classes of the data or of a checkpoint.

        Args:
            ids: of the classes, in the order of the class indices.
            names: of the classes, in the same order.
            whose: what a message is to call their origin: "the data" or "the checkpoint".

        Raises:
            UserError: they are not the ones known already.
        """
        other = "the model" if whose == "the data" else "the data"
        if self.ids_are_the_datasets and self.class_ids is not None and self.class_names is not None:
            ids = self._by_name(ids, names, whose, other)
        if self.class_ids is not None and self.class_ids != ids:
            if self.compare_class_names and self.class_names == names:
                raise UserError(
                    f"label maps hold other values for the same classes: those of {whose} {abbreviate(ids)}, those of "
                    f"{other} {abbreviate(self.class_ids)}. Leave data.background, data.label_values and data.palette "
                    "as they were in training, or start from the weights with model.weights."
                )
            raise UserError(
                f"{whose} has {len(ids)} classes ({abbreviate(ids)}), {other} {len(self.class_ids)} "
                f"({abbreviate(self.class_ids)}). State the trained ones with data.class_names, or train a new head "
                "with model.weights."
            )

        if self.compare_class_names and self.class_names is not None and self.class_names != names:
            k = next(k for k, name in enumerate(self.class_names) if name != names[k])
            raise UserError(
                f"{whose} has other classes than {other}: {ids[k]} is {names[k]!r}, not {self.class_names[k]!r}. "
                f"{whose}: {abbreviate(names)}; {other}: {abbreviate(self.class_names)}. "
                "Take the dataset of these classes, or train a new head with model.weights."
            )
        self.class_ids, self.class_names = ids, names

    def _by_name(self, ids: list[Any], names: list[str], whose: str, other: str) -> list[Any]:
        """The ids to take where classes have the known names, which may have other ids.

        Raises:
            UserError: they have them in another order.
        """
        known_ids, known_names = self.class_ids or [], self.class_names or []
        if names == known_names and ids != known_ids:
            rank_zero_only(say)(
                f"{whose} has the classes of {other} by their names; their ids are {abbreviate(ids)}, in {other} "
                f"{abbreviate(known_ids)}"
            )
            self.class_ids = ids if whose == "the data" else known_ids
            return self.class_ids
        if names != known_names and sorted(names) == sorted(known_names):
            trained = known_names if whose == "the data" else names
            raise UserError(
                f"{whose} has the classes of {other} in another order. Name that of the training: "
                f"--data.class_names '{json.dumps(trained, ensure_ascii=False)}'"
            )
        return ids

    def _report_order_of_numbers(self) -> None:
        """Prints which class each row of a head from a file is taken for, where classes are called by numbers.

        Nothing else would show it: folders 0, 1, … 10 are sorted as text by other programs.
        """
        class_ids = self.class_ids or []
        numbers = [class_id for class_id in class_ids if isinstance(class_id, str) and class_id.isdecimal()]
        if self._head_source is None or len(numbers) < max(1, len(class_ids)):
            return
        message = (
            f"head: the rows of {self._head_source} are taken in this order of the classes: {abbreviate(numbers)}."
        )
        if sorted(numbers) != numbers:
            message += (
                f" Heads trained on folders that are sorted as text, as torchvision's ImageFolder does, have another: "
                f"{abbreviate(sorted(numbers))}; for such a head, state data.class_names in its order."
            )
        rank_zero_only(say)(message)

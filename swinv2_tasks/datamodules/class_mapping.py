"""Classes as `data.class_mapping` changes them: selected, renamed, merged and dropped, whatever the dataset's layout.

A mapping is applied to what a datamodule's source has read: labels on disk stay those of the dataset's own classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import abbreviate, find_class
from swinv2_tasks.datamodules.readers.image_lists import Sample
from swinv2_tasks.datamodules.readers.packed_samples import relabel
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

ClassMapping = dict[str, str | None]
"""What becomes of classes, by their names or their ids as text: another name, or None to drop them."""

EVERY_OTHER = "*"
"""The key that stands for all classes that no other key names."""

BACKGROUNDS = frozenset({"background", "_background_", "__background__"})
"""What the class of everything else is called, in lower case: others may become it though no key names it."""

SETTING = "data.class_mapping"

Id = TypeVar("Id", int, str)


@dataclass(frozen=True)
class MappedClasses(Generic[Id]):
    """The classes that a mapping leaves.

    Attributes:
        ids: Of each class that is left, the id of the first of the dataset's classes that became it.
        names: Its name.
        index_of: Of each of the dataset's classes, the index of what it became; None where it is dropped.
        resolved: The same mapping with ids alone as keys, but for `*`.
    """

    ids: list[Id]
    names: list[str]
    index_of: list[int | None]
    resolved: ClassMapping

    @property
    def table(self) -> np.ndarray:
        """`index_of` as int64 (classes,), with -1 where a class is dropped."""
        return np.array([-1 if index is None else index for index in self.index_of], dtype=np.int64)

    def map_label(self, label: int | list[int]) -> int | list[int] | None:
        """What a label became: a class index, or of several those that are left, each once; None if it is dropped."""
        if isinstance(label, int):
            return self.index_of[label]
        indices = {self.index_of[index] for index in label}
        return sorted(index for index in indices if index is not None)

    def map_samples(self, samples: Sequence[Sample], what: str) -> Sequence[Sample]:
        """Samples with what their labels became, without those of dropped classes; how many these are is said.

        Args:
            samples: Paths and labels.
            what: What they are, for messages, as `training images`.

        Raises:
            UserError: None is left.
        """
        kept = relabel(samples, self.map_label)
        if samples and not kept:
            raise UserError(f"data.class_mapping leaves none of {len(samples)} {what}: all are of dropped classes.")
        if dropped := len(samples) - len(kept):
            rank_zero_only(say)(
                f"data.class_mapping: {dropped} of {len(samples)} {what} are of dropped classes and left out"
            )
        return kept


def map_classes(ids: Sequence[Id], names: Sequence[str], mapping: Mapping[str, str | None]) -> MappedClasses[Id]:
    """What a mapping makes of a dataset's classes.

    Classes that are given one name become one. Each class that is left stands where the first of the dataset's classes
    that became it stood.

    Args:
        ids: Of the dataset's classes, in their order.
        names: Their names.
        mapping: The class that each key becomes. A key is a name or, where no class is called so, an id; `*` stands for
            all classes without a key.

    Raises:
        UserError: A key means no class or several; a new name is empty, or that of a class that no key names; or
            nothing is left.
    """
    keys = {
        index: key for key in mapping if key != EVERY_OTHER for index in [find_class(key, ids, names, mapping, SETTING)]
    }
    targets = [mapping[keys[index]] if index in keys else mapping.get(EVERY_OTHER) for index in range(len(ids))]
    is_mapped = [index in keys or EVERY_OTHER in mapping for index in range(len(ids))]
    _check_targets(names, targets, is_mapped)

    given = {target for target in targets if target is not None}
    index_of: list[int | None] = []
    first: list[int] = []
    new_names: list[str] = []
    called: dict[str, int] = {}
    for index, (name, target) in enumerate(zip(names, targets, strict=True)):
        new_name = target if is_mapped[index] else name
        # A class that no key names stays what it is, also where the dataset has two of one name, unless others become
        # it, as background.
        shares_name = is_mapped[index] or name in given
        if new_name is None:
            index_of.append(None)
        elif shares_name and new_name in called:
            index_of.append(called[new_name])
        else:
            if shares_name:
                called[new_name] = len(first)
            index_of.append(len(first))
            first.append(index)
            new_names.append(new_name)
    if not first:
        raise UserError(f"data.class_mapping drops all {len(ids)} classes; name those that are to be kept.")

    resolved = {str(ids[index]): mapping[key] for index, key in keys.items()}
    resolved |= {EVERY_OTHER: mapping[EVERY_OTHER]} if EVERY_OTHER in mapping else {}
    return MappedClasses([ids[index] for index in first], new_names, index_of, resolved)


def is_background(name: str) -> bool:
    """Whether a class is called as that of everything else is."""
    return name.strip().lower() in BACKGROUNDS


def _check_targets(names: Sequence[str], targets: Sequence[str | None], is_mapped: Sequence[bool]) -> None:
    """Refuses new names that are none, or that another class has of which nothing is said."""
    given = {target for target in targets if target is not None}
    if any(not target.strip() or target == EVERY_OTHER for target in given):
        raise UserError("data.class_mapping gives a class no name: write null to drop it.")
    for name, mapped in zip(names, is_mapped, strict=True):
        if not mapped and name in given and not is_background(name):
            shown = printable(name)
            raise UserError(
                f"data.class_mapping calls a class {shown}, which another class is called already. To merge them, add "
                f"`{shown}: {shown}`; to keep them apart, give another name."
            )


def describe_mapping(names: Sequence[str], mapped: MappedClasses[Id]) -> str:
    """What a mapping makes of a dataset's classes, in a line.

    Args:
        names: Of the dataset's classes.
        mapped: What became of them.
    """
    changed = []
    for index, name in enumerate(mapped.names):
        sources = [names[k] for k, new in enumerate(mapped.index_of) if new == index]
        if sources != [name]:
            changed.append(f"{name} ({', '.join(sources[:6])}{', …' * (len(sources) > 6)})")
    dropped = [name for name, new in zip(names, mapped.index_of, strict=True) if new is None]
    line = f"data.class_mapping: {len(names)} classes become {len(mapped.names)}, {abbreviate(mapped.names)}"
    if changed:
        line += f"; renamed or merged: {abbreviate(changed)}"
    if dropped:
        line += f"; dropped: {abbreviate(dropped)}"
    return line

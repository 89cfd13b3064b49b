"""The remedy that a message names for missing files works: it allows as many as are known to be missing then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule, KineticsDataModule
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.loader import FaultPolicy
from swinv2_tasks.errors import UserError
from tests.helpers import motions, objects, scenes


def scenes_with_missing(root: Path, missing: int) -> Callable[..., BaseDataModule]:
    scenes.write_scenes(root)
    for path in sorted((root / "annotations" / "training").iterdir())[:missing]:
        path.unlink()
    fixed: dict[str, Any] = {**scenes.DATA, "class_names": str(root / "names.txt"), "background": "ignore"}
    return lambda **settings: ADE20KDataModule(str(root), **{**fixed, **settings})


def objects_with_missing(root: Path, missing: int) -> Callable[..., BaseDataModule]:
    objects.write_objects(root)
    for path in sorted((root / "train2017").iterdir())[:missing]:
        path.unlink()
    return lambda **settings: CocoDataModule(str(root), **{**objects.DATA, **settings})


def motions_with_missing(root: Path, missing: int) -> Callable[..., BaseDataModule]:
    motions.write_motions(root, train=6)
    for path in sorted((root / "train").iterdir())[:missing]:
        path.unlink()
    return lambda **settings: KineticsDataModule(str(root), **{**motions.DATA, **settings})


MISSING = [scenes_with_missing, objects_with_missing, motions_with_missing]


def message_of(data: BaseDataModule) -> str:
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    return str(caught.value)


@pytest.mark.parametrize("write", MISSING)
def test_more_missing_files_than_the_budget_name_a_budget_that_is_enough(
    write: Callable[[Path, int], Callable[..., BaseDataModule]], tmp_path: Path
) -> None:
    new_data = write(tmp_path, 3)
    assert "leave such samples out: data.faulty_samples=skip." in message_of(new_data())
    both = "leave such samples out: data.faulty_samples=skip and data.faulty_budget=3."
    assert both in message_of(new_data(faulty_budget=2))
    raised = "leave such samples out: data.faulty_budget=3."
    assert raised in message_of(new_data(faulty_samples="skip", faulty_budget=2))

    data = new_data(faulty_samples="skip", faulty_budget=3)
    data.setup("fit")
    assert list(data.train_dataloader()) and len(data.faults.skipped) <= 3


def test_one_file_names_a_budget_only_where_none_is_allowed() -> None:
    assert FaultPolicy("error", 10).remedy(1) == "leave such samples out: data.faulty_samples=skip"
    assert FaultPolicy("error", None).remedy(1000) == "leave such samples out: data.faulty_samples=skip"
    assert FaultPolicy("error", 0).remedy(1).endswith("data.faulty_samples=skip and data.faulty_budget=1")

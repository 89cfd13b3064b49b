"""What the package offers by name, and that it costs nothing until it is asked for."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import swinv2_tasks
from swinv2_tasks import backbone
from swinv2_tasks.backbone import SwinTransformerV2


def test_names_are_what_their_modules_hold() -> None:
    for name in swinv2_tasks.__all__:
        value = getattr(swinv2_tasks, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
    assert set(swinv2_tasks.__all__) <= set(dir(swinv2_tasks))


def test_every_task_datamodule_and_size_is_among_them() -> None:
    for module, ending in (("tasks", "Task"), ("datamodules", "DataModule")):
        public = importlib.import_module(f"swinv2_tasks.{module}").__all__
        assert {name for name in public if name.endswith(ending)} <= set(swinv2_tasks.__all__)
    assert {name for name in backbone.__all__ if name.startswith("swinv2_")} <= set(swinv2_tasks.__all__)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'swinv2_enormous'"):
        _ = swinv2_tasks.swinv2_enormous  # type: ignore[attr-defined]


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    has_torch = "print('torch' in sys.modules)"
    program = f"import sys, swinv2_tasks; {has_torch}; swinv2_tasks.swinv2_tiny; {has_torch}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_type_checkers_are_reported_that_there_are_types() -> None:
    assert (Path(swinv2_tasks.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge", "giant"])
def test_sizes_take_every_other_setting_of_the_backbone(size: str) -> None:
    fixed = {"embed_dim", "depths", "num_heads"}
    expected = {name: p for name, p in inspect.signature(SwinTransformerV2).parameters.items() if name not in fixed}
    factory = inspect.signature(getattr(swinv2_tasks, f"swinv2_{size}")).parameters
    assert factory.keys() == expected.keys()
    for name, parameter in factory.items():
        assert parameter.annotation == expected[name].annotation
        assert parameter.kind == expected[name].kind
        if name != "extra_norm_every":
            assert parameter.default == expected[name].default


@pytest.mark.parametrize("name", ["ClassificationTask", "ImageNetDataModule"])
def test_signatures_are_those_of_constructors(name: str) -> None:
    """For help texts, editors and the reference; what is recorded of the arguments goes through ``__new__``."""
    cls = getattr(swinv2_tasks, name)
    constructor = inspect.signature(cls.__init__).parameters
    assert [*inspect.signature(cls).parameters.items()] == [*constructor.items()][1:]


def test_sizes_hand_their_settings_on() -> None:
    settings = {"window_size": 4, "patch_size": 2, "in_channels": 5, "mlp_ratio": 2.0, "drop_path_rate": 0.3}
    settings |= {"position_bias": backbone.BiasTable, "extra_norm_every": 1, "checkpoint_stages": [0]}
    settings |= {"attention_chunk_size": 3, "frozen_stages": 1, "pretrained_window_size": 3}
    built = swinv2_tasks.swinv2_tiny(**settings)
    direct = SwinTransformerV2(96, (2, 2, 6, 2), (3, 6, 12, 24), **settings)
    assert built.config == direct.config

"""Imports between modules of the package point only upwards in one list: no module knows who uses it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import swinv2_tasks

PACKAGE = "swinv2_tasks"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("",),  # the package itself: its version, and names that are imported when they are asked for
    ("text",),
    ("errors",),
    ("failures", "drawing", "files", "outside_files", "pages", "progress", "stopping", "tables"),
    ("python_internals", "torch_internals"),
    ("seeding", "child_processes"),
    ("batches", "records"),
    ("hyperparameters",),
    ("backbone.window", "backbone.plain_modules", "backbone.cpu_attention"),
    ("backbone.position_bias",),
    ("backbone.attention",),
    ("backbone.swin_v2",),
    ("backbone.variants",),
    ("backbone",),
    ("weights",),
    ("heads.torchvision_internals",),
    ("heads",),
    ("inference",),
    ("evaluation",),
    ("datamodules",),
    ("training.lightning_internals",),
    ("training",),
    ("callbacks",),
    ("tasks",),
    ("sample_data",),
    ("cli", "cli.config_files", "cli.configs"),
    ("cli.arguments",),
    ("cli.allowed",),
    ("cli.settings", "cli.help", "cli.refusals"),
    ("cli.parser", "cli.released", "cli.trainer_settings"),
    ("cli.tasks_cli",),
    ("commands",),
    ("cli.main",),
    ("__main__",),
)
"""A module may import from layers above its own, and within its own as long as no circle arises.

A name stands for a module or for a whole folder; the longest name that fits counts.
"""


def layer_of(module: str) -> int | None:
    """The layer of a module given without the package's name; None where the list has no place for it."""
    layers = {name: index for index, names in enumerate(LAYERS) for name in names}
    while module:
        if module in layers:
            return layers[module]
        module = module.rpartition(".")[0]
        if not module:
            return None
    return layers[""]


def find_modules(root: Path) -> dict[str, Path]:
    """Modules below the package's folder, named without it; a folder's own module is named as the folder."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_modules(module: str, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules of the package that a module imports anywhere in its text, also inside functions, with the line."""

    def longest(name: str) -> str:
        """The module that a dotted name, perhaps of something inside a module, belongs to."""
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    is_folder = modules[module].name == "__init__.py"
    tree = ast.parse(modules[module].read_text(encoding="utf-8"))
    if not module:  # the package itself, which imports what it names when it is asked for it
        tree.body = [node for node in tree.body if not is_for_type_checkers(node)]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
                up = node.level - 1 if is_folder else node.level
                source = ".".join([*here[: len(here) - up], *([source] if source else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        for name in names:
            if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                yield longest(name.removeprefix(PACKAGE).removeprefix(".")), node.lineno


def is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layout_faults(root: Path) -> list[str]:
    """What is wrong with the imports of the package in a folder, one line each."""
    modules = find_modules(root)
    faults, graph = [], {}
    for module, path in modules.items():
        layer = layer_of(module)
        if layer is None:
            faults.append(f"{path.relative_to(root)} has no place in the list of layers")
            continue
        graph[module] = set()
        for imported, line in imported_modules(module, modules):
            other = layer_of(imported)
            if imported != module and other is not None:
                graph[module].add(imported)
                if other > layer:
                    faults.append(f"{path.relative_to(root)}:{line} imports {imported}, which is below it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append("imports run in a circle: " + " → ".join(error.args[1]))
    return faults


def test_imports_of_the_package_point_upwards() -> None:
    assert swinv2_tasks.__file__ is not None
    root = Path(swinv2_tasks.__file__).parent
    assert {"errors", "backbone", "backbone.window", "weights.loading"} <= find_modules(root).keys()
    assert layout_faults(root) == []


def test_no_test_module_imports_another() -> None:
    """What several of them use lies in tests/helpers."""
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [source + alias.name for alias in node.names]
            wrong = [name for name in names if name.startswith("tests.") and ".test_" in name]
            assert not wrong, f"{path.relative_to(folder)}:{node.lineno} imports {wrong[0]}"


# ---- the check itself, on synthetic packages

SOUND = {
    "__init__.py": '__version__ = "0"',
    "errors.py": "import os",
    "backbone/__init__.py": "from swinv2_tasks.backbone.weights import load",
    "backbone/window.py": "import torch\nfrom torch import Tensor",
    "backbone/attention.py": "from swinv2_tasks.backbone.window import cut\nfrom swinv2_tasks import __version__",
    "backbone/weights.py": "from swinv2_tasks.backbone.attention import attend\nfrom swinv2_tasks.errors import E",
    "heads/__init__.py": "",
    "heads/fpn.py": "from swinv2_tasks.backbone import window",
    "heads/mask_rcnn.py": "from swinv2_tasks.heads import fpn\nfrom . import fpn\nfrom .fpn import FPN",
    "training/__init__.py": "",
    "training/optim.py": "import swinv2_tasks.backbone.attention as a",
    "tasks/__init__.py": "",
    "tasks/base.py": "from ..training.optim import decay\nfrom swinv2_tasks.heads.mask_rcnn import head",
    "commands/__init__.py": "",
    "commands/score.py": "def run():\n    from swinv2_tasks.tasks.base import Task",
    "cli/__init__.py": "",
    "cli/main.py": "from swinv2_tasks.commands.score import run\nimport swinv2_tasks_extras",
    "__main__.py": "from .cli.main import main",
}


def write_package(folder: Path, **changes: str) -> Path:
    root = folder / PACKAGE
    for name, text in (SOUND | changes).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_sound_package_has_no_faults(tmp_path: Path) -> None:
    assert layout_faults(write_package(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("errors.py", "import swinv2_tasks.training.optim", "errors.py:1 imports training.optim"),
        ("errors.py", "from swinv2_tasks import training", "errors.py:1 imports training"),
        ("errors.py", "from .training import optim", "errors.py:1 imports training.optim"),
        ("__init__.py", "from swinv2_tasks.errors import E", "__init__.py:1 imports errors"),
        ("__init__.py", "from .errors import E", "__init__.py:1 imports errors"),
        (
            "backbone/window.py",
            "import os\nfrom swinv2_tasks.backbone.attention import attend",
            "backbone/window.py:2 imports backbone.attention",
        ),
        ("backbone/window.py", "from .attention import attend", "backbone/window.py:1 imports backbone.attention"),
        ("backbone/window.py", "from . import attention", "backbone/window.py:1 imports backbone.attention"),
        ("backbone/attention.py", "from swinv2_tasks import backbone", "backbone/attention.py:1 imports backbone,"),
        (
            "backbone/attention.py",
            "from swinv2_tasks.backbone import load",
            "backbone/attention.py:1 imports backbone,",
        ),
        ("backbone/weights.py", "from swinv2_tasks.heads.fpn import FPN", "backbone/weights.py:1 imports heads.fpn"),
        ("backbone/__init__.py", "from ..heads import fpn", "backbone/__init__.py:1 imports heads.fpn"),
        ("heads/fpn.py", "def f():\n    from swinv2_tasks.tasks import base", "heads/fpn.py:2 imports tasks.base"),
        ("heads/fpn.py", "from ..tasks.base import Task", "heads/fpn.py:1 imports tasks.base"),
        (
            "training/optim.py",
            "try:\n    import swinv2_tasks.cli.main\nexcept ImportError: ...",
            "training/optim.py:2 imports cli.main",
        ),
        (
            "tasks/base.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from swinv2_tasks.commands import score",
            "tasks/base.py:3 imports commands.score",
        ),
        ("commands/score.py", "from swinv2_tasks.cli.main import main", "commands/score.py:1 imports cli.main"),
        ("cli/main.py", "from swinv2_tasks.__main__ import main", "cli/main.py:1 imports __main__"),
    ],
)
def test_an_import_the_wrong_way_round_is_found(tmp_path: Path, name: str, text: str, fault: str) -> None:
    faults = layout_faults(write_package(tmp_path, **{name: text}))
    assert any(message.startswith(fault) for message in faults), faults


def test_a_circle_within_a_layer_is_found(tmp_path: Path) -> None:
    (fault,) = layout_faults(write_package(tmp_path, **{"heads/fpn.py": "from swinv2_tasks.heads import mask_rcnn"}))
    assert "circle" in fault
    assert "heads.fpn" in fault
    assert "heads.mask_rcnn" in fault


@pytest.mark.parametrize("name", ["helpers.py", "extras/tools.py"])
def test_a_module_that_the_list_lacks_is_found(tmp_path: Path, name: str) -> None:
    assert layout_faults(write_package(tmp_path, **{name: ""})) == [f"{name} has no place in the list of layers"]

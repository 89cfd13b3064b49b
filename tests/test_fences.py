"""Private members of other libraries are used in one module per library, and each of them is there.

A fence is a module whose name ends in ``_internals``: it alone may use what its library does not promise. Elsewhere
nothing of another library is private, and nothing that was imported is given another value.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch.strategies.launchers.multiprocessing
import lightning.pytorch.trainer.connectors.checkpoint_connector
import lightning.pytorch.trainer.connectors.signal_connector
import pytest
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn
from torch.utils.data import DataLoader

import swinv2_tasks
from swinv2_tasks import python_internals, torch_internals
from swinv2_tasks.datamodules.readers import pillow_internals
from swinv2_tasks.heads import torchvision_internals
from swinv2_tasks.training import lightning_internals

PACKAGE = Path(swinv2_tasks.__file__).parent
FENCES: dict[str, ModuleType] = {
    "lightning": lightning_internals,
    "pillow": pillow_internals,
    "python": python_internals,
    "torch": torch_internals,
    "torchvision": torchvision_internals,
}

PUBLIC = {"_asdict", "_exit", "_field_defaults", "_fields", "_make", "_replace"}
"""Documented in spite of their names: what named tuples have, and ``os._exit``."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


# ---- what one module's text says


def defined_names(tree: ast.AST) -> set[str]:
    """Private names that a module gives to something of its own: functions, classes, fields, attributes of self."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def is_own(node: ast.expr) -> bool:
    """Whether an expression is self, cls or super()."""
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


def imported_names(tree: ast.AST) -> set[str]:
    """What a module calls that which it imports."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {(alias.asname or alias.name).partition(".")[0] for node in nodes for alias in node.names}


def root_of(node: ast.expr) -> str | None:
    """The name that a dotted expression begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def faults_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private members of others that a module uses by name, and imported things that it changes; with their lines."""
    own, imported = defined_names(tree), imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"imports {name}") for name in private_parts(node))
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"imports {name} from {node.module}") for name in private_parts(node))
        elif isinstance(node, ast.Attribute):
            is_use = is_private(node.attr) and node.attr not in own and not is_own(node.value)
            if is_use:
                yield node.lineno, f"uses {node.attr} of {ast.unparse(node.value)}"
            if not isinstance(node.ctx, ast.Load) and root_of(node) in imported:
                yield node.lineno, f"changes {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from ((node.lineno, fault) for fault in faults_of_call(node, own, imported))


def private_parts(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("__"):
        names.append(node.module)
    return [name for name in names if any(map(is_private, name.split(".")))]


def faults_of_call(node: ast.Call, own: set[str], imported: set[str]) -> Iterator[str]:
    """As ``faults_of``, of getattr and the like with a name as text."""
    function = ast.unparse(node.func)
    if function not in ("getattr", "setattr", "hasattr", "delattr") or len(node.args) < 2:
        return
    subject, name = node.args[:2]
    if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
        yield f"uses {name.value} of {ast.unparse(subject)}"
    if function in ("setattr", "delattr") and root_of(subject) in imported:
        yield f"changes {ast.unparse(subject)}"


def text_faults(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [f"{path.name}:{line} {fault}" for line, fault in sorted(faults_of(tree))]


# ---- what a class has of its bases: self._x and an overridden _x may be another library's


def own_uses(node: ast.AST) -> dict[str, int]:
    """Private names that a class uses of itself or defines, with a line of each."""
    names = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and is_own(part.value):
            names[part.attr] = part.lineno
    for part in getattr(node, "body", []):
        targets = getattr(part, "targets", [getattr(part, "target", None)])
        for name in (getattr(part, "name", None), *(getattr(target, "id", None) for target in targets)):
            if name is not None:
                names[name] = part.lineno
    return {name: line for name, line in names.items() if is_private(name)}


@cache
def names_of_base(base: type) -> frozenset[str]:
    """Private names of a class of another library: what it has, and what its text uses of itself."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    except (OSError, TypeError):  # written in C
        return frozenset(filter(is_private, vars(base)))
    return frozenset({*filter(is_private, vars(base)), *own_uses(node)})


def inherited_faults(module: ModuleType) -> list[str]:
    """Private names of a module's classes that are those of another library's base class: used or taken from it."""
    faults, path = [], Path(inspect.getfile(module))
    top = module.__name__.partition(".")[0]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [base for base in getattr(module, node.name).__mro__ if base.__module__.partition(".")[0] != top]
        for name, line in own_uses(node).items():
            if base := next((base for base in bases if name in names_of_base(base)), None):
                faults.append(f"{path.name}:{line} {node.name} has {name} of {base.__module__}.{base.__qualname__}")
    return faults


# ---- the package


def test_no_private_member_of_another_library_is_used_outside_the_fences() -> None:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.stem.endswith("_internals")]
    assert len(paths) > 100
    assert [fault for path in paths for fault in text_faults(path)] == []


def test_no_class_uses_or_takes_a_private_name_of_another_librarys_base() -> None:
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "swinv2_tasks.")]
    names = [name for name in names if not name.endswith(("_internals", "__main__"))]
    assert len(names) > 100
    assert [fault for name in names for fault in inherited_faults(importlib.import_module(name))] == []


def test_there_is_one_fence_per_library() -> None:
    assert sorted(PACKAGE.rglob("*_internals.py")) == sorted(Path(inspect.getfile(fence)) for fence in FENCES.values())


# ---- the search itself

CLEAN = """
import os
from typing import NamedTuple
from torch import nn
class Part(NamedTuple):
    size: int
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self._mine, self.other = 0, None
    def _step(self, other):
        self.layer = nn.Linear(1, 1)
        self.layer.weight = self._step(other._mine)
        return getattr(other, "_mine"), Part(1)._asdict(), Part._fields, Net.__init__.__doc__
    def run(self, module):
        module.weight = self._step(module)
        setattr(module, "weight", 0)
        os.environ["A"] = "b"
        os._exit(0)
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("import torch._C", "imports torch._C"),
        ("from torch import _C", "imports _C from torch"),
        ("from torch._subclasses import fake_tensor", "imports torch._subclasses from torch._subclasses"),
        ("from swinv2_tasks.weights.files import _state_of", "imports _state_of from swinv2_tasks.weights.files"),
        ("def f(p):\n    return p._version", "uses _version of p"),
        ("def f(t):\n    t.fit_loop._fetcher = 1", "uses _fetcher of t.fit_loop"),
        ("def f(p):\n    return getattr(p, '_orig_mod', p)", "uses _orig_mod of p"),
        ("import torch\ntorch.x = 1", "changes torch.x"),
        ("import torch.nn as n\ndef f():\n    n.Linear.bias = 1", "changes n.Linear.bias"),
        ("from a import b\ndel b.c", "changes b.c"),
        ("from a import B\nB.__init__.__annotations__ = {}", "changes B.__init__.__annotations__"),
        ("from a import b\nsetattr(b, 'c', 1)", "changes b"),
    ],
)
def test_a_use_is_found(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"{CLEAN}\n{text}\n")
    (message,) = text_faults(tmp_path / "module.py")
    assert message.endswith(f" {fault}")


def test_what_is_a_modules_own_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(CLEAN)
    assert text_faults(tmp_path / "module.py") == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("    def f(self):\n        return self._modules", "_modules"),
        ("    def f(self):\n        self._buffers = {}", "_buffers"),
        ("    def f(self):\n        return super()._get_name()", "_get_name"),
        ("    def _apply(self, fn):\n        return self", "_apply"),
        ("    _version = 2", "_version"),
        ("    _own = 2\n    def _of_mine(self):\n        self._also = self._own", None),
    ],
)
def test_a_private_name_of_a_base_class_is_found(
    text: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inheriting.py").write_text(f"from torch import nn\nclass Net(nn.Module):\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "inheriting", raising=False)
    faults = inherited_faults(importlib.import_module("inheriting"))
    assert [re.sub(r".* has (\w+) of .*", r"\1", fault) for fault in faults] == ([name] if name else [])


# ---- what is behind the fences is there


class Recorder(Callback):
    """Notes what the fence of Lightning says as each training batch ends."""

    def __init__(self) -> None:
        self.results: dict[str, list[bool]] = {}
        self.checkpoints: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        for name in ("is_accumulating", "is_last_batch", "is_epoch_done", "is_validation_next", "may_stop_early"):
            self.results.setdefault(name, []).append(getattr(lightning_internals, name)(trainer))
        self.checkpoints.append(lightning_internals.make_checkpoint(trainer))


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("batch", batch_idx)
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_line(**settings: Any) -> Any:
    """A trainer that has trained for two epochs of three batches, the first two of which make a step."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "num_sanity_val_steps": 0, **settings}
    trainer = Trainer(accelerator="cpu", **{**dict.fromkeys(quiet, False), **settings})
    loader: Any = DataLoader(torch.ones(3, 1))
    trainer.fit(Line(), loader, loader)
    return trainer


@pytest.fixture(scope="module")
def trainer() -> Any:
    return fit_line(val_check_interval="00:01:00:00")


LIGHTNING: dict[str, Callable[[Any], Any]] = {
    "_CheckpointConnector": lambda _: lightning.pytorch.trainer.connectors.checkpoint_connector,
    "_MultiProcessingLauncher": lambda _: lightning.pytorch.strategies.launchers.multiprocessing,
    "_SignalConnector": lambda _: lightning.pytorch.trainer.connectors.signal_connector,
    "_accelerator_connector": lambda trainer: trainer,
    "_batches_that_stepped": lambda trainer: trainer.fit_loop.epoch_loop,
    "_broadcast_sigterm_tensor": lambda trainer: trainer.fit_loop.epoch_loop,
    "_can_stop_early": lambda trainer: trainer.fit_loop,
    "_checkpoint_connector": lambda trainer: trainer,
    "_combined_loader": lambda trainer: trainer.fit_loop,
    "_data_fetcher": lambda trainer: trainer.fit_loop,
    "_data_parallel_size": lambda _: lightning_internals.ModelParallelStrategy(),
    "_first_loop_iter": lambda trainer: trainer._logger_connector,
    "_is_training_done": lambda trainer: trainer.fit_loop.epoch_loop,
    "_last_val_time": lambda trainer: trainer,
    "_logger_connector": lambda trainer: trainer,
    "_launcher": lambda trainer: trainer.strategy,
    "_max_depth": lambda _: lightning_internals.ModelSummary(),
    "_num_ready_batches_reached": lambda trainer: trainer.fit_loop.epoch_loop,
    "_parse_ckpt_path": lambda _: lightning_internals.LightningCLI,
    "_run_subcommand": lambda _: lightning_internals.LightningCLI,
    "_set_seed": lambda _: lightning_internals.LightningCLI,
    "_should_accumulate": lambda trainer: trainer.fit_loop.epoch_loop,
    "_should_check_val_fx": lambda trainer: trainer.fit_loop.epoch_loop,
    "_signal_connector": lambda trainer: trainer,
    "_slurm_sigusr_handler_fn": lambda trainer: trainer._signal_connector,
    "_start_method": lambda _: lightning_internals._MultiProcessingLauncher(DDPStrategy()),
    "_timeout": lambda _: DDPStrategy(),
    "_trainer": lambda trainer: trainer.lightning_module,
    "_val_check_time_interval": lambda trainer: trainer,
    "_wrapping_function": lambda _: lightning_internals._MultiProcessingLauncher,
}
TORCH: dict[str, Callable[[], Any]] = {
    "_BaseDataLoaderIter": lambda: torch.utils.data.dataloader,
    "_C": lambda: torch,
    "_MultiProcessingDataLoaderIter": lambda: torch.utils.data.dataloader,
    "_cdata": lambda: torch.ones(1).untyped_storage(),
    "_check": lambda: torch,
    "_get_data": lambda: torch.utils.data.dataloader._MultiProcessingDataLoaderIter,
    "_get_default_store": lambda: torch.distributed.distributed_c10d,
    "_get_iterator": lambda: DataLoader,
    "_iterator": lambda: DataLoader([0]),  # type: ignore[arg-type]
    "_local_scalar_dense": lambda: torch.ops.aten,
    "_orig_mod": lambda: torch.compile(nn.Linear(1, 1)),
    "_python_dispatch": lambda: torch.utils,
    "_pytree": lambda: torch.utils,
    "_rcvd_idx": lambda: iter(DataLoader([0], num_workers=1)),  # type: ignore[arg-type]
    "_remove_worker_pids": lambda: torch.utils.data._utils.signal_handling,
    "_scaled_dot_product_attention_math": lambda: torch.ops.aten,
    "_scaled_dot_product_efficient_attention": lambda: torch.ops.aten,
    "_shutdown_workers": lambda: torch.utils.data.dataloader._MultiProcessingDataLoaderIter,
    "_softmax_backward_data": lambda: torch.ops.aten,
    "_step_supports_amp_scaling": lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1, fused=True),
    "_subclasses": lambda: torch,
    "_task_info": lambda: iter(DataLoader([0], num_workers=1)),  # type: ignore[arg-type]
    "_try_get_data": lambda: torch.utils.data.dataloader._MultiProcessingDataLoaderIter,
    "_utils": lambda: torch.utils.data,
    "_version": lambda: torch.ones(1),
    "_worker_pids_set": lambda: iter(DataLoader([0], num_workers=1)),  # type: ignore[arg-type]
    "_workers": lambda: iter(DataLoader([0], num_workers=1)),  # type: ignore[arg-type]
}
OTHERS: dict[str, dict[str, Callable[[], Any]]] = {
    "pillow": {},
    "python": {
        "_compat_pickle": lambda: {"_compat_pickle": importlib.import_module("_compat_pickle")},
        "_processes": lambda: ProcessPoolExecutor(1),
    },
    "torchvision": {"_utils": lambda: torchvision.models.detection},
}
BEHIND = {"lightning": LIGHTNING, "torch": TORCH, **OTHERS}


def has(owner: Any, name: str) -> bool:
    return name in owner if isinstance(owner, dict) else hasattr(owner, name)


@pytest.mark.parametrize("library", FENCES)
def test_each_private_member_behind_a_fence_is_tested(library: str) -> None:
    tree = ast.parse(inspect.getsource(FENCES[library]))
    uses = {re.split(r" of | from ", fault)[0].rpartition(" ")[2] for _, fault in faults_of(tree)}
    uses = {part for use in uses for part in use.split(".") if is_private(part)}
    constants = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    uses |= {name for name in constants if re.fullmatch(r"_[a-z_]+", name) and is_private(name)}
    inherited = {re.sub(r".* has (\w+) of .*", r"\1", fault) for fault in inherited_faults(FENCES[library])}
    assert uses | inherited == BEHIND[library].keys()


@pytest.mark.parametrize("name", LIGHTNING)
def test_what_is_used_of_lightning_is_there(name: str, trainer: Any) -> None:
    assert has(LIGHTNING[name](trainer), name), f"Lightning {version('lightning')} has no {name}"


@pytest.mark.parametrize("name", TORCH)
def test_what_is_used_of_torch_is_there(name: str) -> None:
    assert has(TORCH[name](), name), f"torch {version('torch')} has no {name}"


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in OTHERS.items() for name in names])
def test_what_is_used_of_other_libraries_is_there(library: str, name: str) -> None:
    assert has(OTHERS[library][name](), name), f"{library} has no {name}"


def test_lightnings_loops_say_where_a_training_stands() -> None:
    recorder = Recorder()
    fit_line(callbacks=[recorder], min_epochs=1, check_val_every_n_epoch=2)
    assert recorder.results == {
        "is_accumulating": [True, False, False] * 2,
        "is_last_batch": [False, False, True] * 2,
        "is_epoch_done": [False, False, True] * 2,
        "is_validation_next": [False, False, False, False, False, True],
        "may_stop_early": [False, False, False, True, True, True],
    }


def test_checkpoints_of_lightning_count_batches_as_the_fence_expects() -> None:
    recorder = Recorder()
    fit_line(callbacks=[recorder])
    checkpoint = recorder.checkpoints[2]  # of the first epoch's last batch, before the validation
    progress = checkpoint["loops"]["fit_loop"]
    before = progress["epoch_loop.state_dict"]["_batches_that_stepped"]
    lightning_internals.complete_epoch(checkpoint)
    assert progress["epoch_loop.batch_progress"]["current"]["completed"] == 3
    assert progress["epoch_loop.state_dict"]["_batches_that_stepped"] == before + 1
    lightning_internals.restart_validation(checkpoint)
    counts = progress["epoch_loop.val_loop.batch_progress"]
    assert (counts["total"]["ready"], counts["total"]["completed"], counts["current"]["ready"]) == (1, 0, 0)


class LogsAhead(Callback):
    """Logs a step as its batch ends, and tries to at other times; notes what is logged then."""

    def __init__(self, logger: Any) -> None:
        self.logger, self.rows = logger, list[tuple[str, list[Any]]]()

    def _try(self, trainer: Any, when: str) -> None:
        before = len(self.logger.rows)
        lightning_internals.log_step(trainer)
        self.rows.append((when, self.logger.rows[before:]))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._try(trainer, "batch")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self._try(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._try(trainer, "epoch")


class Rows(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:  # type: ignore[override]
        self.rows.append((step, metrics["batch"]))


def test_a_step_is_logged_ahead_of_lightning_with_the_same_values() -> None:
    logger = Rows()
    ahead = LogsAhead(logger)
    fit_line(callbacks=[ahead], logger=logger, log_every_n_steps=1, max_epochs=1)
    expected = [("batch", []), ("batch", [(0, 1.0)]), ("batch", [(1, 2.0)]), ("validation", []), ("epoch", [])]
    assert ahead.rows == expected
    assert logger.rows == [(0, 1.0), (0, 1.0), (1, 2.0), (1, 2.0)]


def test_a_task_without_a_trainer_has_none() -> None:
    assert lightning_internals.attached_trainer(Line()) is None


def test_names_of_python_2_are_translated() -> None:
    assert python_internals.python3_name("__builtin__", "xrange") == ("builtins", "range")
    assert python_internals.python3_name("copy_reg", "other") == ("copyreg", "other")
    assert python_internals.python3_name("torch", "FloatStorage") == ("torch", "FloatStorage")


# ---- versions


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    return {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("name", ["torch", "torchvision", "lightning", "pytorch-lightning"])
def test_a_library_behind_a_fence_is_bounded_by_its_next_major_version(name: str) -> None:
    """Below it, the versions that these tests run with; a new one may drop any private member."""
    installed = Version(version(name))
    bounds = {specifier.operator: Version(specifier.version) for specifier in requirements()[name].specifier}
    assert bounds[">="] <= installed
    assert bounds["<"] == Version(str(installed.major + 1))


def test_a_library_without_a_fence_has_no_upper_bound() -> None:
    """Except where its license changed."""
    bounded = {
        name
        for name, requirement in requirements().items()
        if any("<" in spec.operator for spec in requirement.specifier)
    }
    assert bounded == {"torch", "torchvision", "lightning", "pytorch-lightning"}

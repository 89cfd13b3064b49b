"""Fixtures for all tests."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.connections import LOG, python_path, refuse_other_machines, refused_connections

SLOW_TIMEOUT = 3600
"""Seconds that a slow test may take; the others' limit is in pyproject.toml."""


def pytest_configure() -> None:
    """Refuses connections to other machines, and obeys signals, in this process and in those that it starts."""
    for number in (signal.SIGHUP, signal.SIGQUIT):  # which are ignored in the background of a shell, or by nohup
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    log, os.environ[LOG] = tempfile.mkstemp(prefix="connections-")
    os.close(log)
    os.environ["PYTHONPATH"] = python_path(*filter(None, [os.environ.get("PYTHONPATH")]))
    refuse_other_machines()


def pytest_unconfigure() -> None:
    Path(os.environ[LOG]).unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def no_connections() -> Iterator[None]:
    """Fails a test in which a connection was refused, also where the refusal was swallowed."""
    before = len(refused_connections())
    yield
    assert refused_connections()[before:] == [], "another machine was asked for"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives slow tests more time, so that a busy machine does not fail them."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """A compiler that remembers nothing of other tests, and leaves them nothing."""
    import torch

    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real datasets that lie beside the project; the test is skipped where there are none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SWINV2_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; SWINV2_REAL_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes something in a folder of that name, once for all processes of a test run; the folder."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make_folder(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return make_folder


@pytest.fixture(scope="session")
def dataset(make_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The tiny dataset of a task, by its name in ``tests.helpers.tiny_tasks``; not to be changed."""
    from tests.helpers.tiny_tasks import TINY_TASKS

    def find(name: str) -> Path:
        write = TINY_TASKS[name].write_data  # of all detectors the same
        return make_once(write.__name__.removeprefix("write_"), write)

    return find


@pytest.fixture(scope="session")
def trained_run(dataset: Callable[[str], Path], make_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The folder of a run in which a task learned its tiny dataset by the command line; not to be changed."""
    from tests.helpers.runs import fit, newest_run
    from tests.helpers.tiny_tasks import TINY_TASKS

    def find(name: str) -> Path:
        task, data = TINY_TASKS[name], dataset(name)

        def train(folder: Path) -> None:
            fit(task.config(folder, data, trainer=task.trainer), folder / "runs")

        return newest_run(make_once(f"trained_{name}", train) / "runs")

    return find


@pytest.fixture(scope="session")
def images(dataset: Callable[[str], Path]) -> Path:
    """A dataset of colored squares, laid out like ImageNet; not to be changed."""
    return dataset("classification")


@pytest.fixture(scope="session")
def trained(trained_run: Callable[[str], Path]) -> Path:
    """The folder of a run that learned the colored squares by the command line; not to be changed."""
    return trained_run("classification")

"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


SLOW_TIMEOUT = 3600
"""Seconds that a slow test may take; the others' limit is in pyproject.toml."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives slow tests more time, so that a busy machine does not fail them."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real datasets that lie beside the project; the test is skipped where there are none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SWINV2_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; SWINV2_REAL_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of colored squares, laid out like ImageNet; not to be changed."""
    from tests.helpers.tiny import write_images

    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learned the colored squares by the command line; not to be changed."""
    from swinv2_tasks.cli.main import main
    from tests.helpers.tiny import write_config

    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "tiny.yaml", images, trainer={"max_epochs": 8})
    assert main(["fit", f"--config={config}", f"--runs={folder / 'runs'}"]) == 0
    return folder / "runs" / "tiny" / "0"

"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real datasets that lie beside the project; the test is skipped where there are none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SWINV2_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; SWINV2_REAL_DATA names another folder")
    return folder

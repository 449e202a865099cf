"""Fixtures that several rooms use."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import MINI, octo


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the mini recipe's data is prepared (runs/mini/data)."""
    folder = tmp_path_factory.mktemp("prepared")
    octo("data", "prepare", str(MINI), "--workers", "1", cwd=folder)
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Folders of a test's own, each with the prepared data in place."""

    def make(name: str) -> Path:
        shutil.copytree(prepared / "runs", tmp_path / name / "runs")
        return tmp_path / name

    return make

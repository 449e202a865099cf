from pathlib import Path

import pytest

from megatron_octo.recipe import Recipe, load_recipe
from megatron_octo.runtime.run_folder import RunFolder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe("tiny")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "tiny")

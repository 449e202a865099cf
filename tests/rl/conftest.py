"""A model for RL: mini's stable stage, trained and exported once."""

import shutil

import pytest

from tests.rl.runs import WIDER
from tests.support import MINI, octo


@pytest.fixture(scope="session")
def exported_once(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    shutil.copytree(prepared / "runs", folder / "runs")
    octo("train", str(MINI), "stable", *WIDER, cwd=folder)
    octo("export", str(MINI), "stable", *WIDER, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def exported(exported_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl-of-a-module")
    shutil.copytree(exported_once / "runs", folder / "runs")
    return folder

"""Ranks read from the environment, and the message of a rank that fails."""

import errno

import pytest

from megatron_octo.errors import CheckpointError, RuntimeSetupError
from megatron_octo.runtime.failures import VARIABLE, RankFiles, report_failure
from megatron_octo.runtime.rank import Rank, is_rank_already, read_port

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "MASTER_PORT", VARIABLE)


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ({}, Rank(0, 0, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, Rank(3, 1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Rank(0, 0, 1)),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}, Rank(5, 1, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Rank(0, 0, 1)),
        ({"SLURM_PROCID": "0"}, Rank(0, 0, 1)),
    ],
)
def test_ranks(environment, values, rank):
    environment(**values)
    assert Rank.from_environment() == rank
    assert is_rank_already() == ("RANK" in values or rank.world_size > 1)


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "abc", "WORLD_SIZE": "2"},
        {"RANK": "²", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "0", "LOCAL_RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "9" * 5000, "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "x"},
    ],
)
def test_ranks_that_are_none(environment, values):
    environment(**values)
    with pytest.raises(RuntimeSetupError, match=r"torchrun or srun"):
        Rank.from_environment()


@pytest.mark.parametrize("port", ["", "x", "0", "65536", "²", "-1"])
def test_ports_that_are_none(environment, port):
    environment(MASTER_PORT=port)
    with pytest.raises(RuntimeSetupError, match="MASTER_PORT"):
        read_port("MASTER_PORT")


def test_a_failure_reaches_the_launcher_whatever_its_text(environment, tmp_path):
    environment(**{VARIABLE: str(tmp_path)})
    assert report_failure(CheckpointError("a name\udcff and a NUL \0 in it"), 1) == 2
    failure = RankFiles(tmp_path, 1).read_failure()
    assert failure is not None and failure.is_message and failure.text == "a name\\udcff and a NUL \\0 in it"
    assert report_failure(ValueError("a bug"), 0) == 1
    failure = RankFiles(tmp_path, 0).read_failure()
    assert failure is not None and not failure.is_message and "ValueError: a bug" in failure.text


def test_a_failure_that_cannot_be_stored_is_printed(environment, tmp_path, capsys):
    environment(**{VARIABLE: str(tmp_path / "gone")})
    (tmp_path / "gone").write_text("a file stands where the folder was")
    assert report_failure(OSError(errno.ENOSPC, "No space left on device", "/data/x"), 1) == 2
    assert "octo: rank 1: /data/x: No space left on device; make room on that disk" in capsys.readouterr().err


def test_without_a_launcher_each_rank_says_what_it_alone_can_meet(environment, capsys):
    assert report_failure(OSError(errno.EACCES, "Permission denied", "/data/x"), 3) == 2
    assert "octo: rank 3: /data/x: Permission denied; change its permissions" in capsys.readouterr().err
    assert report_failure(CheckpointError("all ranks raise it"), 3) == 2
    assert capsys.readouterr().err == ""
    assert report_failure(CheckpointError("all ranks raise it"), 0) == 2
    assert capsys.readouterr().err == "octo: all ranks raise it\n"


def test_a_failure_that_was_cut_short(tmp_path):
    RankFiles(tmp_path, 0).failure.write_text('{"at": 1.0, "te')
    assert RankFiles(tmp_path, 0).read_failure() is None

"""A SLURM for the tests of this folder."""

import socket
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, lacking


@pytest.fixture(scope="session")
def cluster():
    if (reason := lacking()) is not None:
        pytest.skip(f"no SLURM can be started here: {reason}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # not in pytest's own folder, which is closed to others: munged refuses a socket there
    with tempfile.TemporaryDirectory(prefix="octo-slurm-") as folder:
        Path(folder).chmod(0o755)
        with Cluster(Path(folder) / "cluster", port) as started:
            yield started

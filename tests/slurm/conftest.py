"""A SLURM cluster for the tests of this folder."""

import socket
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not_available


@pytest.fixture(scope="session")
def cluster():
    if (reason := why_not_available()) is not None:
        pytest.skip(f"SLURM cannot be started here: {reason}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not in pytest's folder, which other users cannot enter: munged refuses a socket there.
    with tempfile.TemporaryDirectory(prefix="octo-slurm-") as folder:
        Path(folder).chmod(0o755)
        with Cluster(Path(folder) / "cluster", port) as started:
            yield started

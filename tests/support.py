"""Run `octo` as its users do, and read what it wrote."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
MINI = ROOT / "tests" / "mini.yaml"
SHARED = ROOT.parent / "shared"


def octo(*arguments: str, cwd: Path, check: bool = True, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """`octo ...` in a folder; its runs are in ./runs there."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "OCTO_RUNS")}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_octo.cli", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"octo {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_under(folder: Path) -> set[str]:
    """Every path below a folder, for "nothing was left behind"."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


LOOPBACK = {"127.0.0.1", "::1"}


def listening(pid: int) -> set[str]:
    """Addresses that a process and all below it listen at; datagram sockets that are open to anyone count."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections(kind="inet"):
                    if connection.laddr and not connection.raddr and connection.status in ("LISTEN", "NONE"):
                        found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found

"""Run `octo` as its users do, and read what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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

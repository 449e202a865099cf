"""`running.json`: which process says that it works on a folder, and whether it is alive."""

from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.reading.json_text import read_json_object

_CLOCK_SLACK_SECONDS = 60.0


def read_claim(path: Path) -> dict[str, Any] | None:
    """What the file says, None where there is none that can be read."""
    try:
        return read_json_object(path, RuntimeSetupError)
    except RuntimeSetupError:
        return None


def is_alive(claim: dict[str, Any]) -> bool:
    """Whether the process is there, and is not a later one that got the same number."""
    try:
        process = psutil.Process(int(claim["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        born = process.create_time()
    except (KeyError, ValueError, TypeError, psutil.NoSuchProcess):
        return False
    try:
        started = datetime.fromisoformat(str(claim["started"])).timestamp()
    except (KeyError, ValueError):
        return True
    return bool(born <= started + _CLOCK_SLACK_SECONDS)

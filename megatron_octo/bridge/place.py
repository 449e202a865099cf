"""Where a conversion may write: an empty place, on a disk with room."""

import shutil
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError

_MARGIN = 64 << 20
"""Bytes for everything that is no weight."""


def check_place(target: Path, weight_bytes: int, may_replace: bool = False) -> None:
    """Refuse a target that holds something, or a disk that will not hold it.

    Raises:
        RuntimeSetupError: with what is there, or the bytes needed and free.
    """
    if target.is_file() or target.is_symlink():
        raise RuntimeSetupError(f"{target}: this is no folder; give another name, or remove it")
    if not may_replace and target.is_dir() and (present := sorted(entry.name for entry in target.iterdir())):
        shown = ", ".join(present[:4]) + (", ..." if len(present) > 4 else "")
        raise RuntimeSetupError(
            f"{target}: holds something already ({shown}); give another name, or remove the folder yourself"
        )
    above = next(parent for parent in target.absolute().parents if parent.is_dir())
    free, needed = shutil.disk_usage(above).free, weight_bytes + _MARGIN
    if free < needed:
        raise RuntimeSetupError(
            f"{target}: needs {needed / 1e9:.2f} GB, and {above} has {free / 1e9:.2f} GB free; "
            "make room, or name a folder on another disk"
        )

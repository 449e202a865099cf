"""Megatron's index files under a stage's `cache/`: hashed as they are made, and made again where they are damaged.

They say which document and which sample comes when. Megatron believes whatever stands under the right name: one flipped
bit there is another order of data, or a read outside a file.
"""

import shutil
from pathlib import Path

import torch

from megatron_octo.errors import DataError
from megatron_octo.reading.json_text import read_json_object
from megatron_octo.runtime.files import sha256_of_all, write_json_atomically

RECORD = "sha256.json"


def drop_damaged_index(cache: Path) -> None:
    """Remove a cache folder whose files are not those that were recorded. Every rank calls it; the first one acts."""
    if not _is_first():
        _wait()
        return
    if cache.is_dir() and not _is_whole(cache):
        print(f"{cache}: index files damaged or not recorded; they are made again", flush=True)
        shutil.rmtree(cache)
    _wait()


def record_index(cache: Path) -> None:
    """Record the hashes of what Megatron has written. Every rank calls it; the first one acts."""
    if _is_first() and cache.is_dir():
        names = _names(cache)
        if _recorded(cache).keys() != set(names):
            digests = sha256_of_all([cache / name for name in names])
            write_json_atomically(cache / RECORD, dict(zip(names, digests, strict=True)))
    _wait()


def _is_whole(cache: Path) -> bool:
    recorded, names = _recorded(cache), _names(cache)
    if recorded.keys() != set(names):
        return False
    return sha256_of_all([cache / name for name in names]) == [recorded[name] for name in names]


def _recorded(cache: Path) -> dict[str, str]:
    try:
        return read_json_object(cache / RECORD, DataError)
    except DataError:  # none yet, or damaged
        return {}


def _names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_file() and path.name != RECORD)


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()

"""What OpenRLHF leaves on disk: which checkpoint a run goes on from, which copies stay, the best model.

Its checkpoints are `checkpoints/_actor/<tag>` (and `_critic`), with a copy for Hugging Face in `checkpoints/<tag>_hf`;
tags are `global_step<N>`, and `best_global_step<N>` for the best by the validation score. It writes them one after
another, and says nowhere that all are there; `whole/<tag>` says so, written by the trainer when a save has returned.
"""

import shutil
from pathlib import Path
from typing import Any

from megatron_octo.runtime.atomic_folder import publish_folder
from megatron_octo.runtime.files import sync_tree, write_text_atomically
from megatron_octo.runtime.records import read_lines

_HF, _BEST, _STEP = "_hf", "best_", "global_step"
_GROUPS = ("_actor", "_critic")


def mark_whole(checkpoints: Path) -> None:
    """Say of every checkpoint there that it is whole; called when no save is under way. Drop what goes with none.

    OpenRLHF clears old checkpoints, and leaves their copies for Hugging Face.
    """
    if not (checkpoints / "_actor").is_dir():
        return
    tags = _tags(checkpoints / "_actor")
    whole = checkpoints / "whole"
    whole.mkdir(exist_ok=True)
    for tag in tags:
        if not (whole / tag).is_file():
            write_text_atomically(whole / tag, "")
    _drop_all_but(tags, checkpoints)


def settle(checkpoints: Path, with_critic: bool) -> int | None:
    """Make OpenRLHF go on from the newest whole checkpoint, the actor and the critic from the same.

    What a kill left half-written is removed, and what was written beside it.

    Returns:
        Its step; None where there is none, and the run starts anew.
    """
    groups = [checkpoints / name for name in (_GROUPS if with_critic else _GROUPS[:1])]
    whole = {path.name for path in (checkpoints / "whole").glob(f"*{_STEP}*")}
    for group in groups:
        whole &= _tags(group)
    _drop_all_but(whole, checkpoints)
    for group in (checkpoints / name for name in _GROUPS):
        for tag in _tags(group) - whole:
            shutil.rmtree(group / tag)
        if group.is_dir() and not whole:
            shutil.rmtree(group)
    if not whole:
        return None
    newest = max(whole, key=lambda tag: (_step(tag), tag.startswith(_STEP)))
    for group in groups:
        write_text_atomically(group / "latest", newest)
    return _step(newest)


def publish_best(folder: Path, scores: Path) -> dict[str, Any] | None:
    """Put the best model by the validation score at `best/`, whole or not at all.

    Returns:
        Its step and score; None where no validation was made.
    """
    checkpoints = folder / "checkpoints"
    tags = [path.name for path in (checkpoints / "whole").glob(f"{_BEST}*")]
    if not tags:
        return None
    tag = max(tags, key=_step)
    partial, best = folder / ".best.partial", folder / "best"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoints / f"{tag}{_HF}", partial)
    sync_tree(partial)
    publish_folder(partial, best, replace=True)
    by_step = {score["step"]: score["accuracy"] for score in read_lines(scores)}
    return {"step": _step(tag), "accuracy": by_step.get(_step(tag))}


def _tags(group: Path) -> set[str]:
    return {path.name for path in group.glob(f"*{_STEP}*") if path.is_dir()}


def _step(tag: str) -> int:
    return int(tag.rpartition(_STEP)[2])


def _drop_all_but(tags: set[str], checkpoints: Path) -> None:
    for copy in checkpoints.glob(f"*{_STEP}*{_HF}"):
        if copy.name.removesuffix(_HF) not in tags:
            shutil.rmtree(copy)
    for mark in (checkpoints / "whole").glob(f"*{_STEP}*"):
        if mark.name not in tags:
            mark.unlink()

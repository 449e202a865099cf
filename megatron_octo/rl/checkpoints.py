"""OpenRLHF's checkpoints on disk: which one a run resumes from, which copies stay, which model is the best.

Layout: `checkpoints/_actor/<tag>` (and `_critic`), with a copy in Hugging Face's format in `checkpoints/<tag>_hf`. A
tag is `global_step<N>`, or `best_global_step<N>` for the best by the validation score. OpenRLHF writes these one after
another and does not record that all of them are there. This project does: once a save has returned, the trainer
writes `checkpoints/whole/<tag>`, which marks the checkpoint as complete.
"""

import shutil
from pathlib import Path
from typing import Any

from megatron_octo.runtime.atomic_folder import publish_folder
from megatron_octo.runtime.files import sync_tree, write_text_atomically
from megatron_octo.runtime.records import read_records
from megatron_octo.runtime.rl_folder import RlFolder

_ACTOR, _CRITIC = "_actor", "_critic"
_MARKS = "whole"
_HF, _BEST, _STEP = "_hf", "best_", "global_step"


def mark_complete(checkpoints: Path) -> None:
    """Mark every checkpoint as complete, and remove copies of checkpoints that OpenRLHF has deleted.

    Call it only while no save is under way. OpenRLHF deletes old checkpoints and leaves their Hugging Face copies.
    """
    if not (checkpoints / _ACTOR).is_dir():
        return
    tags = _tags(checkpoints / _ACTOR)
    marks = checkpoints / _MARKS
    marks.mkdir(exist_ok=True)
    for tag in tags:
        if not (marks / tag).is_file():
            write_text_atomically(marks / tag, "")
    _remove_copies_and_marks(checkpoints, keep=tags)


def prepare_resume(checkpoints: Path, with_critic: bool) -> int | None:
    """Make OpenRLHF resume from the newest complete checkpoint, the same one for the actor and the critic.

    Checkpoints that are not complete, because a save was killed, are removed.

    Returns:
        The rollout step of the checkpoint; None if there is none, and the run starts from the beginning.
    """
    groups = [checkpoints / _ACTOR, *([checkpoints / _CRITIC] if with_critic else [])]
    complete = {path.name for path in (checkpoints / _MARKS).glob(f"*{_STEP}*")}
    for group in groups:
        complete &= _tags(group)
    _remove_copies_and_marks(checkpoints, keep=complete)
    for group in (checkpoints / _ACTOR, checkpoints / _CRITIC):
        for tag in _tags(group) - complete:
            shutil.rmtree(group / tag)
        if group.is_dir() and not complete:
            shutil.rmtree(group)
    if not complete:
        return None
    newest = max(complete, key=lambda tag: (_step(tag), tag.startswith(_STEP)))
    for group in groups:
        write_text_atomically(group / "latest", newest)  # the file that OpenRLHF reads
    return _step(newest)


def publish_best(folder: RlFolder) -> dict[str, Any] | None:
    """Copy the model with the best validation score to `best/`, atomically.

    Returns:
        Its step and its accuracy; None if nothing was validated.
    """
    tags = [path.name for path in (folder.checkpoints / _MARKS).glob(f"{_BEST}*")]
    if not tags:
        return None
    tag = max(tags, key=_step)
    partial = folder.best.with_name(f".{folder.best.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder.checkpoints / f"{tag}{_HF}", partial)
    sync_tree(partial)
    publish_folder(partial, folder.best, replace=True)
    accuracies = {score["step"]: score["accuracy"] for score in read_records(folder.validation_scores)}
    return {"step": _step(tag), "accuracy": accuracies.get(_step(tag))}


def _tags(group: Path) -> set[str]:
    return {path.name for path in group.glob(f"*{_STEP}*") if path.is_dir()}


def _step(tag: str) -> int:
    return int(tag.rpartition(_STEP)[2])


def _remove_copies_and_marks(checkpoints: Path, keep: set[str]) -> None:
    for copy in checkpoints.glob(f"*{_STEP}*{_HF}"):
        if copy.name.removesuffix(_HF) not in keep:
            shutil.rmtree(copy)
    for mark in (checkpoints / _MARKS).glob(f"*{_STEP}*"):
        if mark.name not in keep:
            mark.unlink()

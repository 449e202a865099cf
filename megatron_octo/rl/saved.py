"""What OpenRLHF leaves on disk: which checkpoint a run goes on from, which Hugging Face copies stay, the best model.

Its checkpoints are `checkpoints/_actor/<tag>` (and `_critic`), as Hugging Face `checkpoints/<tag>_hf`;
tags are `global_step<N>`, and `best_global_step<N>` for the best by the validation score.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_octo.runtime.files import sync_tree, write_text_atomically

_HF = "_hf"
_BEST = "best_global_step"


def drop_unfinished(checkpoints: Path) -> None:
    """Remove a first checkpoint that was never finished: DeepSpeed writes `latest` last, and loads nothing without.

    Where `latest` names a folder that is gone (the best of before, which makes room for a better one), the newest of
    those that are there takes its place.
    """
    for folder in (checkpoints / "_actor", checkpoints / "_critic"):
        latest = folder / "latest"
        if not folder.is_dir() or (latest.is_file() and (folder / latest.read_text().strip()).is_dir()):
            continue
        whole = [path for path in folder.glob("global_step*") if path.is_dir()] if latest.is_file() else []
        if whole:
            newest = max(whole, key=lambda path: int(path.name.removeprefix("global_step")))
            write_text_atomically(latest, newest.name)
        else:
            shutil.rmtree(folder)


def drop_copies(checkpoints: Path) -> None:
    """Remove the Hugging Face copies of checkpoints that OpenRLHF has removed: it clears none of them itself."""
    for copy in checkpoints.glob(f"*{_HF}"):
        if not (checkpoints / "_actor" / copy.name.removesuffix(_HF)).is_dir():
            shutil.rmtree(copy)


def publish_best(folder: Path, scores: Path) -> dict[str, Any] | None:
    """Put the best model by the validation score at `best/`, whole or not at all.

    Returns:
        Its step and score; None where no validation was made.
    """
    checkpoints = folder / "checkpoints"
    found = [
        path for path in checkpoints.glob(f"{_BEST}*{_HF}")
        if (checkpoints / "_actor" / path.name.removesuffix(_HF)).is_dir()
    ]  # fmt: skip
    if not found:
        return None
    step, path = max((int(path.name.removeprefix(_BEST).removesuffix(_HF)), path) for path in found)
    partial, best = folder / ".best.partial", folder / "best"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(path, partial)
    sync_tree(partial)
    shutil.rmtree(best, ignore_errors=True)
    partial.rename(best)
    by_step = {score["step"]: score["accuracy"] for score in map(json.loads, scores.read_text().splitlines())}
    return {"step": step, "accuracy": by_step.get(step)}

"""Settings in their first form, so that a run can be resumed after keys were added to recipes, or removed.

A run's settings are stored, or hashed, with the keys of the time it began. A key that was added since, and has its old
value, makes no difference to what is trained; nor does a key that was removed and had only one value. In the first form
added keys are left out, and retired ones put back.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class KeyChange:
    """A key that was added after settings were first stored, or removed since."""

    path: str
    """Dotted; `*` stands for every key of a mapping (`stages.*.warmup`)."""
    kind: Literal["added", "retired"]
    value: Any
    """Of an added key: what was done before it was there. Of a retired one: the only value it had."""
    where: tuple[str, Any] | None = None
    """Only in mappings in which this key has this value (`("kind", "file")`)."""


TRAINING_CHANGES: tuple[KeyChange, ...] = ()
"""Since e9c0304, of what `decisive_settings` gives."""
RL_CHANGES: tuple[KeyChange, ...] = (
    KeyChange("rl.*.answer_after", "added", None, where=("kind", "file")),
    KeyChange("rl.*.chat", "added", False, where=("kind", "file")),
)
"""Since e9c0304, of a recipe's `rl` section."""


def in_first_form(settings: dict[str, Any], changes: Sequence[KeyChange]) -> dict[str, Any]:
    """A copy of settings as they would have been stored before the changes."""
    first = deepcopy(settings)
    for change in changes:
        *above, key = change.path.split(".")
        for node in _nodes(first, above):
            if change.where is not None and node.get(change.where[0]) != change.where[1]:
                continue
            if change.kind == "retired":
                node.setdefault(key, deepcopy(change.value))
            elif key in node and node[key] == change.value:
                del node[key]
    return first


def _nodes(node: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        return
    if not path:
        yield node
        return
    for key in node if path[0] == "*" else (path[0],):
        yield from _nodes(node.get(key), path[1:])

"""Settings in their first form: a run can resume after keys were added to recipes, or removed.

The settings of a run are stored, or hashed, with the keys of the time it began. A key that was added since changes
nothing as long as its value means what was done before; nor does a key that was removed and had only one value. The
first form leaves added keys out and puts retired ones back.
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
    """For an added key, the value that means what was done before. For a retired one, the only value it had."""
    where: tuple[str, Any] | None = None
    """The change applies only to mappings in which this key has this value, such as `("kind", "file")`."""


TRAINING_CHANGES: tuple[KeyChange, ...] = ()
"""Changes since e9c0304 to the settings that decide what a stage trains."""
RL_CHANGES: tuple[KeyChange, ...] = (
    KeyChange("rl.*.answer_after", "added", None, where=("kind", "file")),
    KeyChange("rl.*.chat", "added", False, where=("kind", "file")),
)
"""Changes since e9c0304 to a recipe's `rl` section."""


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

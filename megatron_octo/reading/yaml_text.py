"""YAML, with limits on size, depth, numbers, and on what aliases expand to."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from megatron_octo.errors import OctoError
from megatron_octo.reading.json_text import shortened
from megatron_octo.reading.values import MOST_DEPTH, check_value

MOST_CHARACTERS = 256 << 10
"""The shipped recipes have at most 9,000."""
MOST_NODES = 50_000
"""After aliases are expanded."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice (the last one would win in silence) and reads 5e-5 as a number."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(problem=f"line {line}: {key!r} cannot be a key; keys are plain words")
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"{key!r} is written twice (line {line}); keep one of them")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
# YAML 1.1 reads `5e-5` as text; people mean the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str, error: type[OctoError]) -> Any:
    """The value of a YAML document. Every alias becomes a value of its own.

    Args:
        where: what the text is, for messages.

    Raises:
        OctoError: of type `error`, where it is not YAML, longer than MOST_CHARACTERS, nested deeper than MOST_DEPTH,
            expands to more than MOST_NODES nodes, has an alias in its own anchor, or holds what `check_value` refuses.
    """
    if len(text) > MOST_CHARACTERS:
        raise error(f"{where}: {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read; shorten it")
    try:
        _check_events(text)
        value = _without_aliases(yaml.load(text, Loader=_Loader))  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as problem:
        raise error(f"{where}: not YAML: {shortened(str(problem), 400)}") from None
    except (ValueError, OverflowError, TypeError, AttributeError, LookupError) as problem:
        # PyYAML's constructors raise these at scalars that only look like a number, a date or binary data
        raise error(
            f"{where}: holds a value that YAML cannot read ({shortened(str(problem))}); put it in quotes"
        ) from None
    check_value(value, where, error)
    return value


def _check_events(text: str) -> None:
    """Walk the events, of which none is nested, and count what the document will expand to."""
    total = 0
    open_anchors: list[tuple[str | None, int]] = []
    """Anchor of each open collection, and the count at its start."""
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_anchors):
                raise yaml.MarkedYAMLError(problem=f"*{event.anchor} stands inside &{event.anchor}; break the circle")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, total))
            total += 1
            if len(open_anchors) > MOST_DEPTH:
                raise yaml.MarkedYAMLError(problem=f"nested more than {MOST_DEPTH} deep; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if total > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_NODES:,} values once aliases are expanded")


def _without_aliases(value: Any) -> Any:
    """A copy in which YAML's `*alias` is a value of its own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _without_aliases(below) for key, below in value.items()}
    return [_without_aliases(below) for below in value] if isinstance(value, list) else value

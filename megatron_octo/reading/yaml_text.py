"""YAML 1.2, with limits on size, depth, numbers, and on what aliases expand to."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)
from ruamel.yaml.parser import Parser

from megatron_octo.errors import OctoError
from megatron_octo.reading.json_text import shortened
from megatron_octo.reading.values import MOST_DEPTH, check_value

MOST_CHARACTERS = 256 << 10
"""The shipped recipes have at most 9,000."""
MOST_NODES = 50_000
"""After aliases are expanded."""
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


def parse_yaml(text: str, where: str, error: type[OctoError]) -> Any:
    """The value of a YAML document. Every alias becomes a value of its own.

    Args:
        where: what the text is, for messages.

    Raises:
        OctoError: of type `error`, if it is not YAML, longer than MOST_CHARACTERS, nested deeper than MOST_DEPTH,
            expands to more than MOST_NODES nodes, has a key twice, a number with a leading zero or an alias inside its
            own anchor, or contains what `check_value` refuses.
    """
    if len(text) > MOST_CHARACTERS:
        raise error(f"{where}: {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read; shorten it")
    reader = YAML(typ="safe", pure=True)
    reader.Parser = _LimitedParser
    try:
        value = _without_aliases(reader.load(text))
    except DuplicateKeyError as problem:  # two spellings of one key: 1 and 0x1
        raise error(f"{where}: not YAML: a key is written twice ({shortened(str(problem.problem))})") from None
    except YAMLError as problem:
        raise error(f"{where}: not YAML: {shortened(str(problem), 400)}") from None
    except (ValueError, OverflowError, TypeError, AttributeError, LookupError, AssertionError) as problem:
        # the constructors raise these at scalars that only look like a number, a date or binary data
        raise error(
            f"{where}: holds a value that YAML cannot read ({shortened(str(problem))}); put it in quotes"
        ) from None
    check_value(value, where, error)
    return value


@dataclass
class _Collection:
    """A list or mapping whose end has not been read yet."""

    anchor: str | None
    nodes_before: int
    is_mapping: bool
    items: int = 0
    """Items so far. In a mapping keys and values alternate."""
    keys: set[str] = field(default_factory=set)


class _LimitedParser(Parser):
    """Checks each event before anything is built from it, so that no input can take much memory or a deep stack."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._nodes = 0
        self._open: list[_Collection] = []
        self._sizes: dict[str, int] = {}
        """Nodes of each anchored value that is complete."""

    def get_event(self) -> Event:
        """The next event."""
        event: Event = super().get_event()
        match event:
            case AliasEvent():
                self._check_item(event)
                self._nodes += self._sizes.get(event.anchor, 1)
            case ScalarEvent():
                self._check_item(event)
                self._check_scalar(event)
                self._nodes += 1
                if event.anchor is not None:
                    self._sizes[event.anchor] = 1
            case CollectionStartEvent():
                self._check_item(event)
                self._open.append(_Collection(event.anchor, self._nodes, isinstance(event, MappingStartEvent)))
                self._nodes += 1
                if len(self._open) > MOST_DEPTH:
                    raise _problem(event, f"nested more than {MOST_DEPTH} deep", "flatten it")
            case CollectionEndEvent():
                ended = self._open.pop()
                if ended.anchor is not None:
                    self._sizes[ended.anchor] = self._nodes - ended.nodes_before
        if self._nodes > MOST_NODES:
            raise _problem(event, f"more than {MOST_NODES:,} values once aliases are expanded", "shorten it")
        return event

    def _check_item(self, event: Any) -> None:
        """Check an item as a part of the collection it is in."""
        if isinstance(event, AliasEvent) and any(event.anchor == around.anchor for around in self._open):
            raise _problem(event, f"*{event.anchor} stands inside &{event.anchor}", "break the circle")
        if not self._open:
            return
        around = self._open[-1]
        around.items += 1
        if not around.is_mapping or around.items % 2 == 0:
            return
        if isinstance(event, CollectionStartEvent) or self._sizes.get(event.anchor or "", 1) > 1:
            raise _problem(event, "a list or mapping cannot be a key", "keys are plain words")
        if isinstance(event, ScalarEvent):
            if event.value in around.keys:
                raise _problem(event, f"{event.value!r} is written twice", "keep one of them")
            around.keys.add(event.value)

    def _check_scalar(self, event: Any) -> None:
        if event.style is not None:  # quoted
            return
        if event.value == "<<":
            raise _problem(event, "<< is not merged here", "write the keys out, or take the whole mapping by its alias")
        if _LEADING_ZERO.fullmatch(event.value):
            what = f"{event.value} is octal in YAML 1.1 and decimal in YAML 1.2"
            raise _problem(event, what, "leave the leading zero out, or put it in quotes")


def _problem(event: Any, what: str, way_out: str) -> MarkedYAMLError:
    return MarkedYAMLError(problem=f"{what} (line {event.start_mark.line + 1}); {way_out}")


def _without_aliases(value: Any) -> Any:
    """A copy in which YAML's `*alias` is a value of its own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _without_aliases(below) for key, below in value.items()}
    return [_without_aliases(below) for below in value] if isinstance(value, list) else value


class _Dumper(yaml.SafeDumper):
    """PyYAML's: ruamel.yaml takes three times as long, and a recipe would not be the bytes that it was before."""


# PyYAML writes YAML 1.1, in which these are text and need no quotes
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?0o?[0-9_]+$"), list("-+0"))


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back. Equal values give equal text."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

r"""The structure of an answer: value, list, tuple, interval, set, matrix or equation. Inequalities become intervals."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from megatron_octo.grading.numbers import read_number

_OPEN, _CLOSE = ("(", "[", "{"), (")", "]", "}")
_TOKEN = re.compile(r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\text\{[^{}]*\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OR = {"\\lor", "\\text{or}", "\\quad", "\\\\", "\\cup", ";", ","}
_WORD_SEPARATOR = re.compile(
    r",?\s?(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])|,?\\text\{[, ]*(?:or|and)[, ]*\}|\\land(?![a-zA-Z])"
)
_RELATION = re.compile(r"\\(?:le|ge|ne|in|equiv|approx|sim)(?![a-zA-Z])|[<>=]")
_THOUSANDS = re.compile(r"(?<![\d.,(\[])(\d{1,3})((?:,\d{3})+)(?![\d,])")
_BUILDER = re.compile(r"\\\{([a-zA-Z])(?:\\in\\mathbb\{?R\}?)?(?:[:|])(.+)\\\}")
_MEMBER = re.compile(r"([a-zA-Z](?:_\{\w+\})?)\\in(?![a-zA-Z])(.+)")
_ALL_BUT = re.compile(
    r"(?:[a-z]\\in)?(?:\\mathbb\{R\}|\(-\\infty,\\infty\))(?:\\setminus|\\backslash|-)\\\{([^{},]+)\\\}"
)
_OF_REALS = re.compile(r"^[a-z]\\in\\mathbb\{R\}(?:,|;|\\text\{and\}|\\land)+(?=.)")
_REALS = re.compile(r"^(?:\\mathbb\{?R\}?|\\text\{[aA]ll real numbers\}|[aA]ll real numbers)$")
_MATRIX = re.compile(
    r"[(\[]?\\begin\{([pbvBV]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}[)\]]?", re.DOTALL
)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\(?![a-zA-Z{}|])")  # one backslash too: datasets lose the other
_UNIT_OF_TUPLE = re.compile(r"(?s)^(\(.*,.*\))\\text\{[^{}]*\}$")
_VARIABLE = re.compile(r"-?(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{\w+\})?(?:\([a-z]\))?")
_HAS_LETTER = re.compile(r"(?<!\\)(?<!\\[a-zA-Z])[a-zA-Z]")
_ABSOLUTE = re.compile(r"\|([a-z])\|(<|>|\\le|\\ge) ?([^<>=|]+)")
_SIMPLE_NAME = re.compile(
    r"(?:\\text\{[^{}]*\}|\\overline\{\w+\}|\\(?!pi)[a-zA-Z]+(?![a-zA-Z])|[a-zA-Z ]|_\{[^{}]*\}|\^\{-1\}|'"
    r"|\([a-zA-Z,0-9+\-]*\)|\|)+"
)
_COMMANDS = re.compile(r"\\(?:frac|sqrt|sin|cos|tan|log|ln|pi|sum|int|infty|binom)(?![a-zA-Z])")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}


@dataclass(frozen=True)
class Reading:
    """An answer's structure over normalized text."""

    kind: Literal["value", "list", "group", "equation"]
    """list: the order does not matter, as in `1,2`, sets and unions. group: it does, as in tuples, intervals, rows."""
    text: str
    items: tuple["Reading", ...] = ()
    brackets: str = ""
    """Kind of a group: `()`, `[)`, ..., `row`, `matrix`, `determinant`, `named`."""
    name: str = ""
    """Its variable: `x` in `x=5` and in `x>5`."""
    others: tuple[str, ...] = ()
    """Further members of a chain `x=a=b`, which must have the same value."""


def read(text: str, thousands: bool = True) -> Reading:
    """The structure of normalized text.

    Args:
        thousands: whether `1,234` by itself is one number.
    """
    text = _REALS.sub(r"(-\\infty,\\infty)", _ALL_BUT.sub(r"x\\ne \1", _OF_REALS.sub("", text)))
    if (found := _MEMBER.fullmatch(text)) is not None and not _RELATION.search(found[2]):
        return replace(read(found[2], thousands), name=found[1])
    if (found := _BUILDER.fullmatch(text)) is not None:
        return read(found[2], thousands)
    if (found := _MATRIX.fullmatch(text)) is not None and found[2].count("\\begin") == 0:
        rows = [row for row in _ROW_END.split(found[2].replace("\\hline", "")) if row.strip()]
        kind = "determinant" if found[1][0] in "vV" else "matrix"
        return Reading("group", text, tuple(_group(row.split("&"), "row") for row in rows), kind)
    if (tuples := _named_tuples(text)) is not None:
        return tuples
    if thousands:
        text = _THOUSANDS.sub(lambda m: m[1] + m[2].replace(",", "{,}"), text)
    parts = split(_WORD_SEPARATOR.sub(_comma, text) if _WORD_SEPARATOR.search(text) else text, _OR)
    if len(parts) > 1:
        if (between := _conjunction(text, parts)) is not None:
            return between
        readings = [read(part, thousands) for part in parts]
        return Reading("list", text, tuple(_flattened(readings, joined="\\cup" in text)))
    return _read_single(parts[0] if parts else text, thousands)


def split(text: str, separators: set[str]) -> list[str]:
    """The parts of a text between separators outside brackets, without empty parts."""
    parts, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        if symbol in _OPEN or symbol == "\\{" or symbol.startswith("\\begin"):
            depth += 1
        elif symbol in _CLOSE or symbol == "\\}" or symbol.startswith("\\end"):
            depth -= 1
        elif depth == 0 and symbol in separators:
            parts.append(text[start : token.start()])
            start = token.end()
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _comma(found: re.Match[str]) -> str:
    return ","


def _flattened(readings: list[Reading], joined: bool) -> Iterator[Reading]:
    for reading in readings:
        if reading.kind == "list" and (joined or not reading.text.startswith("\\{")):
            yield from reading.items
        else:
            yield reading


def _group(parts: list[str], brackets: str) -> Reading:
    return Reading("group", ",".join(parts), tuple(read(part.strip()) for part in parts), brackets)


def _read_single(text: str, thousands: bool) -> Reading:
    if ("\\pm" in text or "\\mp" in text) and _inside(text) is None:
        signs = [text.replace("\\pm", a).replace("\\mp", b) for a, b in (("+", "-"), ("-", "+"))]
        return Reading(
            "list", text, tuple(_read_single(re.sub(r"(^|[=(,])\+", r"\1", sign), thousands) for sign in signs)
        )
    if (interval := _inequality(text)) is not None:
        return interval
    members = split(text, {"=", "\\approx"})
    if len(members) > 1 and not re.search(r"\\(?:ne|le|ge|in|sum|prod|equiv)(?![a-zA-Z])|[<>]|\\text\{if\}", text):
        return _equation(text, members, thousands)
    inner = _inside(_UNIT_OF_TUPLE.sub(r"\1", text))
    if inner is None:
        return Reading("value", text)
    left, content, right = inner
    parts = split(content, {",", ";"})
    if left == "\\{":
        reading = read(content, thousands=False)
        return Reading("list", text, reading.items if reading.kind == "list" else (reading,))
    if len(parts) < 2:
        return read(content, thousands) if text[0] + text[-1] == "()" and parts else Reading("value", text)
    brackets = "()" if len(parts) > 2 else left + right
    return Reading("group", text, tuple(read(part, thousands=False) for part in parts), brackets)


def is_bracketed(text: str) -> bool:
    """Whether a value is in square brackets. They matter: `[5]` may be a list, or rounded."""
    return "[" in (text[:1], text[-1:]) and _inside(text) is not None


def _inside(text: str) -> tuple[str, str, str] | None:
    """A pair of outer brackets, and the text between them; None if there is none."""
    left = "\\{" if text.startswith("\\{") else text[:1]
    right = "\\}" if text.endswith("\\}") else text[-1:]
    if (left == "\\{") != (right == "\\}") or left not in ("\\{", "(", "[", "]") or right not in ("\\}", ")", "]", "["):
        return None
    content = text[len(left) : len(text) - len(right)]
    depth = 0
    for token in _TOKEN.finditer(content):
        symbol = token.group()
        depth += (symbol in _OPEN or symbol == "\\{") - (symbol in _CLOSE or symbol == "\\}")
        if depth < 0:
            return None
    french = {"]": "(", "[": ")"}
    if left == "]":
        left = "("
    if right == "[":
        right = french[right]
    return (left, content, right) if depth == 0 else None


def _equation(text: str, members: list[str], thousands: bool) -> Reading:
    named = [member for member in members if is_name(member)]
    if members[0] in named or members[-1] in named:
        name = members[0] if members[0] in named else members[-1]
        values = [member for member in members if member not in named] or [members[-1]]
        return replace(read(values[-1], thousands), name=name, others=tuple(values[:-1]))
    if "\\approx" in text:
        return read(members[0], thousands)  # 2/3, and about 0.67
    if not any(map(has_letter, members)):
        return replace(read(members[-1], thousands), others=tuple(members[:-1]))
    return Reading("equation", text, tuple(Reading("value", member) for member in members))


def is_name(text: str) -> bool:
    r"""Whether text can be the name of a value: `x`, `a_n`, `f(x)`, `\angle ABC`, `\text{Area}`, `(x,y)`."""
    return bool(_SIMPLE_NAME.fullmatch(text)) and not _COMMANDS.search(text) and text not in ("e", "i")


def has_letter(text: str) -> bool:
    """Whether text contains a variable."""
    return bool(_HAS_LETTER.search(re.sub(r"\\[a-zA-Z]+", " ", text)))


def _named_tuples(text: str) -> Reading | None:
    r"""`p=5,q=2;p=7,q=2` as a list of tuples, and `x=1,y=2` as a tuple."""
    groups = split(text, {";", "\\lor", "\\text{or}"})
    rows = [split(group, {",", "\\text{and}", "\\quad", "\\land"}) for group in groups]
    pairs = [[split(entry, {"="}) for entry in row] for row in rows]
    if not all(len(row) > 1 and all(len(pair) == 2 and is_name(pair[0]) for pair in row) for row in pairs):
        return None
    if any(len({pair[0] for pair in row}) < len(row) for row in pairs):
        return None
    tuples = [
        Reading("group", group, tuple(replace(read(value), name=name) for name, value in _in_order(row)), "named")
        for group, row in zip(groups, pairs, strict=True)
    ]
    return tuples[0] if len(tuples) == 1 else Reading("list", text, tuple(tuples))


def _in_order(pairs: list[list[str]]) -> list[list[str]]:
    """Coordinates x, y, z sorted by name; other names in the order in which they are written."""
    return sorted(pairs) if {name for name, _ in pairs} <= set("xyz") else pairs


def _inequality(text: str) -> Reading | None:
    r"""`x>5` as the interval (5, infinity), `-1\le x\le 2` as [-1, 2], `x\ne 3` as two intervals."""
    if (absolute := _ABSOLUTE.fullmatch(text)) is not None:
        name, relation, bound = absolute.groups()
        if relation in ("<", "\\le"):
            return read(f"-({bound}){relation} {name}{relation} {bound}")
        return read(f"{name}{_FLIPPED[relation]} -({bound})\\lor {name}{relation} {bound}")
    relations = [m.group() for m in _RELATION.finditer(text)]
    members = [part.strip() for part in _RELATION.split(text)]
    if not relations or any(relation not in _FLIPPED for relation in relations) or not all(members):
        return None
    if len(relations) == 2 and _VARIABLE.fullmatch(members[1]) and not members[1].startswith("-"):
        low, name, high = members
        if relations[0] in (">", "\\ge") and relations[1] in (">", "\\ge"):
            low, high, relations = high, low, [_FLIPPED[relations[1]], _FLIPPED[relations[0]]]
        if all(relation in ("<", "\\le") for relation in relations):
            return _interval(text, low, high, relations[0] == "\\le", relations[1] == "\\le", name)
        return None
    if len(relations) != 1:
        return None
    name, relation, bound = members[0], relations[0], members[1]
    if not _VARIABLE.fullmatch(name):
        name, relation, bound = bound, _FLIPPED[relation], name
    if not _VARIABLE.fullmatch(name) or name.lstrip("-") in bound:
        return None
    if name.startswith("-"):
        name, relation, bound = name[1:], _FLIPPED[relation], f"-({bound})"
    if relation == "\\ne":
        parts = (
            _interval(text, "-\\infty", bound, False, False, name),
            _interval(text, bound, "\\infty", False, False, name),
        )
        return Reading("list", text, parts, name=name)
    if relation in (">", "\\ge"):
        return _interval(text, bound, "\\infty", relation == "\\ge", False, name)
    return _interval(text, "-\\infty", bound, False, relation == "\\le", name)


def _interval(text: str, low: str, high: str, has_low: bool, has_high: bool, name: str) -> Reading:
    brackets = ("[" if has_low else "(") + ("]" if has_high else ")")
    return Reading("group", text, (Reading("value", low), Reading("value", high)), brackets, name)


def _conjunction(text: str, parts: list[str]) -> Reading | None:
    r"""`x>3 \text{ and } x<5` as the interval (3, 5): a lower bound below an upper one, of one variable."""
    if len(parts) != 2 or re.search(r"\\lor|\\cup|\bor\b|\{or\}", text):
        return None
    first, second = (_inequality(part) for part in parts)
    if first is None or second is None or first.name != second.name or {first.kind, second.kind} != {"group"}:
        return None
    if first.items[0].text == "-\\infty":
        first, second = second, first
    if first.items[1].text != "\\infty" or second.items[0].text != "-\\infty":
        return None
    low, high = read_number(first.items[0].text), read_number(second.items[1].text)
    if low is None or high is None or low.value >= high.value:
        return None
    return Reading("group", text, (first.items[0], second.items[1]), first.brackets[0] + second.brackets[1], first.name)

r"""Whether an answer equals the gold: compared by text, numbers, words, structure and value, in this order.

A comparison may take long, so it runs in a process with limits (`pool`). What takes only microseconds is in `compare`.
"""

import re
from dataclasses import dataclass

from megatron_octo.grading import algebra, unevaluated
from megatron_octo.grading.compare import decide_quickly
from megatron_octo.grading.notation import normalized
from megatron_octo.grading.numbers import Number, is_unevaluated_division, read_decimal_comma, read_number
from megatron_octo.grading.structure import Reading, is_bracketed, read
from megatron_octo.grading.units import Quantity, split_unit
from megatron_octo.grading.verdict import Decision
from megatron_octo.grading.words import same_words

_MAX_ITEMS = 40
_NUMERAL = re.compile(r"\(?(-?[\dA-Z][\dA-Z ,.]*|[\da-f]{2,}(?=_\{?16\}?$))\)?_\{?(\w+)\}?")
_BASE = re.compile(r"[ (]*(?:\\text\{)?[ (]*base[ -]*\}?[ (]*(\w+)[)} ]*$")
_IN_TEXT = re.compile(r"^(?:\\text)?\{(\w+)\}(?=_)|(?<=_)\{\\text\{\(?(\w+)\)?\}\}")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
          "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_TIME = re.compile(r"0?(\d|1\d|2[0-4]):([0-5]\d)")
_HOUR = re.compile(r"0?(\d|1\d|2[0-4])")


@dataclass(frozen=True)
class _Match:
    """Two equal values: the rule that found it, and whether the answer is unevaluated."""

    rule: str
    is_unevaluated: bool = False


def decide(answer: str, gold: str) -> Decision:
    """Whether an answer equals the gold. May take long, and may raise any error that a parser raises.

    Args:
        answer: the text in the box.
        gold: the gold answer in LaTeX, with or without dollar signs.
    """
    if (decision := decide_quickly(answer, gold)) is not None:
        return decision
    text, wanted = normalized(answer), normalized(gold)
    if (match := _number_with_comma(text, wanted)) is None:
        match = _same(read(text), read(wanted))
    if match is None and "," in wanted and re.search("[,;]", text):
        match = _same(read(text, thousands=False), read(wanted, thousands=False))
    if match is None:
        return Decision(False, "value")
    return Decision(True, match.rule, ("unevaluated",) if match.is_unevaluated else ())


def _number_with_comma(text: str, gold: str) -> _Match | None:
    """`3,14` against `3.14`: a decimal comma, if the other side is one number."""
    for comma, other in ((text, gold), (gold, text)):
        left, right = split_unit(comma), split_unit(other)
        number, plain = read_decimal_comma(left.value), read_number(right.value)
        if number is not None and plain is not None and number.equals(plain) and left.agrees(right):
            return _Match("number")
    return None


def _same(answer: Reading, gold: Reading) -> _Match | None:
    if answer.name and gold.name and answer.name != gold.name and gold.kind == "value":
        return _same_named_values(answer, gold)
    if answer.others or gold.others:
        return _same_chain(answer, gold)
    if "equation" in (answer.kind, gold.kind):
        return _same_equation(answer, gold)
    if answer.kind == gold.kind == "value":
        return _same_value(answer.text, gold.text)
    if answer.kind == "list" and len(answer.items) == 1 and gold.kind == "value":
        return _same(answer.items[0], gold)
    if gold.kind == "list" and len(gold.items) == 1 and answer.kind == "value":
        return _same(answer, gold.items[0])
    if len(answer.items) != len(gold.items) or len(gold.items) > _MAX_ITEMS or "value" in (answer.kind, gold.kind):
        return None
    if answer.kind == gold.kind == "list":
        return _same_in_any_order(answer.items, gold.items)
    if "named" in (answer.brackets, gold.brackets):
        return _same_named(answer, gold)
    if answer.kind == gold.kind == "group" and answer.brackets != gold.brackets:
        return None
    group = answer if answer.kind == "group" else gold
    if answer.kind != gold.kind and (group.brackets != "()" or "\\{" in (answer.text + gold.text)):
        return None  # a list without brackets may be a tuple; a set may not
    if group.name and answer.name and gold.name and answer.name != gold.name:
        return None
    return _all([_same(a, b) for a, b in zip(answer.items, gold.items, strict=True)])


def _same_named_values(answer: Reading, gold: Reading) -> _Match | None:
    """`y=x` against `x=y`: equations that were read as values with names."""
    if answer.kind != "value" or answer.others or gold.others:
        return None
    is_same = algebra.same_equation(f"{answer.name}={answer.text}", f"{gold.name}={gold.text}")
    return _Match("equation") if is_same else None


def _same_in_any_order(answers: tuple[Reading, ...], golds: tuple[Reading, ...]) -> _Match | None:
    left, matches = list(golds), []
    for answer in answers:
        for gold in left:
            if (match := _same(answer, gold)) is not None:
                matches.append(match)
                left.remove(gold)
                break
        else:
            return None
    return _all([*matches]) if matches else None


def _same_named(answer: Reading, gold: Reading) -> _Match | None:
    """`x=1,y=2` against `y=2,x=1`, `(1,2)` or `1,2`."""
    if answer.brackets == gold.brackets:
        return _same_in_any_order(answer.items, gold.items)
    if {answer.kind, gold.kind} == {"group"} and {answer.brackets, gold.brackets} != {"named", "()"}:
        return None
    match = _all([_same(a, b) for a, b in zip(answer.items, gold.items, strict=True)])
    if match is not None or "list" not in (answer.kind, gold.kind):
        return match
    return _same_in_any_order(answer.items, gold.items)


def _all(matches: list[_Match | None]) -> _Match | None:
    found = [match for match in matches if match is not None]
    if len(found) < len(matches) or not found:
        return None
    return _Match("structure", any(match.is_unevaluated for match in found))


def _same_chain(answer: Reading, gold: Reading) -> _Match | None:
    """`x=3+2=5`: every member of a chain must equal the gold, and the last one must be evaluated."""
    last = _same(_without_chain(answer), _without_chain(gold))
    if last is None or not all(_same(read(member), _without_chain(gold)) for member in answer.others):
        return None
    return last


def _without_chain(reading: Reading) -> Reading:
    return Reading(reading.kind, reading.text, reading.items, reading.brackets, reading.name)


def _same_equation(answer: Reading, gold: Reading) -> _Match | None:
    if gold.kind == "equation":
        if answer.kind == "value" and answer.name:
            answer = Reading("equation", f"{answer.name}={answer.text}")
        if answer.kind != "equation":
            return None
        if answer.text == gold.text or algebra.same_equation(answer.text, gold.text):
            return _Match("equation")
        return None
    if gold.kind == "value" and gold.name and algebra.same_equation(answer.text, f"{gold.name}={gold.text}"):
        return _Match("equation")
    first, *_, last = answer.items  # a+b=5: the expression that was asked for, and its value
    if gold.name or gold.kind != "value" or not (parsed := algebra.parsed(first.text)) or not parsed.free_symbols:
        return None
    is_multiple = read_number(re.split(r"[a-zA-Z\\]", first.text)[0] or "x") is not None
    match = _same_value(last.text, gold.text) if len(answer.items) == 2 and not is_multiple else None
    return match and _Match("equation", match.is_unevaluated)


def _same_value(answer: str, gold: str) -> _Match | None:
    if answer == gold:
        return _Match("text")
    if (numeral := _same_numeral(answer, gold)) is not None:
        return _Match("numeral") if numeral else None
    if (words := same_words(answer, gold)) is not None:
        return _Match("words") if words else None
    left, right = split_unit(answer).scaled(), split_unit(gold).scaled()
    if (clocks := _same_clock(left, right)) is not None:
        return _Match("time") if clocks else None
    if is_bracketed(left.value) != is_bracketed(right.value):
        return None
    if not left.agrees(right) and not (left.unit == "percent" or right.unit == "percent"):
        return None
    if left.value == right.value and left.agrees(right):
        return _Match("unit")
    a, b = read_number(left.value), read_number(right.value)
    if a is not None and b is not None:
        return _same_number(a, b, left.unit, right.unit, left.value, right.value)
    if not left.agrees(right) or _is_spaced(left.value) or _is_spaced(right.value):
        return None
    if not algebra.equal(left.value, right.value) and not _is_rounded(a, b, left.value, right.value):
        return None
    return _Match("value", _is_unevaluated(left.value, right.value))


def _same_clock(answer: Quantity, gold: Quantity) -> bool | None:
    """Compare times of day, which are not ratios. None if neither side is one."""
    clocks = [_clock(side) for side in (answer, gold)]
    if not any(_TIME.fullmatch(side.value) for side in (answer, gold)):
        return None
    return clocks[0] is not None and clocks[0] == clocks[1] and answer.agrees(gold)


def _clock(side: Quantity) -> tuple[str, str] | None:
    """Hour and minute of `9:30`, or of `9` with AM or PM."""
    if (time := _TIME.fullmatch(side.value)) is not None:
        return time[1], time[2]
    hour = _HOUR.fullmatch(side.value) if side.unit in ("am", "pm") else None
    return (hour[1], "00") if hour else None


def _same_number(a: Number, b: Number, unit: str, gold_unit: str, text: str, gold: str) -> _Match | None:
    values = [(a, b)]
    if (unit == "percent") != (gold_unit == "percent"):
        hundredth = Number((a if unit == "percent" else b).value / 100)
        other_unit = gold_unit if unit == "percent" else unit
        values = [(a, b)] if not other_unit else []
        values.append((hundredth, b) if unit == "percent" else (a, hundredth))
        values = values if not other_unit else []
    if not any(x.equals(y) for x, y in values):
        return None
    return _Match("number", is_unevaluated_division(text) and not is_unevaluated_division(gold))


def _is_rounded(a: Number | None, b: Number | None, answer: str, gold: str) -> bool:
    r"""Whether one side is a decimal of six digits or more, rounded from the other: 3.14159 from `\pi`."""
    number, expression = (a, gold) if a is not None else (b, answer)
    if number is None or number.unit is None or (a is None) == (b is None):
        return False
    value = algebra.rational_near(expression)
    return value is not None and number.is_near(value)


def _is_unevaluated(answer: str, gold: str) -> bool:
    if unevaluated.is_unevaluated_text(answer, gold):
        return True
    found, wanted = algebra.parsed(answer), algebra.parsed(gold)
    if found is None or wanted is None:
        return False
    if algebra.letters(found) - algebra.letters(wanted):
        return True  # variables that cancel
    if read_number(gold) is not None and unevaluated.combines_numbers(found):
        return True
    return unevaluated.is_unevaluated(found) and not unevaluated.is_unevaluated(wanted)


def _same_numeral(answer: str, gold: str) -> bool | None:
    """Compare numerals with a base: digits and base must be equal. None if neither has a base."""
    numerals = [_NUMERAL.fullmatch(_BASE.sub(r"_{\1}", _IN_TEXT.sub(r"\1\2", text))) for text in (answer, gold)]
    if not any(numerals):
        return None
    if not all(numerals):
        return None if any(n is not None and not re.search(r"\d", n[1]) for n in numerals) else False
    plain = []
    for numeral in numerals:
        digits, base = numeral[1], numeral[2]  # type: ignore[index]
        plain.append((re.sub(r"[ ,](?=\d{3})", "", digits).lstrip("0").upper(), _BASES.get(base.lower(), base)))
    return plain[0] == plain[1]


def _is_spaced(text: str) -> bool:
    return re.search(r"\d \d", text) is not None

r"""Units: words and signs next to a value: `5\text{ cm}`, `10 weeks`, `\$5`, `50\%`, `90^\circ`, `10\text{ AM}`."""

import re
from dataclasses import dataclass

from megatron_octo.grading.numbers import read_number

_ALIASES = {
    "cm": "centimeter centimetre cms", "m": "meter metre", "km": "kilometer kilometre kms",
    "mm": "millimeter millimetre", "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "kg": "kilogram kgs kilo", "g": "gram gm", "mg": "milligram", "lb": "pound lbs", "oz": "ounce",
    "s": "second sec", "min": "minute mins", "h": "hour hr hrs", "day": "", "week": "wk", "month": "",
    "year": "yr yrs", "l": "liter litre", "ml": "milliliter millilitre", "gal": "gallon",
    "mph": "miles/hour mi/h mi/hr", "km/h": "kmh kph kmph km/hr", "m/s": "mps", "degree": "deg degrees",
    "dollar": "usd buck", "cent": "", "percent": "pct percentage", "unit": "", "am": "a.m", "pm": "p.m",
    "c": "celsius", "f": "fahrenheit", "person": "people", "man": "men", "woman": "women", "child": "children",
    "hz": "hertz", "j": "joule", "rad": "radian", "noon": "", "euro": "", "rupee": "rs", "yen": "", "acre": "",
    "ha": "hectare", "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte", "rev": "revolution", "rpm": "",
    "pt": "pint", "qt": "quart", "kw": "kilowatt", "kj": "kilojoule", "pa": "pascal", "kpa": "",
}  # fmt: skip
_NAMES = {word: name for name, words in _ALIASES.items() for word in [name, *words.split()]}
_COMPASS = {"N": "north", "S": "south", "E": "east", "W": "west"}
_TELLING = {"am", "pm", "noon", "midnight", "north", "south", "east", "west", "northeast", "northwest", "southeast",
            "southwest"}  # fmt: skip
_SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third", "quarter",
           "fourth", "fifth", "score", "pair"}  # fmt: skip
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_OPERATORS = {
    "over", "times", "plus", "minus", "divided", "squared", "cubed", "mod", "modulo", "base", "to", "power", "or",
    "and", "not", "if", "for", "where", "when", "is", "no", "factorial", "choose", "with", "but", "then", "else",
    "otherwise", "than", "by", "remainder", "from", "sqrt", "root", "degc", "degf",
}  # fmt: skip
_PLAIN_UNITS = {name for name in _NAMES if len(name) > 1} - {"in", "am", "pm"} | {"sq", "cu"}
_TAIL = re.compile(r"((?:\s*(?:\\text\{[^{}]*\}|\\cdot(?=\\text)|/(?=\\text))(?:\^\{-?[1-9]\})?)+)$")
_PLAIN_TAIL = re.compile(
    r"(?:(?<![\\a-zA-Z{])|(?<=[a-zA-Z])(?= ))(\s?)([a-zA-Z][a-zA-Z./]*(?: [a-zA-Z][a-zA-Z.]*)*)(\^\{[23]\})?$"
)
_SHORTENED = re.compile(r"\b(sq|cu)\.\s*")
_SQUARE = re.compile(r"\b(?:square|sq\.?)\s+(\w+)|\b(\w+)\s+squared\b")
_CUBIC = re.compile(r"\b(?:cubic|cu\.?)\s+(\w+)|\b(\w+)\s+cubed\b")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![a-zA-Z])")  # their degrees are not a unit of the value
_VOWEL = re.compile(r"[aeiouy]")


@dataclass(frozen=True)
class Quantity:
    """A value and its unit."""

    value: str
    unit: str = ""

    def scaled(self) -> "Quantity":
        r"""`5\text{ million}` as 5000000. A value that is not a plain number stays as it is."""
        words = self.unit.split()
        scales = [word for word in words if word in _POWERS]
        number = read_number(self.value) if len(scales) == 1 else None
        if number is None:
            return self
        return Quantity(f"{number.value * 10 ** _POWERS[scales[0]]}", " ".join(w for w in words if w not in scales))

    def agrees(self, gold: "Quantity") -> bool:
        """Whether the units allow equal answers. A side without a unit agrees unless the other's changes the value."""
        if self.unit == gold.unit:
            return True
        if not self.unit:
            return not set(gold.unit.split()) & (_TELLING | _SCALES)
        if not gold.unit:
            return not set(self.unit.split()) & (_SCALES | _OPERATORS)
        mine, theirs = (set(unit.split()) for unit in (self.unit, gold.unit))
        return bool(mine & theirs) and (mine <= theirs or theirs <= mine) and not (mine ^ theirs) & (_TELLING | _SCALES)


def split_unit(text: str) -> Quantity:
    r"""The value in normalized text, and its unit in one spelling: `10 cm^{2}` gives 10 and `cm^2`.

    Plain letters are a unit if they are a known unit of two letters or more, or a word. `3t` and `3xyz` have no unit.
    """
    text = _SHORTENED.sub(r"\1 ", text)
    for sign, unit in (
        ("\\$", "dollar"),
        ("\\text{euros}", "euro"),
        ("\\text{pounds}", "lb"),
        ("\\text{rupees}", "rupee"),
    ):
        head, found, rest = text.partition(sign)
        if found and head in ("", "-", "+") and rest:
            inner = split_unit(rest)
            return Quantity(head + inner.value, unit if inner.unit in ("", "dollar") else f"{unit} {inner.unit}")
    if text.endswith("\\%"):
        return Quantity(text[:-2], "percent")
    if text.endswith("\\$"):
        return Quantity(text[:-2], "dollar")
    if text.endswith("%"):
        return Quantity(text[:-1], "percent")
    if (tail := _TAIL.search(text)) is not None and tail.start() > 0:
        return _joined(text[: tail.start()], _spelled(tail.group()))
    if _TRIGONOMETRIC.search(text):
        return Quantity(text)
    if text.endswith("^\\circ"):
        return Quantity(text[: -len("^\\circ")].replace("^\\circ", ""), "degree")
    if "^\\circ-" in text or "^\\circ+" in text:
        return Quantity(text.replace("^\\circ", ""), "degree")
    if (scale := re.fullmatch(r"(.*\d)\^\\circ ?([CFNSEW])", text)) is not None:
        return Quantity(scale[1], f"degree {_COMPASS.get(scale[2], _spelled(scale[2]))}")
    if (tail := _PLAIN_TAIL.search(text)) is not None and tail.start() > 0 and text[tail.start() - 1] not in "_^":
        words, power = tail[2], tail[3] or ""
        if _are_words(words, bool(tail[1])) and not words.startswith("."):
            return _joined(text[: tail.start()], _spelled(words + power))
    return Quantity(text)


def _joined(head: str, unit: str) -> Quantity:
    inner = (
        split_unit(head) if head.endswith(("\\%", "^\\circ")) or head.startswith(("\\$", "-\\$")) else Quantity(head)
    )
    if inner.unit == "degree":
        unit = _COMPASS.get(unit, unit)
    return Quantity(inner.value, " ".join(part for part in (inner.unit, unit) if part))


def _are_words(text: str, is_apart: bool) -> bool:
    words = text.rstrip(".").lower().replace("/", " ").split()
    if not words or words[0] in _OPERATORS or words[-1] in _OPERATORS:
        return False
    if words[0] in ("am", "pm", "a.m", "p.m") or (words[0] == "in" and is_apart):
        return True
    if words[0] in _PLAIN_UNITS or words[0].removesuffix("s") in _PLAIN_UNITS:
        return True
    return is_apart and len(words[0]) >= 3 and text[0].islower() and bool(_VOWEL.search(words[0]))


def _spelled(text: str) -> str:
    """A unit in one spelling: names, one number, square and cubic as powers."""
    text = (
        re.sub(r"\\text\{([^{}]*)\}|\\cdot", lambda m: f" {m[1] or ''} ", text)
        .replace("-", " ")
        .replace("(", " ")
        .replace(")", " ")
    )
    text = re.sub(r"\s*\^\{(-?\d)\}", r"^\1", text)
    single = text.strip()
    text = single if len(single) == 1 and single in "MmSsNnEeWw" and single.isupper() else text.lower()
    text = _SQUARE.sub(lambda m: f"{m[1] or m[2]}^2", _CUBIC.sub(lambda m: f"{m[1] or m[2]}^3", text))
    text = re.sub(r"\b(?:per|an?(?= (?:hour|minute|second|day|week|year|month|mile|gallon)))\b", "/", text)
    text = re.sub(r"\s*/\s*", "/", text)
    return " ".join(_name(word) for word in text.split() if word not in ("the", "of", "a"))


def _name(word: str) -> str:
    base, caret, power = word.partition("^")
    parts = [_one_name(part) for part in base.split("/")]
    joined = "/".join(parts)
    return _NAMES.get(joined, joined) + (caret + power)


def _one_name(word: str) -> str:
    word = word.rstrip(".,")
    if word in _NAMES:
        return _NAMES[word]
    single = word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word
    return _NAMES.get(single, single)

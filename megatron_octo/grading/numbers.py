r"""Plain numbers, read exactly: integers, decimals, fractions, mixed numbers, percent, powers of ten."""

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_EXPONENT = 400
"""Larger powers of ten are left to sympy, in a process with limits."""
SIGNIFICANT_DIGITS = 6
"""A decimal with fewer digits does not count as 1/3 or pi, rounded."""

_WHOLE = r"[1-9]\d{0,2}(?:(?:,|\{,\}| )\d{3})+|[1-9]\d{0,2}(?:\.\d{3}){2,}|\d+"
_DECIMAL = rf"(?:{_WHOLE})?\.\d+|(?:{_WHOLE})\.?"
_NUMBER = re.compile(rf"(?P<sign>[+-]*)(?P<digits>{_DECIMAL})")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?")
_FRACTION = re.compile(
    r"([+-]*)\\frac\{([+-]?[\d., ]+|[+-]?\d+(?:\{,\}\d{3})+)\}\{([+-]?[\d.]+)\}|([+-]*)\(?([+-]?[\d.]+)/([\d.]+)\)?"
)
_MIXED = re.compile(r"([+-]?)(\d+)(?: ?\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+))")
_SCIENTIFIC = re.compile(
    rf"(?P<mantissa>[+-]?(?:{_DECIMAL}))(?:\\times|\\cdot)\s?10\^\{{(?P<power>[+-]?\d+)\}}|(?P<plain>[+-]?\d+\.?\d*)[eE](?P<e>[+-]?\d+)"
)
_TEN = re.compile(r"([+-]?)10\^\{([+-]?\d+)\}")
_DIVISION = re.compile(r"[+-]*(?:\\frac\{(-?\d+)\}\{(-?\d+)\}|\(?(-?\d+)/(\d+)\)?)")
_DECIMAL_COMMA = re.compile(r"([+-]?)(\d+|\d{1,3}(?:[. ]\d{3})+)(?:,|\{,\})(\d+)")


@dataclass(frozen=True)
class Number:
    """A number as it was written."""

    value: Fraction
    unit: Fraction | None = None
    """The value of 1 in the last decimal place; None for integers and fractions, which are exact."""
    digits: int = 0
    """Significant digits of a decimal."""

    def equals(self, other: "Number") -> bool:
        """Whether two numbers are equal: exactly, or because one is the other as a decimal of six digits or more."""
        return self.value == other.value or self.rounds(other) or other.rounds(self)

    def rounds(self, other: "Number") -> bool:
        """Whether this is a decimal, cut or rounded from a longer decimal or from a fraction with no finite one."""
        is_longer = other.unit is not None and self.unit is not None and other.unit < self.unit
        return (is_longer or not _is_finite_decimal(other.value)) and self.is_near(other.value)

    def is_near(self, value: Fraction) -> bool:
        """Whether this is a decimal of enough digits: the value rounded to its last place, or cut there toward zero."""
        if self.unit is None or self.digits < SIGNIFICANT_DIGITS:
            return False
        is_rounded = abs(self.value - value) <= self.unit / 2
        return is_rounded or self.value == int(value / self.unit) * self.unit


def read_number(text: str) -> Number | None:
    """The number that normalized text is, or None. Nothing is computed: `3+4` is not a number."""
    if len(text) > _MAX_EXPONENT:
        return None
    if (found := _NUMBER.fullmatch(text)) is not None:
        return _decimal(found["sign"].replace("+", ""), found["digits"])
    if (found := _FRACTION.fullmatch(text)) is not None:
        sign, above, below = (found[i] if found[i] is not None else found[i + 3] for i in (1, 2, 3))
        top, bottom = read_number(above), read_number(below)
        if top is None or bottom is None or bottom.value == 0:
            return None
        return Number(top.value / bottom.value * (-1) ** sign.count("-"))
    if (found := _MIXED.fullmatch(text)) is not None:
        above, below = int(found[3] or found[5]), int(found[4] or found[6])
        if not 0 < above < below:
            return None
        return Number((int(found[2]) + Fraction(above, below)) * (-1 if found[1] == "-" else 1))
    if (found := _REPEATING.fullmatch(text)) is not None:
        sign, whole, fixed, period = found.groups()
        value = Fraction(
            int(whole + fixed + period or "0") - int(whole + fixed or "0"), (10 ** len(period) - 1) * 10 ** len(fixed)
        )
        return Number(-value if sign == "-" else value)
    return _power_of_ten(text)


def _power_of_ten(text: str) -> Number | None:
    if (found := _TEN.fullmatch(text)) is not None:
        mantissa: Number | None = Number(Fraction(-1 if found[1] == "-" else 1))
        power = found[2]
    elif (found := _SCIENTIFIC.fullmatch(text)) is not None:
        mantissa, power = read_number(found["mantissa"] or found["plain"]), found["power"] or found["e"]
    else:
        return None
    if mantissa is None or abs(int(power)) > _MAX_EXPONENT:
        return None
    scale = Fraction(10) ** int(power)
    return Number(mantissa.value * scale, None if mantissa.unit is None else mantissa.unit * scale, mantissa.digits)


def is_unevaluated_division(text: str) -> bool:
    r"""Whether text is a fraction of whole numbers whose value is a whole number: `\frac{6}{2}`."""
    if (found := _DIVISION.fullmatch(text)) is None or len(text) > 300:
        return False
    above, below = int(found[1] or found[3]), int(found[2] or found[4])
    return below != 0 and above % below == 0


def read_decimal_comma(text: str) -> Number | None:
    """`3,14` and `1.234,5` as decimals, where one number is expected; `3,14` may be a list elsewhere. Not `1,000`."""
    found = _DECIMAL_COMMA.fullmatch(text)
    if found is None or (len(found[3]) == 3 and found[2] != "0" and not re.search(r"[. ]", found[2])):
        return None
    return _decimal(found[1].replace("+", ""), re.sub(r"[. ]", "", found[2]) + "." + found[3])


def _decimal(sign: str, digits: str) -> Number | None:
    if len(sign) > 1:
        return None
    plain = re.sub(r"[ ,{}]", "", digits)
    if plain.count(".") > 1:
        plain = plain.replace(".", "")
    whole, _, places = plain.partition(".")
    value = Fraction(int((whole + places) or "0"), 10 ** len(places))
    unit = Fraction(1, 10 ** len(places)) if places else None
    return Number(-value if sign else value, unit, len((whole + places).lstrip("0")))


def _is_finite_decimal(value: Fraction) -> bool:
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1

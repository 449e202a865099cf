"""Equality in value: expressions are read by math-verify's LaTeX grammar and compared as numbers of many digits.

Nothing that a model writes is executed: the grammar only builds expressions, and sympy's `parse_expr` is not used.
Tolerances are relative, never absolute: 2^{-99} is not 2^{-98}.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import latex2sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]
from math_verify import LatexExtractionConfig, parse, verify

_DEGREE_BESIDE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?|(?<![a-zA-Z\\])[a-zA-Z]|\\[a-z]+)\s?\^\\circ ?")
_BESIDE = re.compile(r"\)(?=[\d(\[]|\\frac)|\](?=[\d(\[])|\d(?=[(\[])|\d ?(?=\\frac)")  # the grammar adds (3)(4)
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?!\d)")
_MIXED = re.compile(r"(?<![\w.}^])(\d+) ?\\frac\{(\d+)\}\{(\d+)\}")
_FIGURE = re.compile(r"\\(triangle|angle) ?\{?([A-Z]{2,})(?![a-zA-Z])\}?")
_RELATIONS = re.compile(r"\\equiv|\\approx|\\sim|=")
_UNREADABLE = re.compile(
    r"\d \d|\d\{|(?:^|[-+*/(=])\{\d*\}[{\d]"  # numbers side by side, which the grammar would add
    r"|\\text|\\begin|[\d)]_|\.\.|\\ldots|\\cdots|[^\x00-\x7f]|(?<!\\)%|[&'\"?@#]"
)
_FIRST_DIGITS, _LAST_DIGITS = 40, 1000
_POINTS = 4


@lru_cache(maxsize=512)
def parsed(text: str) -> Any:
    """Normalized text as an unevaluated sympy expression; None if it cannot be read."""
    if not text or _UNREADABLE.search(text):
        return None
    text = _DEGREE_BESIDE.sub(_radians, _FIGURE.sub(_one_symbol, text)).replace(")^\\circ", ")\\cdot\\frac{\\pi}{180}")
    text = _MIXED.sub(
        lambda m: f"\\frac{{{int(m[1]) * int(m[3]) + int(m[2])}}}{{{m[3]}}}" if int(m[2]) < int(m[3]) else m[0], text
    )
    text = _BESIDE.sub(r"\g<0>\\cdot ", text)
    text = _DECIMAL.sub(lambda m: f"\\frac{{{int(m[1] + m[2])}}}{{1{'0' * len(m[2])}}}", text.replace("{,}", ""))
    try:
        read = latex2sympy(
            text, conversion_config=ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
        )
    except Exception:  # the grammar's own errors are plain exceptions
        return None
    return read if isinstance(read, sympy.Basic) else None


def _one_symbol(points: re.Match[str]) -> str:
    """A triangle or an angle as one symbol: its points are not factors. Angle CBA becomes ABC."""
    shape, name = points.groups()
    return f"T_{{{name}}}" if shape == "triangle" else f"G_{{{min(name, name[::-1])}}}"


def _radians(degrees: re.Match[str]) -> str:
    if not degrees[1].isdigit():
        return f"(\\frac{{{degrees[1]}\\pi}}{{180}})"
    value = Fraction(int(degrees[1]), 180)  # in lowest terms, so that 180 degrees do not read as an unevaluated 180/180
    return f"(\\frac{{{value.numerator}\\pi}}{{{value.denominator}}})" if value.denominator > 1 else f"({value}\\pi)"


def equal(answer: str, gold: str) -> bool:
    """Whether two expressions have the same value; with variables, at every point. May take long."""
    found, wanted = parsed(answer), parsed(gold)
    if found is None or wanted is None:
        return False
    if not all(isinstance(side, sympy.Expr) for side in (found, wanted)):
        return _verified(answer, gold)
    found, wanted = (side.doit() if side.has(sympy.Derivative, sympy.Integral) else side for side in (found, wanted))
    found, wanted = (
        side.xreplace({sympy.Symbol("i"): sympy.I}) if "i" in map(str, side.free_symbols) else side  # not an index
        for side in (found, wanted)
    )
    if any(side.has(sympy.zoo, sympy.nan) for side in (found, wanted)):
        return False
    if any(side.has(sympy.oo, -sympy.oo) for side in (found, wanted)):
        return bool(found == wanted)
    if found == wanted:
        return True
    if found.free_symbols != wanted.free_symbols and not _has_all_symbols(found, wanted):
        return False
    functions = found.atoms(sympy.core.function.AppliedUndef) | wanted.atoms(sympy.core.function.AppliedUndef)
    if functions or (wanted.has(sympy.Derivative, sympy.Integral, sympy.Sum) and wanted.free_symbols):
        return _verified(answer, gold)
    return _same_values(found, wanted)


def _has_all_symbols(found: Any, wanted: Any) -> bool:
    """Whether the answer has all variables of the gold. It may have more, which cancel: x+5-x."""
    return bool(wanted.free_symbols <= found.free_symbols)


def same_equation(answer: str, gold: str) -> bool:
    """Whether one equation is a multiple of the other: `2x+4y=8` and `x+2y=4`. Each must have one equals sign."""
    sides = [[parsed(part) for part in text.split("=")] for text in (answer, gold)]
    if not all(len(side) == 2 and all(isinstance(part, sympy.Expr) for part in side) for side in sides):
        return False
    found, wanted = (side[0] - side[1] for side in sides)
    if found.free_symbols != wanted.free_symbols:
        return False
    ratio = sympy.simplify(found.doit() / wanted.doit())
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def _verified(answer: str, gold: str) -> bool:
    """math-verify's own comparison, for expressions without a numeric value: undefined functions, relations, sets."""
    if sorted(re.findall("[A-Z]", answer)) != sorted(re.findall("[A-Z]", gold)):
        return False  # math-verify takes R for r
    if set(_RELATIONS.findall(answer)) != set(_RELATIONS.findall(gold)) and _RELATIONS.search(answer):
        return False  # math-verify takes the right side of 5=3
    latex = [LatexExtractionConfig(boxed_match_priority=0)]
    found, wanted = (parse(f"\\boxed{{{text}}}", latex, "no_fallback", parsing_timeout=None) for text in (answer, gold))
    if re.search(r"\b(?:oo|zoo|nan)\b", f"{found}") and not re.search(r"\b(?:oo|zoo|nan)\b", f"{wanted}"):
        return False
    return bool(
        found and wanted and verify(wanted, found, float_rounding=15, numeric_precision=50, timeout_seconds=None)
    )


def _same_values(found: Any, wanted: Any) -> bool:
    symbols = sorted(found.free_symbols | wanted.free_symbols, key=str)
    compared = 0
    for point in range(_POINTS if symbols else 1):
        at = {symbol: _coordinate(point, i) for i, symbol in enumerate(symbols)}
        same = _same_number(found.xreplace(at), wanted.xreplace(at))
        if same is False:
            return False
        compared += same is True
    return compared > (1 if symbols else 0)


def _coordinate(point: int, i: int) -> Any:
    """Values at which nothing simple cancels: of both signs, below and above 1, none a whole number."""
    prime = sympy.prime(5 * point + i + 4)
    value = sympy.Rational(int(prime) * (7 if point % 2 else 1), 13 + 4 * i)
    return -value if point in (1, 2) and i % 2 == point - 1 else value


def _same_number(found: Any, wanted: Any) -> bool | None:
    """Whether two expressions without variables are the same number; None if either has no value."""
    a, b = found.doit(), wanted.doit()
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    for digits in (_FIRST_DIGITS, _LAST_DIGITS):
        x, y = _evaluated(a, digits), _evaluated(b, digits)
        if x is None or y is None:
            return None
        size = max(abs(x), abs(y))
        if abs(x - y) > size * sympy.Float(10, 30) ** (-digits // 2):
            return False
    return True


def _evaluated(expression: Any, digits: int) -> Any:
    """The value to a number of digits. A part of which no digit is certain is zero, as in sin(pi) or sqrt(4)-2."""
    value = expression.evalf(digits, maxn=4 * digits)
    if not value.is_number or not value.is_finite or value.has(sympy.nan):
        return None
    parts = [sympy.Integer(0) if part.is_Float and part._prec < 20 else part for part in value.as_real_imag()]
    return parts[0] + sympy.I * parts[1]


def letters(expression: Any) -> set[str]:
    """The variables of an expression. `i` is not one."""
    return {str(symbol) for symbol in expression.free_symbols} - {"i"}


def rational_near(text: str) -> Fraction | None:
    """The value of an expression without variables, to forty digits; None if it has none or is not real."""
    expression = parsed(text)
    if expression is None or not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = _evaluated(expression, _FIRST_DIGITS)
    if value is None or not value.is_real:
        return None
    near = sympy.Rational(value)
    return Fraction(int(near.p), int(near.q))

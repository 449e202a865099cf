r"""Unevaluated expressions: `3+4-2`, `\sum_{k=1}^{10} k`, `\gcd(12,18)`, where the gold is a value.

docs/grading.md has the line between the two. Forms that people write as a final answer count as evaluated:
`\frac{9}{2}`, `2\sqrt{2}`, `2^{10}`, `3\cdot 10^5`, `1+2i`, `\sin 30^\circ`. An operation on plain numbers that gives a
plain number does not.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sympy  # type: ignore[import-untyped]

from megatron_octo.grading.numbers import is_unevaluated_division

_OPERATORS = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|gcd|lcm|binom|choose|max|min|lfloor|lceil|det|bmod|pmod|mod|log|ln|lg|arcsin|arccos"
    r"|arctan|cdots|dots|dotsb|ldots|div)(?![a-zA-Z])|(?<=[\d)}a-zA-Z])!|\||\\frac\{d\}\{d"
)
_ALIKE = {"\\lg": "\\log", "\\ln": "\\log", "\\dots": "\\cdots", "\\ldots": "\\cdots", "\\dotsb": "\\cdots"}
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![a-zA-Z])")
_MAX_DIGITS = 9
"""Numbers that would be longer are written as powers by people too: 1+3^{-40}."""


def is_unevaluated_text(text: str, gold: str) -> bool:
    r"""Whether text has symbols for work to do that the gold lacks: `\gcd`, `5!`, `\log_2 8`, `\frac{6}{2}`."""
    operators, known = ({_ALIKE.get(found, found) for found in _OPERATORS.findall(side)} for side in (text, gold))
    if operators - known:
        return True
    if len(_TRIGONOMETRIC.findall(text)) > 1 and not _TRIGONOMETRIC.search(gold):
        return True  # sin 30 is a value, sin 30 + cos 60 is a sum
    return is_unevaluated_division(text) and not is_unevaluated_division(gold)


def is_unevaluated(expression: Any) -> bool:
    """Whether plain numbers or like terms could be combined anywhere in a sympy expression, which is not simplified."""
    if expression.is_Add and _has_like_terms(expression):
        return True
    if expression.is_Mul and _has_unevaluated_product(expression):
        return True
    if expression.is_Pow and _is_unevaluated_power(expression):
        return True
    return any(is_unevaluated(argument) for argument in expression.args)


def combines_numbers(expression: Any) -> bool:
    r"""Whether a sum or product has parts other than numbers and whole powers: `\sqrt{8}\cdot\sqrt{2}`.

    It is unevaluated where the gold is a plain number.
    """
    if not (expression.is_Add or expression.is_Mul):
        return False
    return any(not (atom.is_Rational or _is_whole_power(atom)) for atom in _parts(expression))


def _parts(expression: Any) -> Iterator[Any]:
    if expression.is_Add or expression.is_Mul:
        for argument in expression.args:
            yield from _parts(argument)
    elif expression.is_Pow and expression.exp.is_Integer and not expression.base.is_Rational:
        yield from _parts(expression.base)
    else:
        yield expression


def _is_whole_power(power: Any) -> bool:
    return bool(power.is_Pow and power.base.is_Rational and power.exp.is_Integer)


def _has_like_terms(total: Any) -> bool:
    terms = list(_terms(total))
    numbers = [term for term in terms if _is_plain(term)]
    if len(numbers) > 1:
        value = sympy.Add(*(number.doit() for number in numbers))
        if value.is_Rational and max(abs(value.p), value.q) < 10**_MAX_DIGITS:
            return True
    if sum(_is_product_with_sum(term) for term in terms) > 1:
        return True
    cores: Counter[Any] = Counter()
    for term in terms:
        evaluated = term if term.free_symbols else term.doit()  # sqrt(50) is 5 sqrt(2)
        cores[sympy.Mul(*(factor for factor in _factors(evaluated) if not factor.is_Rational))] += 1
    return any(count > 1 for core, count in cores.items() if core != 1)


def _is_product_with_sum(term: Any) -> bool:
    """Whether a term is like (x+1)(x+2) or sqrt(2+sqrt(3)): a sum of two of them is unevaluated. Not 1/(x+1)."""
    factors = [factor for factor in _factors(term) if not factor.is_Rational]
    with_sum = [
        f for f in factors if f.is_Add or (f.is_Pow and f.base.is_Add and f.exp.is_positive and not f.free_symbols)
    ]
    return bool(with_sum) and (len(list(_factors(term))) > 1 or not term.free_symbols)


def _terms(total: Any) -> Iterator[Any]:
    """The terms of a sum, and of bracketed sums that are added to it or subtracted."""
    for term in total.args:
        factors = [factor for factor in _factors(term) if abs(factor) != 1]
        if len(factors) == 1 and factors[0].is_Add:
            yield from _terms(factors[0])
        else:
            yield term


def _is_plain(term: Any) -> bool:
    """Whether a term is a plain number; powers of numbers and of i are. A huge power is not, and is not computed."""
    if term.is_Rational:
        return True
    if term.is_Pow and term.exp.is_Integer:
        if str(term.base) == "i":
            return abs(int(term.exp)) > 1
        return bool(term.base.is_Rational) and _digits(term) < _MAX_DIGITS
    return bool(term.is_Mul and all(_is_plain(factor) for factor in term.args))


def _digits(power: Any) -> float:
    return abs(int(power.exp)) * math.log10(max(abs(power.base.p), power.base.q))


def _is_scientific(product: Any) -> bool:
    factors = [factor for factor in _factors(product) if abs(factor) != 1]
    powers = [f for f in factors if f.is_Pow and f.base == 10 and f.exp.is_Integer]
    return len(powers) == 1 and len(factors) <= 2 and all(f.is_Rational for f in factors if f not in powers)


def _has_unevaluated_product(product: Any) -> bool:
    """Two plain factors in a numerator or denominator, a fraction in a fraction, two roots. Not scientific notation."""
    if _is_scientific(product):
        return False
    factors = [factor for factor in _factors(product) if abs(factor) != 1]
    below = [f for f in factors if f.is_Pow and f.base.is_Rational and f.exp == -1]
    above = [f for f in factors if f not in below and _is_plain(f)]
    roots = [
        f for f in factors if f.is_Pow and f.exp.is_Rational and f.exp.q > 1 and f.exp > 0 and _has_coefficient(f.base)
    ]
    bases = Counter(f.as_base_exp()[0] for f in factors if not f.is_Rational and f.as_base_exp()[1].is_positive)
    if len(above) > 1 or len(below) > 1 or len(roots) > 1 or max(bases.values(), default=0) > 1:
        return True
    if below and any(f.is_Rational and not f.is_Integer for f in above):
        return True
    return bool(above and below and above[0].is_Integer and (above[0] * below[0]).is_Integer)


def _has_coefficient(base: Any) -> bool:
    return bool(base.is_Rational or any(factor.is_Rational for factor in _factors(base)))


def _factors(product: Any) -> Iterator[Any]:
    if product.is_Mul:
        for factor in product.args:
            yield from _factors(factor)
    else:
        yield product


def _is_unevaluated_power(power: Any) -> bool:
    """A root that is a plain number, or a whole power of a sum of numbers. Not 2^10."""
    base, exponent = power.base, power.exp
    if str(base) == "i":
        return _is_plain(power)
    if exponent.is_Integer and not base.is_Rational:
        return bool(
            abs(exponent) > 1 and (base.is_Add or base.is_Mul) and not {str(s) for s in base.free_symbols} - {"i"}
        )
    if not (base.is_Rational and exponent.is_Rational):
        return False
    if exponent.q == 1:
        return bool(exponent == 0 or (abs(base) == 1 and exponent != -1))
    return base > 0 and all(sympy.integer_nthroot(int(part), int(exponent.q))[1] for part in (base.p, base.q))

r"""One notation: Unicode, decoration and loose LaTeX are rewritten, so that equal spellings become equal text.

Every rule keeps the value. Parts that could change the value stay: spaces between digits, degrees, units, letter case.
"""

import re
import unicodedata
from functools import lru_cache

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ",
    "∙": "\\cdot ", "∗": "*", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ",
    "≡": "\\equiv ", "±": "\\pm ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ",
    "∖": "\\setminus ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℂ": "\\mathbb{C}",
    "°": "^\\circ ", "º": "^\\circ ", "∘": "^\\circ ", "π": "\\pi ", "∨": "\\lor ", "∧": "\\land ", "∣": "|",
    "⟨": "\\langle ", "⟩": "\\rangle ", "∠": "\\angle ", "△": "\\triangle ", "→": "\\to ", "′": "'", "’": "'",
    "∑": "\\sum ", "∏": "\\prod ", "∫": "\\int ", "，": ",", "、": ",", "；": ";", "。": ".", "：": ":", "∶": ":",
    "⁄": "/", "∕": "/", "€": "\\text{euros}", "£": "\\text{pounds}", "₹": "\\text{rupees}", "¥": "\\text{yen}",
    "¢": "\\text{cents}",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u00ad": "", "％": "\\%",
    "“": '"', "”": '"', "…": "\\ldots ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ",
}  # fmt: skip
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
    "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
}  # fmt: skip
_FUNCTIONS = "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm det lim"
_NAMES = {name: f"\\{name} " for name in f"pi theta alpha beta gamma delta lambda sigma omega phi {_FUNCTIONS}".split()}
_NAMES |= {"infinity": "\\infty ", "inf": "\\infty ", "infty": "\\infty ", "sqrt": "\\sqrt", "frac": "\\frac"}
_PLAIN_NAME = re.compile(
    r"\\(?:text|mathrm|mbox|operatorname)\w*\s*\{[^{}]*\}|(?<![\\a-zA-Z])("
    + "|".join(sorted(_NAMES, key=len, reverse=True))
    + r")(?![a-zA-Z])"
)
_SCRIPTS = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+|[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+")
_ROOT = re.compile(r"[√∛∜]\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Z]))?")

_NO_LETTER = r"(?![a-zA-Z])"
_SIZES = (
    "left right middle displaystyle textstyle scriptstyle limits "
    "nolimits mathstrut strut tiny small normalsize large Large LARGE huge Huge bf bfseries it itshape rm "
    "sf tt boldmath par noindent hfill centering allowbreak"
)
_WRAPPERS = (
    "underline uline underbar boldsymbol bm pmb mathbf mathit mathsf mathtt mathnormal emph boxed "
    "fbox framebox ensuremath smash overbrace underbrace mathcal mathrel mathbin bold"
)
_TEXTS = "mbox textrm textbf textit textnormal textsf texttt textup textsc mathrm hbox mathop"


def _any(names: str) -> str:
    return rf"\\(?:{names.replace(' ', '|')}){_NO_LETTER}\s*"


_RULES: list[tuple[str, str]] = [
    # without effect on the value: delimiters of formulas (\\\\[2pt] ends a row), sizes, colours, wrappers
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$|[\"`]", ""),
    (r"^\s*\*\*(.+)\*\*\s*$", r"\1"),  # bold in Markdown
    (r"\\(?:left|right|middle)\s*\.", ""),
    (_any(_SIZES) + r"|\\[bB]igg?[lrm]?" + _NO_LETTER, ""),
    (r"\\(?:color|textcolor|colorbox)\s*(?:\[[a-zA-Z]*\])?\{[^{}]*\}\s*", ""),
    (r"\\(?:hspace|vspace|phantom|hphantom|vphantom|label|tag)\*?\s*\{[^{}]*\}", " "),
    (_any(_WRAPPERS), ""),
    # text: one command, numbers taken out of it, functions and constants as themselves
    (_any(_TEXTS) + r"|\\operatorname\*?\s*", r"\\text"),
    (r"\\text\s+\{", r"\\text{"),
    (r"\\text\{\s*\$?([^a-zA-Z{}\\$]*)\$?\s*\}", r" \1 "),
    (r"\\text\{\s*(" + _FUNCTIONS.replace(" ", "|") + r")\s*\}", r"\\\1 "),
    (r"\\text\{\s*([+-]?)\s*[iI]nfinity\s*\}", r"\1\\infty "),
    (r"\\text\{\s*([eid])\s*\}|\\text\{\s*([xCPR])\s*\}(?=[\^_]|[^a-zA-Z]*[a-zA-Z=+\-*^])", r"\1\2"),
    (r"\\text\{([^{}]*)\\text\{(\w+)\}([^{}]*)\}", r"\\text{\1\2\3}"),
    # losses in datasets: \pir for \pi r, {or} for \text{or}
    (
        r"\\(sin|cos|tan|sec|csc|cot|log|ln|pi|leq|geq|cdot|times)(?=[a-zA-Z])(?!h?(?![a-zA-Z])|slant|q(?![a-zA-Z]))",
        r"\\\1 ",
    ),
    (r"(?<!\\text)\{(or|and)\}", r"\\text{\1}"),
    # spaces; 32, 349 is a list, and 32,349 a number
    (r"(?<=\d),\s+(?=\d{3}(?!\d))", ";"),
    (r"\\!\s*", ""),
    (r"(?<!\\)\\[,:;> ]|(?<!\\)~|\\(?:enspace|thinspace|medspace|thickspace|space|nobreak)(?![a-zA-Z])", " "),
    (r"\\q?quad(?![a-zA-Z])", r"\\quad "),
    # one name for one symbol
    (r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])|(?<![<=])<=", r"\\le "),
    (r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])|>=(?!=)", r"\\ge "),
    (r"\\neq(?![a-zA-Z])|\\not\s*=|!=", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\lbrack(?![a-zA-Z])", "["),
    (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\(?:langle|lparen)(?![a-zA-Z])", "("),
    (r"\\(?:rangle|rparen)(?![a-zA-Z])", ")"),
    (r"\\(?:[lr]?[vV]ert|mid)(?![a-zA-Z])", "|"),
    (r"\\colon(?![a-zA-Z])", ":"),
    (r"\\vee(?![a-zA-Z])", r"\\lor "),
    (r"\\wedge(?![a-zA-Z])", r"\\land "),
    (r"\\imath(?![a-zA-Z])", "i"),
    (r"\\varphi(?![a-zA-Z])", r"\\phi "),
    (r"\\varepsilon(?![a-zA-Z])", r"\\epsilon "),
    (r"\\(?:d|t|c|nice|s|x)frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\{\s*(-?\w+)\s*\\over\s*(-?\w+)\s*\}", r"\\frac{\1}{\2}"),
    (r"\^\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?|\\(?:text)?degree(?![a-zA-Z])", r"^\\circ "),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    (r"\\(?:ast|star)(?![a-zA-Z])|\*", r"\\cdot "),
    (r"\\cdot\s*\\cdot(?![a-zA-Z])", "^"),  # **
    # arguments in braces; 10^-2 and 2^10 as people mean them
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d+(?:\.\d+)?(?![\d.])|[a-zA-Z])", r"\\sqrt{\1}"),
    (r"\\sqrt\s+\{", r"\\sqrt{"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"\^\s*(-?\s*\d+(?:\.\d+)?)(?![\d.])", r"^{\1}"),
    (r"\^\s*([a-zA-Z])", r"^{\1}"),
    (r"_\s*(\d+|[a-zA-Z])", r"_{\1}"),
    (r"_\s*\{\s*\(?\s*(\w+)\s*\)?\s*\}", r"_{\1}"),
    (r"([_^])\s+\{", r"\1{"),
    (r"[_^]\{\s*\}", ""),
    (r"_\{\\text\{(\w+)\}\}", r"_{\1}"),
    (r"(\^\{\w+\})(_\{\w+\})", r"\2\1"),
    (r"\{\s+", "{"),
    (r"\s+\}", "}"),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_LEADING = re.compile(
    r"^(?:\s|=|\\quad(?![a-zA-Z])|\\approx|\\equiv|\\sim(?:eq)?(?![a-zA-Z])|\\cong|\\therefore|\\implies|\\Rightarrow|:|&|\{\})+"
)
_TRAILING = re.compile(r"(?:\s|\\quad|(?<!\.)\.|[;,:]|\\\\|\{\}|(?<!\\)\\$)+$")
_WRAPPED = re.compile(r"^\\text\{([^{}]*[\d(\[,][^{}]*)\}$")  # \textbf{5}, \text{10 cm}: written in text as a whole
_ORDINAL = re.compile(
    r"(?:(?<=1)(?=\^?\{?(?:\\text\{)?st)|(?<=2)(?=\^?\{?(?:\\text\{)?nd)|(?<=3)(?=\^?\{?(?:\\text\{)?rd)"
    r"|(?<=\d)(?=\^?\{?(?:\\text\{)?th)|(?<=[a-zA-Z])(?=\^\{?(?:\\text\{)?th))"
    r"\^?\{?(?:\\text\{)?(?:st|nd|rd|th)\}?\}?(?![a-zA-Z])"
)
_GROUP = re.compile(r"(?<![\w\\}\])^_])\{([\w.,+\-/ ]*|\\[a-zA-Z]+\{[^{}]*\}(?:\{[^{}]*\})?)\}(?![\^_!])")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")  # \\sqrt for \sqrt, where JSON was written twice
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_COMMAND_SPACE = re.compile(r"(\\[a-zA-Z]+) (?=\d)")
_SPACE = re.compile(r"(?<![\w.]) | (?![\w.])")


@lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    """A text in one notation: equal results are equal answers. Time is linear, except for nested braces."""
    text = _plain_characters(text)
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _PLAIN_NAME.sub(lambda name: _NAMES.get(name[1], name[0]), text)
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    text = _with_braces(text)
    before = None
    while before != text:
        before = text
        text = _TRAILING.sub("", _LEADING.sub("", text))
        text = _GROUP.sub(r"\1", _without_outer_braces(text))
        text = _ORDINAL.sub("", _WRAPPED.sub(r"\1", text))
    return _COMMAND_SPACE.sub(r"\1", _SPACE.sub("", " ".join(text.split())))


def _plain_characters(text: str) -> str:
    if text.isascii():
        return text
    text = _ROOT.sub(_latex_root, text)
    text = _SCRIPTS.sub(_latex_script, text)
    return "".join(_plain_character(c) if ord(c) > 127 else c for c in text)


def _plain_character(c: str) -> str:
    if c in _SYMBOLS:
        return _SYMBOLS[c]
    if (digit := unicodedata.decimal(c, None)) is not None:
        return str(digit)
    if unicodedata.category(c) in ("Zs", "Zl", "Zp"):
        return " "
    name = unicodedata.name(c, "")
    if name.startswith("VULGAR FRACTION") and (value := unicodedata.numeric(c, None)):
        below = next(n for n in range(2, 13) if abs(value * n - round(value * n)) < 1e-6)
        return f"\\frac{{{round(value * below)}}}{{{below}}}"
    if name.startswith("GREEK") and "WITH" not in name and name.split()[-1].lower() in _GREEK:
        letter = name.split()[-1].lower()
        return f"\\{letter if 'SMALL' in name else letter.capitalize()} "
    plain = unicodedata.normalize("NFKC", c)
    return plain if plain.isascii() else c


def _latex_root(root: re.Match[str]) -> str:
    degree = {"√": "", "∛": "[3]", "∜": "[4]"}[root.group()[0]]
    inside = next((part for part in root.groups() if part is not None), None)
    return f"\\sqrt{degree}" + (f"{{{inside}}}" if inside is not None else "")


def _latex_script(script: re.Match[str]) -> str:
    plain = unicodedata.normalize("NFKC", script.group()).replace("−", "-")
    return f"{'^' if script.group()[0] in '⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ' else '_'}{{{plain}}}"


def _without_outer_braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}"):
        depth = 0
        for i, c in enumerate(text):
            escaped = i > 0 and text[i - 1] == "\\"
            depth += 0 if escaped else (c == "{") - (c == "}")
            if depth == 0 and i < len(text) - 1:
                return text
        text = text[1:-1].strip()
    return text


def _with_braces(text: str) -> str:
    r"""Arguments of fractions in braces: `\frac12`, `\frac\pi 2` and `\frac{\sqrt{6}}2`."""
    start = 0
    while (at := text.find("\\frac", start)) >= 0:
        start = at + len("\\frac")
        end, made = start, []
        for _ in range(2):
            while text[end : end + 1] == " ":
                end += 1
            stop = _argument_end(text, end)
            if stop is None:
                return text
            argument = text[end:stop]
            made.append(argument if argument.startswith("{") else f"{{{argument}}}")
            end = stop
        text = text[:start] + "".join(made) + text[end:]
    return text


def _argument_end(text: str, start: int) -> int | None:
    """Where a command's argument ends: after a group, a command, or one character."""
    if start >= len(text) or text[start] in "}^_&":
        return None
    if text[start] != "{":
        command = _COMMAND.match(text, start)
        return command.end() if command else start + 1
    depth = 0
    for i in range(start, len(text)):
        escaped = text[i - 1] == "\\"
        depth += 0 if escaped else (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i + 1
    return None

r"""Answers that are words or names: `\text{no solution}`, `Monday`, `(B)`, `\triangle ABC`. Signs always count."""

import re

from megatron_octo.grading.structure import is_name

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"(?:\\text\{[^{}]*\}|[a-zA-Z' .,-])+")
_CHOICE = re.compile(r"\(?([A-Z])\)?\.?")
_NAME = re.compile(
    r"(?:\\(?P<shape>triangle|angle|overline|overrightarrow|overleftrightarrow|vec|widehat|square) ?)?"
    r"\{?(?P<points>[A-Z]{2,})\}?"
)
_SYMMETRIC = {"angle", "overline", "overleftrightarrow"}
"""Figures with a second name: angle CBA is angle ABC."""
_HYPHEN = re.compile(r"(?<=[a-zA-Z]{3})-(?=[a-zA-Z]{3})")
_PLURAL = re.compile(r"(?<=[a-z]{3})(?<!s)s(?![a-z])")
_LETTERS = re.compile(r"[a-zA-Z]+|[-']")


def same_words(answer: str, gold: str) -> bool | None:
    """Whether two answers of words or names, in normalized text, are equal. None if they are not words.

    Words are compared without case, punctuation and plural. Names, single letters and words with a sign must be written
    alike.
    """
    choices = [_CHOICE.fullmatch(_TEXT.sub(r"\1", text)) for text in (answer, gold)]
    if choices[0] and choices[1]:
        return choices[0][1] == choices[1][1]
    if (names := _same_names(answer, gold)) is not None:
        return names
    if not (_WORDS.fullmatch(answer) and _WORDS.fullmatch(gold)):
        is_text_alone = "\\text" in answer and "\\text" not in gold and _WORDS.fullmatch(answer) and is_name(answer)
        return False if is_text_alone else None
    if _written(answer) == _written(gold):
        return True
    is_text = "\\text" in answer + gold
    plain = [_without_hyphens(text) for text in (answer, gold)]
    if any(re.search("[-']", text) for text in plain):
        return False if is_text else None
    if {word.lower() for word in plain} <= {"yes", "no"}:
        return plain[0].lower() == plain[1].lower()
    lengths = [len(text) for text in plain]
    if min(lengths) < 3 or not (is_text or max(lengths) > 3):
        return False if lengths == [1, 1] else None
    if not is_text and any(map(_NAME.fullmatch, plain)):
        return None
    return _spelled(plain[0]) == _spelled(plain[1])


def _same_names(answer: str, gold: str) -> bool | None:
    """Compare names of points: two capital letters or more, which are not a product. None if either is not a name."""
    found, wanted = _NAME.fullmatch(answer), _NAME.fullmatch(gold)
    if not found or not wanted:
        return None
    if found["shape"] != wanted["shape"]:
        return False
    points = found["points"]
    return wanted["points"] == points or (found["shape"] in _SYMMETRIC and wanted["points"] == points[::-1])


def _written(text: str) -> str:
    return " ".join(_LETTERS.findall(_TEXT.sub(r" \1 ", text)))


def _without_hyphens(text: str) -> str:
    r"""Separate words, without hyphens that join two words inside `\text`: `\text{well-known}`."""
    return " ".join(_LETTERS.findall(_TEXT.sub(lambda words: f" {_HYPHEN.sub(' ', words[1])} ", text)))


def _spelled(text: str) -> str:
    return _PLURAL.sub("", text.lower()).replace(" ", "")

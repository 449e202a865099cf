"""The paper's prompt templates, and what a template in a recipe may contain."""

import re
from string import Formatter

SIMPLE_QUESTION = "Question:{question}\nAnswer:"
"""The paper's simple template (OctoThinker, arXiv 2506.20512, appendix): for RL, for built-in problems, and before the
answer of a `qa` document."""
SIMPLE = SIMPLE_QUESTION.replace("{question}", "{prompt}")
"""The simple template under the name that RL gives a problem."""
COMPLEX = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "reasons step by step and puts the final answer inside \\boxed{{}}.\nUser: {prompt}\nAssistant:"
)
"""A conversation that asks for the answer in a box, like the paper's complex template; the wording is ours."""

_PLACES = re.compile(r"(\{question\}|\{answer\})")


def question_answer_parts(template: str) -> list[str]:
    """A `qa` template cut at its two places: text, place, text, place, text.

    Every other brace is plain text, so that a template may contain a LaTeX box.

    Raises:
        ValueError: {question} or {answer} is missing, or there more than once.
    """
    parts = _PLACES.split(template)
    if sorted(parts[1::2]) != ["{answer}", "{question}"]:
        example = SIMPLE_QUESTION + "{answer}"
        raise ValueError(f"it must hold {{question}} and {{answer}} once each; e.g. {example!r}")
    return parts


def check_prompt_template(template: str) -> None:
    """Check a template of RL, which `str.format` fills in.

    Raises:
        ValueError: it has no {prompt}, or a field that is anything but {prompt} alone.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"not a template ({error}); write {{prompt}} for the problem, {{{{ and }}}} for braces"
        ) from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in parsed if name is not None]
    if wrong := [name for name, spec, conversion in fields if name != "prompt" or spec or conversion]:
        # an attribute or an index would reach into the text, and a width could make it as long as it says
        raise ValueError(
            f"not a template ({{{wrong[0]}...}}): only {{prompt}} alone is filled in; write {{{{ and }}}} for braces"
        )
    if not fields:
        raise ValueError("a template without {prompt}; write it where the problem goes")

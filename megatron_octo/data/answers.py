r"""Answers in text: the last `\boxed{}`."""


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` of a text that closes, its inner braces balanced; None without one.

    `\boxed{\frac{1}{2}}` gives `\frac{1}{2}`. Time is linear in the text's length whatever it holds.
    """
    opening = r"\boxed{"
    end = len(text)
    while (start := text.rfind(opening, 0, end)) >= 0:
        depth = 1
        for i in range(start + len(opening), end):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + len(opening) : i]
        end = start  # it never closes: nothing after its start can close an earlier one of the same depth
    return None

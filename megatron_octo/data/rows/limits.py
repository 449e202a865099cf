"""How much of a file's content is held at a time."""

MOST_ROW_BYTES = 16 << 20
"""Longest row that is read: a line, an item of a list, or the text of a document. A tokenizer takes up to 130 bytes of
memory for each byte of text."""
MOST_WHOLE_BYTES = 64 << 20
"""Largest JSON object that is read as a file of its own. (Lists are read item by item, and have no such limit.)"""
MOST_SMALL_BYTES = 1 << 30
"""Largest file of problems (to decontaminate against, to practise on, to look prompts up in), unpacked too."""

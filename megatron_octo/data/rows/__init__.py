"""Rows of files: one reader for sources, files to decontaminate against, RL prompts and test sets.

`files` is the way in. What a file is, is told by its first bytes and never by its name.
"""

"""Rows of files: one reader for sources, files to decontaminate against, RL prompts and test sets.

The entry point is `files`. The first bytes of a file decide what it is, never its name.
"""

"""Corpora to Megatron `.bin`/`.idx`: sources, formats, decontamination, provenance.

Import what you need from its own module (`prepare`, `manifest`, `tokenizer`, `heldout`): some of them load much.
"""

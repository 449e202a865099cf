"""Corpora to Megatron `.bin`/`.idx`: sources, formats, decontamination, provenance; and the mixture of a stage.

Import from the modules (`prepare`, `manifest`, `tokenizer`, `heldout`): some of them take long to load.
"""

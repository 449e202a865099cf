"""Warnings of the libraries underneath that a user can do nothing about, once a rank and dozens a run."""

import logging
import warnings


def silence_library_warnings() -> None:
    """Drop them; to be called before Megatron-Core is imported. Python's -W or PYTHONWARNINGS brings none back.

    Megatron-Core says at import what is not installed (the layer spec in use says it better), and calls torch
    functions by names that torch 2.13 deprecates.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    warnings.filterwarnings("ignore", message=r".*\.grad attribute of a Tensor that is not a leaf.*")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)

"""Silences library warnings that a user cannot act on, and that every rank would repeat."""

import logging
import warnings


def silence_library_warnings() -> None:
    """Silence them. To be called before Megatron-Core is imported. Python's -W and PYTHONWARNINGS cannot restore them.

    Megatron-Core warns at import about every optional package that is not installed, and uses names that torch 2.13
    deprecates.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    warnings.filterwarnings("ignore", message=r".*\.grad attribute of a Tensor that is not a leaf.*")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)

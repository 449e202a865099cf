"""Errors a user can act on.

Every message says what was found, what is allowed, and the way out. `octo` prints the message alone (no
traceback) and exits with the class's `exit_code`; anything that is not an `OctoError` is a bug and keeps
its traceback.
"""


class OctoError(Exception):
    """Base of all errors that are the input's fault and not the program's."""

    exit_code = 2


class RecipeError(OctoError):
    """A recipe that cannot be run: unknown key, bad value, impossible layout."""


class DataError(OctoError):
    """A corpus that cannot be read, or data that does not match what was recorded."""


class CheckpointError(OctoError):
    """A checkpoint that is missing, incomplete, damaged, or of another run."""


class ModelError(OctoError):
    """A model configuration that Megatron-Core cannot express."""


class RuntimeSetupError(OctoError):
    """Ranks, devices or an environment that do not fit the recipe."""


class OperatorError(OctoError):
    """Tensors or settings that a token operator cannot take."""


class TrainingHalted(OctoError):
    """Training was stopped by one of its own guards (a loss that is not finite)."""

    exit_code = 3

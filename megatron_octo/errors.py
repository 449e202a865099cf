"""Errors a user can act on, and hints for their messages.

Every message says what was found, what is allowed, and the way out. `octo` prints the message alone (no
traceback) and exits with the class's `exit_code`; anything that is not an `OctoError` is a bug and keeps
its traceback.
"""

import difflib
import errno
from collections.abc import Iterable


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


_WAYS_OUT = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "it is mounted read-only; name a folder on another disk",
    errno.EACCES: "change its permissions, or name another folder",
    errno.EPERM: "change its permissions, or name another folder",
    errno.ENAMETOOLONG: "shorten it",
    errno.ELOOP: "its links lead in a circle; correct them",
    errno.EEXIST: "something else stands there; remove it, or name another folder",
    errno.ENOTDIR: "a part of this path is a file; correct it",
    errno.EISDIR: "name a file and not a folder",
    errno.EFBIG: "the file system takes no file of that size; name a folder on another disk",
    errno.EIO: "the disk or its file system is failing",
    errno.ESTALE: "the network file system has lost it; mount it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
}


_LONGEST_WORD = 100
"""Characters compared of a misspelt word: the comparison takes their square."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelt most like another one; None where none comes near."""
    return next(iter(difflib.get_close_matches(word[:_LONGEST_WORD], list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The way out of a misspelling: `did you mean 'tiny'?`, or `otherwise` where no known word comes near."""
    match = closest(word, known)
    return f"did you mean {match!r}?" if match is not None else otherwise


def explain_os_error(error: BaseException | None) -> str | None:
    """The message for a failure of disk, permissions or names; None for any other error.

    The error may be the cause of another: Megatron-Core wraps what its writers met.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _WAYS_OUT:
            names = [str(name) for name in (error.filename, error.filename2) if name is not None]
            where = " and ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names)
            said = f"{where}: {error.strerror}" if where else f"{error.strerror}"
            return f"{said}; {_WAYS_OUT[error.errno]}"
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, or its type if there is none: for a message of ours."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__

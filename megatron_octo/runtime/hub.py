"""Names that may be a local folder or a repository of the Hugging Face hub, and downloads from the hub."""

from collections.abc import Sequence
from pathlib import Path

from megatron_octo.errors import OctoError, first_line
from megatron_octo.reading.text import expanded


def local_folder(name: str, error: type[OctoError], key: str) -> Path | None:
    """The local folder that a name means; None if there is no such folder, so that it must be one of the hub.

    Args:
        key: the setting that holds the name, for messages.

    Raises:
        OctoError: of type `error`, if the name begins with the home folder of a user that does not exist.
    """
    path = expanded(name, error, key)
    try:
        return path if path.is_dir() else None
    except (OSError, ValueError):  # what cannot be a path, such as a name that is too long
        return None


def download(
    name: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    error: type[OctoError],
    key: str,
    kind: str,
    way_out: str,
) -> Path:
    """The folder of a hub model's files, in the hub's cache. Files that are in the cache are not downloaded again.

    Args:
        revision: commit, branch or tag; None for the main branch.
        patterns: globs of the files that are wanted.
        key: the setting that holds the name, for messages.
        kind: what the name should be, for messages.
        way_out: what else the user can do, for messages.

    Raises:
        OctoError: of type `error`, if the hub does not provide it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as problem:  # the client raises many types: no network, no such name, no access
        raise error(
            f"{key} = {name!r}: neither a folder nor a {kind} that the hub provides ({type(problem).__name__}: "
            f"{first_line(problem)}); {way_out}"
        ) from None

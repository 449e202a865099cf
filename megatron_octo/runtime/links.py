"""Whether a file of a folder is really in that folder, whatever links lead to it."""

from pathlib import Path

from megatron_octo.errors import OctoError


def check_inside(folder: Path, path: Path, error: type[OctoError]) -> None:
    """Refuse a file that a link, or `..`, puts outside the folder it was named in.

    A snapshot of the Hugging Face hub's cache is a folder of links to `blobs` two levels above; those are followed.

    Args:
        folder: the folder that was given.
        path: a file below it, existing or not.

    Raises:
        OctoError: of type `error`, with where the file really is.
    """
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as problem:  # a circle of links; a NUL in the name
        raise error(f"{path!s:.200}: cannot be followed ({problem}); copy the file itself there") from None
    if not any(real.is_relative_to(allowed) for allowed in (root, *_blobs(root))):
        raise error(
            f"{path}: leads out of its folder, to {real}; only links within the folder and into the hub's cache are "
            "followed: copy the file itself there, or remove the link"
        )


def _blobs(root: Path) -> list[Path]:
    """Where the hub's cache keeps the files of a snapshot: `models--org--name/blobs`."""
    return [
        above.parent / "blobs"
        for above in (root, *root.parents)
        if above.name == "snapshots" and above.parent.name.startswith(("models--", "datasets--"))
    ]

"""Checks that a file is inside its folder after all symbolic links are resolved."""

from pathlib import Path

from megatron_octo.errors import OctoError


def check_inside(folder: Path, path: Path, error: type[OctoError]) -> None:
    """Refuse a file that a link or `..` places outside its folder.

    In the Hugging Face hub's cache, a snapshot is a folder of links to `blobs` two levels above; those are followed.

    Args:
        folder: the folder that the user gave.
        path: a file below it, existing or not.

    Raises:
        OctoError: of type `error`, naming the file's real path.
    """
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as problem:  # a loop of links; a NUL in the name
        raise error(f"{path!s:.200}: cannot be followed ({problem}); copy the file itself there") from None
    if not any(real.is_relative_to(allowed) for allowed in (root, *_blobs(root))):
        raise error(
            f"{path}: leads out of its folder, to {real}; only links within the folder and into the hub's cache are "
            "followed; copy the file itself there, or remove the link"
        )


def _blobs(root: Path) -> list[Path]:
    """The folder where the hub's cache stores the files of a snapshot: `models--org--name/blobs`."""
    return [
        above.parent / "blobs"
        for above in (root, *root.parents)
        if above.name == "snapshots" and above.parent.name.startswith(("models--", "datasets--"))
    ]

"""A model's files other than weights, its companions: configuration, tokenizer, generation settings, licence."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_octo.bridge.config import CONFIG, read_config
from megatron_octo.bridge.tokenizer_check import check_tokenizer
from megatron_octo.data.tokenizer_file import read_object_leniently
from megatron_octo.errors import ModelError
from megatron_octo.reading.json_text import shortened
from megatron_octo.runtime.links import check_inside
from megatron_octo.runtime.run_folder import RunFolder

FOLDER = "hf"
"""The folder of an imported checkpoint that holds its base's companions."""
GENERATION = "generation_config.json"
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_BASE = (CONFIG, GENERATION, *_TOKENIZER, "LICENSE", "LICENSE.txt", "USE_POLICY.md", "NOTICE")


@dataclass(frozen=True)
class Companions:
    """Where a checkpoint's companions are."""

    base: Path | None
    """Files of the model that training started from."""
    tokenizer: Path | None

    @property
    def config(self) -> dict[str, Any] | None:
        """The base's configuration."""
        return read_config(self.base) if self.base is not None and (self.base / CONFIG).is_file() else None

    def special_tokens(self) -> dict[str, Any]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id` of the tokenizer; None for those it does not have.

        Raises:
            ModelError: transformers cannot read the tokenizer.
        """
        ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        if self.tokenizer is None:
            return ids
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.tokenizer), trust_remote_code=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # many types; and a panic of its Rust code does not derive from Exception
            reason = shortened(" ".join(f"{error!r}".split()))
            raise ModelError(
                f"{self.tokenizer}: transformers cannot read the tokenizer ({reason}); repair it, or give another with "
                "--tokenizer"
            ) from None
        return {key: getattr(tokenizer, key) for key in ids}

    def check(self, vocab_size: int) -> None:
        """Refuse companions that cannot be exported with a model.

        Args:
            vocab_size: rows of the model's embedding.

        Raises:
            ModelError: a tokenizer that does not fit, is damaged or needs code; or a link out of its folder.
        """
        for folder, names in ((self.base, _BASE), (self.tokenizer, _TOKENIZER)):
            for name in names if folder is not None else ():
                assert folder is not None
                check_inside(folder, folder / name, ModelError)
        if (exported := self.tokenizer or self.base) is not None:
            check_tokenizer(exported, vocab_size)


def check_companions(source: Path) -> None:
    """Refuse unreadable companions of a Hugging Face model.

    Raises:
        ModelError: a .json file is no JSON object, or is a link that points outside its folder.
    """
    for name in _BASE:
        path = source / name
        if name.endswith(".json") and path.is_file():
            check_inside(source, path, ModelError)
            read_object_leniently(path, "a companion of the weights", ModelError)


def copy_base(source: Path, folder: Path) -> None:
    """Copy a Hugging Face model's companions into a new folder.

    Raises:
        ModelError: see `check_companions`; or any file is a link that points outside its folder.
    """
    check_companions(source)
    folder.mkdir()
    _copy(source, folder, _BASE)


def find_companions(checkpoint: Path, tokenizer: Path | None, config: Path | None = None) -> Companions:
    """The companions of a checkpoint: in the checkpoint if it was imported, else in its run folder.

    Args:
        tokenizer: a folder whose tokenizer is used instead.
        config: a Hugging Face folder to take them from if the checkpoint has none.

    Raises:
        ModelError: the folder given as `tokenizer` has none.
    """
    if tokenizer is not None and not any(
        (tokenizer / name).is_file() for name in ("tokenizer.json", "tokenizer.model")
    ):
        raise ModelError(f"{tokenizer}: no tokenizer.json or tokenizer.model there; give the folder that has one")
    run = RunFolder.containing(checkpoint)
    if run is None:
        base = checkpoint / FOLDER if (checkpoint / FOLDER).is_dir() else config
        has_tokenizer = base is not None and any((base / name).is_file() for name in _TOKENIZER)
        return Companions(base, tokenizer or (base if has_tokenizer else None))
    base = run.base / FOLDER
    prepared = run.tokenizer if run.tokenizer_file.is_file() else None
    return Companions(base if base.is_dir() else None, tokenizer or prepared)


def write_companions(companions: Companions, folder: Path) -> None:
    """Add licence, tokenizer and generation settings to the folder of exported weights."""
    if companions.base is not None:
        _copy(companions.base, folder, tuple(name for name in _BASE if name != CONFIG))
    if companions.tokenizer is not None and companions.tokenizer != companions.base:
        for name in _TOKENIZER:  # no file of the base's tokenizer may remain
            (folder / name).unlink(missing_ok=True)
        _copy(companions.tokenizer, folder, _TOKENIZER)
    if not (folder / GENERATION).is_file():
        ids = {key: value for key, value in companions.special_tokens().items() if value is not None}
        (folder / GENERATION).write_text(json.dumps({"_from_model_config": True, **ids}, indent=2) + "\n")


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            check_inside(source, source / name, ModelError)
            shutil.copyfile(source / name, folder / name)

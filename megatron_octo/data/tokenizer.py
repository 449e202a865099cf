"""The tokenizer of a run: loaded or made once, checked, and stored in the run folder for everything that follows."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_octo.data.tokenizer_file import read_object_leniently, read_tokenizer_file, without_truncation
from megatron_octo.errors import DataError, OctoError, first_line
from megatron_octo.reading.json_text import read_json
from megatron_octo.reading.text import shown_path
from megatron_octo.recipe.model import BYTES_SPECIAL, BYTES_THOUGHT, BYTES_TOKENIZER, ModelSection
from megatron_octo.runtime.atomic_folder import publish_folder
from megatron_octo.runtime.files import sha256_of, sync_tree, write_json_atomically
from megatron_octo.runtime.hub import download, local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ORIGIN = "origin.json"
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_tokenizer(model: ModelSection, folder: Path) -> "PreTrainedTokenizerFast":
    """The recipe's tokenizer, stored in `folder`, where `AutoTokenizer.from_pretrained` also finds it.

    A hub tokenizer that is already in `folder` is not downloaded again. Truncation and padding that tokenizer.json asks
    for are disabled, so that documents are never cut or padded. Code that comes with a tokenizer is never run.

    Raises:
        DataError: there is no such tokenizer, it is damaged or needs code of its own, `end_of_document` is not one of
            its tokens, or its ids do not fit `architecture.vocab_size`.
    """
    origin = {"tokenizer": model.tokenizer, "revision": model.tokenizer_revision}
    is_builtin = model.tokenizer == BYTES_TOKENIZER
    local = None if is_builtin else local_folder(model.tokenizer, DataError, "model.tokenizer")
    if not is_builtin and local is None and _origin_of(folder) == origin:
        return _open_checked(model, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        if is_builtin:
            _save(bytes_tokenizer(), made, model.end_of_document)
        else:
            _copy(local or _download(model), made, model)
        write_json_atomically(made / _ORIGIN, origin)
        tokenizer = _open_checked(model, made)
        if _contents(folder) != _contents(made):
            sync_tree(made)
            publish_folder(made, folder, replace=True)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 of a stored tokenizer's tokenizer.json.

    Raises:
        DataError: there is no such file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{folder}: no tokenizer.json here; run `octo data prepare`")
    return sha256_of(path)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The highest token id plus one, which is the number of rows an embedding needs. Ids may have gaps."""
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return max(vocabulary.values(), default=-1) + 1


def bytes_tokenizer() -> Tokenizer:
    """One token for each byte of UTF-8 (ids 0 to 255), then `<|endoftext|>`, `<|pad|>`, `<think>` and `</think>`.

    Decoding gives back any text exactly. No token is added at the beginning. `<think>` and `</think>` are not special:
    they are recognised in text, and decoding keeps them.
    """
    vocabulary = {character: byte for byte, character in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in BYTES_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in BYTES_THOUGHT])
    return tokenizer


def _byte_characters() -> dict[int, str]:
    """The printable character that `ByteLevel` maps each byte to (`bytes_to_unicode` in GPT-2's code)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in characters]
    return characters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _save(tokenizer: Tokenizer, folder: Path, end_of_document: str) -> None:
    from transformers import PreTrainedTokenizerFast

    pad = BYTES_SPECIAL[1] if tokenizer.token_to_id(BYTES_SPECIAL[1]) is not None else end_of_document
    known = {"eos_token": end_of_document, "pad_token": pad} if tokenizer.token_to_id(end_of_document) else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **known)
    fast.save_pretrained(str(folder))


def _copy(source: Path, folder: Path, model: ModelSection) -> None:
    if not (source / "tokenizer.json").is_file():
        raise DataError(
            f"model.tokenizer = {model.tokenizer!r}: no tokenizer.json in {source}; give a folder that has one "
            "(a fast tokenizer), a hub name, or builtin:bytes"
        )
    if not (source / "tokenizer_config.json").is_file():
        _save(_read(source / "tokenizer.json", model), folder, model.end_of_document)
    for name in _FILES:
        if (source / name).is_file():
            try:
                shutil.copyfile(source / name, folder / name)
            except OSError as error:
                raise DataError(
                    f"model.tokenizer = {model.tokenizer!r}: {shown_path(source / name)} cannot be copied "
                    f"({error.strerror}); correct its permissions, or make room"
                ) from None


def _download(model: ModelSection) -> Path:
    return download(
        model.tokenizer,
        model.tokenizer_revision,
        _FILES,
        error=DataError,
        key="model.tokenizer",
        kind="tokenizer",
        way_out="give a folder with tokenizer.json, check the name, the network and HF_TOKEN, or use builtin:bytes",
    )


def _read(path: Path, model: ModelSection) -> Tokenizer:
    return read_tokenizer_file(path, f"model.tokenizer = {model.tokenizer!r}")


def open_tokenizer(folder: Path, key: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a folder, with truncation and padding disabled.

    Args:
        key: the setting that names it, for messages.

    Raises:
        DataError: it is damaged, needs code of its own, or is not a fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = read_object_leniently(folder / "tokenizer_config.json", key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many types
        code = "auto_map" in config
        why = "it needs code of its own (auto_map), which is never run here" if code else first_line(error)
        way_out = "remove auto_map, or choose a tokenizer that transformers has" if code else "copy it again"
        raise DataError(f"{key}: not a tokenizer that transformers reads ({why}); {way_out}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{key}: not a fast tokenizer; choose one that is defined by tokenizer.json alone")
    without_truncation(tokenizer.backend_tokenizer)
    return cast(PreTrainedTokenizerFast, tokenizer)


def _open_checked(model: ModelSection, folder: Path) -> "PreTrainedTokenizerFast":
    _check(model, _read(folder / "tokenizer.json", model))
    return open_tokenizer(folder, f"model.tokenizer = {model.tokenizer!r}")


def _check(model: ModelSection, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(model.end_of_document, add_special_tokens=False).ids
    if tokenizer.token_to_id(model.end_of_document) is None or len(ids) != 1:
        special = sorted(t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special)
        shown = ", ".join(special[:8]) + (", ..." if len(special) > 8 else "")
        raise DataError(
            f"model.end_of_document = {model.end_of_document!r} is {len(ids)} tokens of {model.tokenizer!r}, not 1; "
            f"choose one of its special tokens: {shown or 'it has none'}"
        )
    size, limit = vocabulary_size(tokenizer), model.architecture.vocab_size
    if size > limit:
        raise DataError(
            f"model.tokenizer = {model.tokenizer!r} has ids up to {size - 1}, but model.architecture.vocab_size is "
            f"{limit}; raise it to {size} or more, or choose the model's own tokenizer"
        )


def _origin_of(folder: Path) -> Any:
    try:
        return read_json(folder / _ORIGIN, DataError)
    except OctoError:  # missing or damaged: download again
        return None


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()}

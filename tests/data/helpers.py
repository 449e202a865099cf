"""Small recipes, input files and independent readers for the tests of the data room."""

import io
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from megatron_octo.data.prepare import prepare
from megatron_octo.recipe import Recipe, load_recipe
from megatron_octo.runtime.run_folder import RunFolder

END = 256  # <|endoftext|> of builtin:bytes


def recipe_of(sources: Mapping[str, Any], **overrides: Any) -> Recipe:
    """The tiny recipe with other sources; overrides use two underscores for a dot."""
    share = 1.0 / len(sources)
    values: dict[str, Any] = {
        "data.sources": dict(sources),
        "data.heldout_problems": 0,
        "stages": {"stable": {"parent": "base", "tokens": "1M", "mixture": dict.fromkeys(sources, share)}},
    }
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe("tiny", [f"{key}={json.dumps(value)}" for key, value in values.items()])


def jsonl(*paths: Path, **settings: Any) -> dict[str, Any]:
    """A jsonl source with one validation document."""
    return {"kind": "jsonl", "paths": [str(path) for path in paths], "validation_documents": 1, **settings}


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run_prepare(recipe: Recipe, root: Path, **arguments: Any) -> tuple[RunFolder, str]:
    """Prepare, and what it said."""
    run, said = RunFolder(root), io.StringIO()
    prepare(recipe, run, console=Console(file=said, width=200), **arguments)
    return run, said.getvalue()


def read_documents(folder: Path, split: str) -> list[list[int]]:
    """Token ids of every document, read by the layout of the file alone (no Megatron, no datatrove)."""
    index = (folder / f"{split}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, bounds = struct.unpack_from("<QBQQ", index, 9)
    assert (version, bounds) == (1, sequences + 1)
    dtype = {8: np.uint16, 4: np.int32}[code]
    lengths = np.frombuffer(index, np.int32, sequences, 34)
    offsets = np.frombuffer(index, np.int64, sequences, 34 + 4 * sequences)
    data = (folder / f"{split}.bin").read_bytes()
    return [
        np.frombuffer(data, dtype, length, offset).tolist() for length, offset in zip(lengths, offsets, strict=True)
    ]


def read_texts(folder: Path, split: str) -> list[str]:
    """Texts of a split that was made with builtin:bytes, where ids below 256 are the bytes themselves."""
    documents = read_documents(folder, split)
    assert all(ids[-1] == END for ids in documents)
    marks = {258: b"<think>", 259: b"</think>"}
    return [b"".join(marks.get(i) or bytes([i]) for i in ids[:-1]).decode() for ids in documents]


def left_behind(run: RunFolder) -> list[str]:
    """Names in the data folder besides the tokenizer and the held-out problems."""
    if not run.data.exists():
        return []
    return sorted(entry.name for entry in run.data.iterdir() if entry.name not in ("tokenizer", "heldout"))

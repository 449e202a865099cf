"""Benchmark of data preparation against the tokenizer alone, on the same text and cores in one run.

    python tools/bench_data.py                        # Python files of this environment, a 32k BPE trained on them
    python tools/bench_data.py --builtin              # pages from the built-in corpora (few different words)
    python tools/bench_data.py --input text.jsonl --tokenizer path/to/tokenizer --json bench.json

Preparation includes reading JSON lines, formatting, tokenizing, splitting, merging, hashing input and output, and
reading back with Megatron-Core. The tokenizer alone is `encode_batch` of `tokenizers`, over texts already in memory.
Rounds alternate, and the medians are compared. Megatron-Core and transformers are imported before the clock starts.
"""

import argparse
import json
import os
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE_PROBLEMS = 24
PAGE_CHARACTERS = 4_000
MAX_PAGES = 40_000
BATCH_DOCUMENTS = 2_000


def main() -> None:
    """Measure, print a table, and write JSON if a path is given."""
    options = _options()
    # The thread pool of tokenizers reads these when it is first used, so they are set before any import.
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        result = _measure(options, Path(folder))
    _show(result)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="JSON lines with text (default: Python files of this environment)")
    parser.add_argument("--builtin", action="store_true", help="use pages from the built-in corpora")
    parser.add_argument("--field", default="text", help="the field of --input that holds the text")
    parser.add_argument("--megabytes", type=int, default=48, help="size of the text, generated or repeated")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json (default: train a BPE)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="vocabulary size of the trained BPE")
    parser.add_argument("--end-of-document", default="<|endoftext|>")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cores, for either side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decontaminate", action="store_true", help="decontaminate against 10,000 reversed texts")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _pages() -> Iterator[str]:
    """Endless pages of prose, code and answers, about as long as web pages."""
    from megatron_octo.data.corpora import make_corpus

    documents = [d for corpus in ("web", "code", "long_cot") for d in make_corpus(corpus, 10_000, 7)]
    dice = random.Random(7)
    while True:
        yield "\n\n".join(dice.choices(documents, k=PAGE_PROBLEMS))


def _python_files() -> Iterator[str]:
    """Python files of this environment in parts as long as web pages: prose and code written by people."""
    parts: list[str] = []
    for folder in dict.fromkeys(sysconfig.get_path(key) for key in ("purelib", "stdlib")):
        for path in sorted(Path(folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            parts += [text[at : at + PAGE_CHARACTERS] for at in range(0, len(text), PAGE_CHARACTERS)]
            if len(parts) > MAX_PAGES:
                break
    parts = [part for part in parts if part.strip()]
    random.Random(7).shuffle(parts)
    return _repeated(parts)


def _repeated(rows: list[str]) -> Iterator[str]:
    # A number in front makes repeated texts different.
    return (f"{round_}: {row}" if round_ else row for round_ in range(10**9) for row in rows)


def _texts(options: argparse.Namespace) -> list[str]:
    if options.input is None:
        source = _pages() if options.builtin else _python_files()
    else:
        source = _repeated([json.loads(line)[options.field] for line in options.input.read_text().splitlines()])
    texts, size = [], 0
    while size < options.megabytes * 1_000_000:
        texts.append(next(source))
        size += len(texts[-1].encode())
    return texts


def _train_tokenizer(texts: list[str], options: argparse.Namespace, folder: Path) -> Path:
    """Train a byte-level BPE with Llama 3's pre-tokenization. Returns its folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(llama3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary,
        special_tokens=[options.end_of_document],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[: max(1, len(texts) // 4)], trainer)
    path = folder / "tokenizer"
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def _recipe(options: argparse.Namespace, tokenizer: Path, text: Path, protected: Path | None) -> Any:
    from megatron_octo.recipe import load_recipe

    source = {"kind": "jsonl", "paths": [str(text)], "format": {"kind": "text"}}
    overrides = {
        "data.sources": {"bench": source}, "data.heldout_problems": 0,
        "data.decontamination.against": {"bench": {"paths": [str(protected)], "fields": ["text"]}} if protected else {},
        "model.tokenizer": str(tokenizer), "model.end_of_document": options.end_of_document,
        "model.architecture.vocab_size": 1 << 20,
        "stages": {"stable": {"parent": "base", "tokens": "1M", "mixture": {"bench": 1.0}}},
    }  # fmt: skip
    return load_recipe("tiny", [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import io
    import warnings

    warnings.simplefilter("ignore")  # of Megatron-Core, about Transformer Engine and Apex
    from megatron.core.datasets.indexed_dataset import IndexedDataset  # noqa: F401 (imported before the clock starts)
    from rich.console import Console
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer  # noqa: F401

    from megatron_octo.data.manifest import read_manifest
    from megatron_octo.data.prepare import prepare
    from megatron_octo.runtime.run_folder import RunFolder

    # 1. Texts, tokenizer and recipe
    texts = _texts(options)
    tokenizer_folder = options.tokenizer or _train_tokenizer(texts, options, folder)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as in preparation: a special token in the text is plain text
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    protected = None
    if options.decontaminate:
        protected = folder / "protected.jsonl"
        rows = (json.dumps({"text": text[::-1][:600]}) + "\n" for text in texts[:10_000])
        protected.write_text("".join(rows))
    recipe = _recipe(options, tokenizer_folder, file, protected)
    # 2. Both sides in turns
    alone, prepared, tokens = [], [], 0
    for round_ in range(options.rounds):
        started = time.perf_counter()
        tokens = 0
        for first in range(0, len(texts), BATCH_DOCUMENTS):
            batch = tokenizer.encode_batch(texts[first : first + BATCH_DOCUMENTS], add_special_tokens=False)
            tokens += sum(len(encoding.ids) for encoding in batch)
        alone.append(tokens / (time.perf_counter() - started))
        run = RunFolder(folder / f"run-{round_}")
        started = time.perf_counter()
        prepare(recipe, run, workers=options.workers, console=Console(file=io.StringIO()))
        seconds = time.perf_counter() - started
        manifest = read_manifest(run.source("bench"))
        ends = manifest.train.documents + manifest.validation.documents + manifest.validation_duplicates
        written = manifest.train.tokens + manifest.validation.tokens
        if not manifest.validation_duplicates and not manifest.contaminated and written != tokens + ends:
            raise SystemExit(f"token counts differ: {written} written, {tokens} and {ends} ends of documents expected")
        prepared.append(written / seconds)
    size = sum(len(text.encode()) for text in texts)
    ratio = statistics.median(prepared) / statistics.median(alone)
    return {
        "megabytes": size / 1e6, "documents": len(texts), "tokens": tokens, "vocabulary": tokenizer.get_vocab_size(),
        "workers": options.workers, "decontaminate": options.decontaminate,
        "input": str(options.input or ("built-in" if options.builtin else "Python files")),
        "tokenizer_tokens_per_second": alone, "prepare_tokens_per_second": prepared, "ratio": ratio,
    }  # fmt: skip


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['megabytes']:.0f} MB, {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"vocabulary {result['vocabulary']:,}, {result['workers']} cores"
    )
    for heading in ("", "tokens/s (median)", "rounds"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, key in (("tokenizers alone", "tokenizer"), ("octo data prepare", "prepare")):
        rates = result[f"{key}_tokens_per_second"]
        table.add_row(name, f"{statistics.median(rates):,.0f}", ", ".join(f"{rate / 1e6:.2f}M" for rate in rates))
    Console().print(table)
    Console().print(f"ratio {result['ratio']:.2f} (goal 0.70)")


if __name__ == "__main__":
    main()

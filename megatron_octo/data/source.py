"""Prepares one source, from its input to the finished folder."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from megatron_octo.data.bad_rows import BadRows
from megatron_octo.data.decontaminate import Decontaminate
from megatron_octo.data.executors import ExecutorName, run_pipeline
from megatron_octo.data.inputs import Inputs
from megatron_octo.data.limits import Limits
from megatron_octo.data.manifest import MANIFEST, InputFile, SourceManifest, TokenizerRecord
from megatron_octo.data.merge import Plan, check_readable, plan_splits, write_split
from megatron_octo.data.ngrams import NGramIndex
from megatron_octo.data.progress import progress_of
from megatron_octo.data.tally import Tally, read_report
from megatron_octo.data.writer import TokenWriter
from megatron_octo.errors import DataError
from megatron_octo.recipe.data import BuiltinSource, Source
from megatron_octo.runtime.atomic_folder import publish_folder, temporary_folder_for
from megatron_octo.runtime.files import sha256_of, write_json_atomically

_VERSIONS_OF = ("megatron-octo", "megatron-core", "datatrove", "tokenizers", "reasoning-gym")


@dataclass(frozen=True)
class Common:
    """Everything that all sources of a preparation share."""

    tokenizer_file: Path
    tokenizer: TokenizerRecord
    index: NGramIndex
    heldout: tuple[str, ...]
    """Expressions of held-out and practice problems."""
    workers: int
    executor: ExecutorName
    options: Mapping[str, str]
    console: Console


@dataclass(frozen=True)
class Prepared:
    """A prepared source."""

    manifest: SourceManifest
    bad_rows: BadRows


def prepare_source(name: str, source: Source, inputs: Inputs, digest: str, final: Path, common: Common) -> Prepared:
    """Read, format, decontaminate, tokenize, split, check and publish a source. A failure leaves nothing behind.

    Raises:
        DataError: too many bad rows, too little text for the validation split, or a damaged input.
    """
    limits = Limits(source.max_documents, source.max_tokens, source.validation_documents)
    with temporary_folder_for(final) as folder, ThreadPoolExecutor(1) as background:
        tasks, output = folder / "tasks", folder / "output"
        tasks.mkdir()
        output.mkdir()
        # the input is hashed while it is tokenized; hashing releases the GIL
        hashes = background.submit(lambda: tuple(_described(path) for path in inputs.files))
        try:
            with progress_of(common.console, name, tasks, inputs.tasks, inputs.total):
                run_pipeline(
                    _steps(source, inputs, tasks, limits, common),
                    inputs.tasks,
                    common.workers,
                    folder / "log",
                    common.executor,
                    common.options,
                )
            plan, reports = _plan_and_check(name, source, tasks, inputs.tasks, limits)
        except BaseException:
            background.shutdown(wait=False, cancel_futures=True)
            raise
        dtype = _dtype(common.tokenizer)
        train = write_split(tasks, plan, "train", dtype, output)
        validation = write_split(tasks, plan, "validation", dtype, output)
        for split, record in (("train", train), ("validation", validation)):
            size, end = common.tokenizer.vocab_size, common.tokenizer.end_of_document_id
            check_readable(output / split, record, size, end)
        bad_rows = BadRows.from_reports(reports)
        contaminated = Counter[str]()
        for report in reports:
            contaminated.update(report["contaminated"])
        manifest = SourceManifest(
            source=name,
            kind=source.kind,
            origin=inputs.origin,
            revision=inputs.revision,
            licence=source.licence,
            settings_digest=digest,
            tokenizer=common.tokenizer,
            token_dtype=dtype,
            train=train,
            validation=validation,
            inputs=hashes.result(),
            rows_read=bad_rows.rows,
            bad_rows=bad_rows.counts,
            contaminated=dict(sorted(contaminated.items())),
            validation_duplicates=plan.validation_duplicates,
            versions={package: _version(package) for package in _VERSIONS_OF},
        )
        write_json_atomically(output / MANIFEST, manifest.model_dump(mode="json"))
        publish_folder(output, final, replace=True)
    return Prepared(manifest, bad_rows)


def _steps(source: Source, inputs: Inputs, tasks: Path, limits: Limits, common: Common) -> list[Any]:
    tally = Tally(str(tasks))
    steps: list[Any] = [inputs.reader(tally)]
    # built-in corpora are generated without held-out problems
    heldout = () if isinstance(source, BuiltinSource) else common.heldout
    if source.decontaminate and (common.index.runs or heldout):
        steps.append(Decontaminate(common.index, heldout, tally))
    end = common.tokenizer.end_of_document
    return [*steps, TokenWriter(tasks, common.tokenizer_file, end, tally, limits)]


def _plan_and_check(
    name: str, source: Source, tasks: Path, count: int, limits: Limits
) -> tuple[Plan, list[dict[str, Any]]]:
    """Plan the splits, and check the bad rows and the sizes of the splits.

    Returns:
        The plan, and the reports of the tasks that it draws from.

    Raises:
        DataError: too many bad rows, or too little text.
    """
    plan = plan_splits(tasks, count, limits)
    reports = []
    for rank in range(plan.ranks):
        report = read_report(tasks, rank)
        if report is None:
            raise DataError(f"{name}: task {rank} ended without a report; run `octo data prepare` again")
        reports.append(report)
    BadRows.from_reports(reports).check(name, source.max_bad_rows)
    validation = sum(int(mask.sum()) for mask in plan.validation)
    train = sum(int(mask.sum()) for mask in plan.train)
    if validation < source.validation_documents or not train:
        dropped = sum(sum(report["contaminated"].values()) for report in reports)
        raise DataError(
            f"data.sources.{name}.validation_documents = {source.validation_documents}: the source has "
            f"{plan.documents:,} documents ({dropped:,} more were dropped as contaminated), which leaves {train:,} "
            "to train on; "
            "lower it, or give the source more text"
        )
    return plan, reports


def _dtype(tokenizer: TokenizerRecord) -> Any:
    # the choice of datatrove's writer: 16 bits if every id fits
    return "uint16" if tokenizer.vocab_size <= np.iinfo(np.uint16).max + 1 else "int32"


def _described(path: Path) -> InputFile:
    return InputFile(path=str(path), bytes=path.stat().st_size, sha256=sha256_of(path))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

"""Export: a Megatron distributed checkpoint of any layout to a Hugging Face folder, tensor by tensor."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from megatron_octo.bridge.card import lineage_of, model_card
from megatron_octo.bridge.companions import Companions, find_companions, write_companions
from megatron_octo.bridge.config import CONFIG, DTYPE_NAMES, config_of
from megatron_octo.bridge.exports import CARD, write_export_record
from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.bridge.megatron_folder import MegatronFolder, open_megatron_folder
from megatron_octo.bridge.safetensors_writer import SHARD_BYTES, Planned, ShardedWriter
from megatron_octo.bridge.special_values import Rounding
from megatron_octo.bridge.verify import TensorReport, verify_tensors
from megatron_octo.bridge.weight_map import in_order, sizes_of
from megatron_octo.errors import CheckpointError, ModelError
from megatron_octo.runtime.atomic_folder import check_target, publish_folder, temporary_folder_for
from megatron_octo.runtime.checkpoints import verify_checkpoint
from megatron_octo.runtime.files import sync, sync_tree
from megatron_octo.runtime.recorded_files import record_files

OnBytes = Callable[[int], None]


def export_checkpoint(
    source: Path,
    target: Path,
    *,
    config: Path | None = None,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
    allow_rounding_to_inf: bool = False,
    allow_rounding_to_zero: bool = False,
    on_bytes: OnBytes | None = None,
) -> TensorReport:
    """Write a checkpoint as a folder that transformers and vLLM load without our code, and check every tensor.

    The folder gets its final name only after all its tensors were read back and found equal, bit for bit.

    Args:
        source: a `step-...` folder, an imported checkpoint, or with `config` any torch_dist checkpoint.
        target: a new folder.
        config: a Hugging Face folder whose `config.json` gives the architecture; see `open_megatron_folder`.
        tokenizer: a folder whose tokenizer is exported with the model (default: that of the run, or of the imported
            base).
        dtype: round the weights to it (default: keep the dtype that each is stored in).
        shard_bytes: largest safetensors file.
        allow_rounding_to_inf: accept that rounding makes finite weights infinite.
        allow_rounding_to_zero: accept that rounding makes weights other than 0 zero.
        replace: replace what the target holds, once the export is complete.
        on_bytes: called with the bytes written, and again with the same bytes as they are compared.

    Raises:
        CheckpointError: a checkpoint that is damaged or of another architecture, weights that rounding would make
            infinite or 0, or an export that differs from the checkpoint.
        ModelError: an impossible dtype or shard size, or a tokenizer that does not fit the model.
        RuntimeSetupError: the target holds something, another process is making it, or the disk is too small.
    """
    if shard_bytes < 1 or (dtype is not None and dtype not in DTYPE_NAMES):
        raise ModelError(
            f"dtype {dtype}, shards of {shard_bytes} bytes: give {', '.join(DTYPE_NAMES.values())}, and 1 or more"
        )
    checkpoint = open_megatron_folder(source, config)
    companions = find_companions(source, tokenizer, config)
    companions.check(checkpoint.architecture.vocab_size)
    lineage, rounding = lineage_of(source), Rounding(dtype)
    planned = _plan(checkpoint, dtype)
    check_target(target, sum(tensor.bytes for tensor in planned), may_replace=replace)
    with temporary_folder_for(target) as work, ThreadPoolExecutor(3) as background:
        output = work / "output"
        output.mkdir()
        # a flipped bit would be exported and then compared with itself, so the checkpoint is hashed meanwhile
        verified = background.submit(verify_checkpoint, source) if checkpoint.digest is not None else None
        try:
            _write_weights(checkpoint, planned, output, rounding, shard_bytes, on_bytes)
        finally:
            if verified is not None:
                verified.result()  # its error says more than the one that a damaged file causes in the conversion
        rounding.check(str(target), allow_rounding_to_inf, allow_rounding_to_zero)
        _write_companions_and_config(checkpoint, companions, dtype, output)
        # flush and hash the files while tensors are compared
        flushed = [background.submit(sync, file) for file in output.iterdir()]
        recorded = background.submit(record_files, output)
        report = dataclasses.replace(
            verify_tensors(open_hf_folder(output), checkpoint, on_bytes),
            to_inf=rounding.infinities,
            to_zero=rounding.zeros,
        )
        if report.different:
            raise CheckpointError(
                f"{target}: not written: {len(report.different)} tensors read back differ from {source}: "
                f"{', '.join(report.different[:4])}; the disk or its file system is failing: try another"
            )
        dtype_exported = open_hf_folder(output).dtype
        card = model_card(checkpoint.architecture, dtype_exported, lineage, report.rounded > 0, rounding.text())
        (output / CARD).write_text(card, encoding="utf-8")
        write_export_record(output, source, checkpoint.digest, report, recorded.result())
        for flush in flushed:
            flush.result()
        sync_tree(output)
        publish_folder(output, target, replace=replace)
    return report


def _write_companions_and_config(
    checkpoint: MegatronFolder, companions: Companions, dtype: torch.dtype | None, output: Path
) -> None:
    write_companions(companions, output)
    tokens = companions.special_tokens() if companions.config is None else {}
    text = config_of(checkpoint.architecture, dtype or checkpoint.dtype, companions.config, tokens)
    (output / CONFIG).write_text(text, encoding="utf-8")


def _write_weights(
    checkpoint: MegatronFolder,
    planned: list[Planned],
    output: Path,
    rounding: Rounding,
    shard_bytes: int,
    on_bytes: OnBytes | None,
) -> None:
    writer = ShardedWriter(output, planned, shard_bytes)
    for name, tensor in _tensors(checkpoint, rounding):
        writer.add(name, tensor)
        if on_bytes is not None:
            on_bytes(tensor.nbytes)
    writer.close()


def _plan(checkpoint: MegatronFolder, dtype: torch.dtype | None) -> list[Planned]:
    sizes = sizes_of(checkpoint.architecture)
    return [
        Planned(name, shape, dtype or checkpoint.reader.dtype(rule.key))
        for rule, layer in in_order(checkpoint.rules, checkpoint.architecture.num_hidden_layers)
        for name, shape in zip(rule.names(layer), rule.part_shapes(sizes), strict=True)
    ]


def _tensors(checkpoint: MegatronFolder, rounding: Rounding) -> Iterator[tuple[str, torch.Tensor]]:
    architecture = checkpoint.architecture
    for rule, layer in in_order(checkpoint.rules, architecture.num_hidden_layers):
        # everything but the vocabulary's padding
        rows = rule.shape(sizes_of(architecture))[0]
        whole = checkpoint.reader.read(rule.key, layer, rows)
        names, narrow = rule.names(layer), rounding.rounded(whole)
        parts = rule.join.separate(narrow, architecture)
        if narrow.dtype != whole.dtype:
            rounding.count(names, rule.join.separate(whole, architecture), parts)
        yield from zip(names, parts, strict=True)

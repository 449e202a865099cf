"""`convert import`, `convert export` and `convert verify`, for `octo` and for tools/convert_checkpoint.py."""

import argparse
from pathlib import Path

_LEAST_SHARD_GB, _MOST_SHARD_GB = 0.001, 1000.0


def add_convert_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three commands. Their functions load what they need when they run."""
    importing = commands.add_parser("import", help="Hugging Face weights to a Megatron distributed checkpoint")
    importing.add_argument("hf", type=Path, metavar="HF_DIR", help="config.json and safetensors")
    importing.add_argument("megatron", type=Path, metavar="MEGATRON_DIR", help="a new folder")
    importing.add_argument("--tensor-parallel", type=int, default=1, metavar="N")
    importing.add_argument("--pipeline-parallel", type=int, default=1, metavar="M")
    importing.add_argument("--virtual-pipeline", type=int, metavar="V", help="model chunks a pipeline rank")
    importing.add_argument("--allow-nan", action="store_true", help="take weights that are NaN or infinite")
    importing.set_defaults(command=_import)

    exporting = commands.add_parser("export", help="a Megatron distributed checkpoint to a Hugging Face folder")
    exporting.add_argument("megatron", type=Path, metavar="MEGATRON_DIR", help="a step-... folder, of any layout")
    exporting.add_argument("hf", type=Path, metavar="HF_DIR", help="a new folder")
    exporting.add_argument("--config", type=Path, metavar="HF_DIR", help="whose config.json says what model it is")
    exporting.add_argument("--tokenizer", type=Path, metavar="DIR", help="whose tokenizer goes with the model")
    exporting.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="round the weights to it")
    for what, plain in (("inf", "finite weights that become infinite"), ("zero", "weights other than 0 that become 0")):
        exporting.add_argument(
            f"--allow-rounding-to-{what}", action="store_true", help=f"round in spite of {plain} in --dtype"
        )
    exporting.add_argument("--shard-gb", type=float, default=5.0, help="largest safetensors file (default 5)")
    exporting.add_argument("--logits", action="store_true", help="compare the logits of both models too")
    exporting.set_defaults(command=_export)

    verifying = commands.add_parser("verify", help="compare both folders, tensor by tensor; fails if a bit differs")
    verifying.add_argument("hf", type=Path, metavar="HF_DIR")
    verifying.add_argument("megatron", type=Path, metavar="MEGATRON_DIR")
    verifying.add_argument("--logits", action="store_true", help="compare logits on fixed prompts, in fp32, too")
    verifying.set_defaults(command=_verify)


def _import(options: argparse.Namespace) -> int:
    from megatron_octo.bridge.hf_folder import open_hf_folder
    from megatron_octo.bridge.import_hf import import_checkpoint
    from megatron_octo.errors import ModelError
    from megatron_octo.reading.json_text import validated
    from megatron_octo.recipe import Parallel
    from megatron_octo.runtime.progress import byte_progress

    layout = validated(
        {
            "tensor": options.tensor_parallel,
            "pipeline": options.pipeline_parallel,
            "virtual_pipeline": options.virtual_pipeline,
        },
        Parallel,
        "--tensor-parallel, --pipeline-parallel, --virtual-pipeline",
        ModelError,
        "ranks are counted from 1",
    )
    total = 2 * open_hf_folder(options.hf).bytes
    with byte_progress(f"import {options.hf.name}", total) as on_bytes:
        manifest = import_checkpoint(
            options.hf, options.megatron, layout, allow_nan=options.allow_nan, on_bytes=on_bytes
        )
    size = sum(file.bytes for file in manifest.files)
    if count := manifest.origin.get("weights_not_finite"):
        print(f"{options.megatron}: {count:,} weights are NaN or infinite, and were taken as they are")
    print(f"{options.megatron}: {size:,} bytes, as tensor {layout.tensor} x pipeline {layout.pipeline} would save it")
    return 0


def _export(options: argparse.Namespace) -> int:
    from megatron_octo.bridge.config import DTYPES
    from megatron_octo.bridge.export_hf import export_checkpoint
    from megatron_octo.bridge.megatron_folder import open_megatron_folder
    from megatron_octo.errors import ModelError
    from megatron_octo.runtime.progress import byte_progress

    if not _LEAST_SHARD_GB <= options.shard_gb <= _MOST_SHARD_GB:  # nor NaN
        raise ModelError(
            f"--shard-gb {options.shard_gb}: give {_LEAST_SHARD_GB} to {_MOST_SHARD_GB:g} (a gigabyte is 10^9 bytes)"
        )
    dtype = DTYPES[options.dtype] if options.dtype else None
    checkpoint = open_megatron_folder(options.megatron, options.config)
    total = 2 * checkpoint.shape.num_parameters() * (dtype or checkpoint.dtype).itemsize
    with byte_progress(f"export {options.megatron.name}", total) as on_bytes:
        report = export_checkpoint(
            options.megatron,
            options.hf,
            config=options.config,
            tokenizer=options.tokenizer,
            dtype=dtype,
            shard_bytes=int(options.shard_gb * 1e9),
            allow_rounding_to_inf=options.allow_rounding_to_inf,
            allow_rounding_to_zero=options.allow_rounding_to_zero,
            on_bytes=on_bytes,
        )
    rounded = f", {report.rounded} of them after rounding to {options.dtype}" if report.rounded else ""
    print(f"{options.hf}: {report.tensors} tensors, {report.bytes:,} bytes, read back and equal bit for bit{rounded}")
    if report.to_inf or report.to_zero:
        print(f"rounding made {report.to_inf:,} finite weights infinite, and {report.to_zero:,} others 0")
    if not any((options.hf / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        print(f"{options.hf} has no tokenizer: neither had the checkpoint; send one along with --tokenizer DIR")
    return _logits(options.hf, options.megatron) if options.logits else 0


def _verify(options: argparse.Namespace) -> int:
    from megatron_octo.bridge.hf_folder import open_hf_folder
    from megatron_octo.bridge.megatron_folder import open_megatron_folder
    from megatron_octo.bridge.verify import verify_tensors
    from megatron_octo.runtime.progress import byte_progress

    hf = open_hf_folder(options.hf)
    with byte_progress(f"verify {options.hf.name}", hf.bytes) as on_bytes:
        report = verify_tensors(hf, open_megatron_folder(options.megatron, options.hf), on_bytes)
    if report.different:
        print(f"{len(report.different)} of {report.tensors} tensors differ: {', '.join(report.different[:8])}")
        return 1
    rounded = f" ({report.rounded} of them after rounding to {hf.dtype})" if report.rounded else ""
    print(f"{report.tensors} tensors, {report.bytes:,} bytes: equal bit for bit{rounded}")
    return _logits(options.hf, options.megatron) if options.logits else 0


def _logits(hf: Path, megatron: Path) -> int:
    from megatron_octo.bridge.logits import TOLERANCE, compare_logits

    report = compare_logits(hf, megatron)
    print(
        f"logits in fp32 at {report.tokens} tokens: largest difference {report.largest_difference:.2e} "
        f"(tolerance {TOLERANCE:.0e}), top-1 agreement {100 * report.top1_agreement:.2f}%, "
        f"largest KL {report.largest_kl:.2e} nats" + ("" if report.is_finite else "; some are not finite")
    )
    return 0 if report.is_equal else 1

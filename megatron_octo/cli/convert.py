"""`octo convert`: Hugging Face weights to a Megatron checkpoint and back, without a recipe."""

from pathlib import Path

import click

from megatron_octo.cli.commands import OctoCommand, OctoGroup
from megatron_octo.cli.options import PATH

_LEAST_SHARD_GB, _MOST_SHARD_GB = 0.001, 1000.0


@click.command(
    "import",
    cls=OctoCommand,
    examples=["octo convert import HF_DIR MEGATRON_DIR --tensor-parallel 2 --pipeline-parallel 2"],
)
@click.argument("hf", type=PATH, metavar="HF_DIR", help="A folder with config.json and safetensors.")
@click.argument("megatron", type=PATH, metavar="MEGATRON_DIR", help="A new folder.")
@click.option("--tensor-parallel", type=int, default=1, metavar="N", help="Tensor-parallel ranks.")
@click.option("--pipeline-parallel", type=int, default=1, metavar="M", help="Pipeline-parallel ranks.")
@click.option(
    "--virtual-pipeline", type=int, metavar="V", show_default="not interleaved", help="Model chunks a pipeline rank."
)
@click.option("--allow-nan", is_flag=True, help="Take weights that are NaN or infinite.")
def import_(
    hf: Path,
    megatron: Path,
    tensor_parallel: int,
    pipeline_parallel: int,
    virtual_pipeline: int | None,
    allow_nan: bool,
) -> int:
    """Turn Hugging Face weights into a Megatron distributed checkpoint."""
    from megatron_octo.bridge.hf_folder import open_hf_folder
    from megatron_octo.bridge.import_hf import import_checkpoint
    from megatron_octo.errors import ModelError
    from megatron_octo.reading.json_text import validated
    from megatron_octo.recipe import Parallel
    from megatron_octo.runtime.progress import byte_progress

    layout = validated(
        {"tensor": tensor_parallel, "pipeline": pipeline_parallel, "virtual_pipeline": virtual_pipeline},
        Parallel,
        "--tensor-parallel, --pipeline-parallel, --virtual-pipeline",
        ModelError,
        "ranks are counted from 1",
    )
    total = 2 * open_hf_folder(hf).bytes
    with byte_progress(f"import {hf.name}", total) as on_bytes:
        manifest = import_checkpoint(hf, megatron, layout, allow_nan=allow_nan, on_bytes=on_bytes)
    size = sum(file.bytes for file in manifest.files)
    if count := manifest.origin.get("weights_not_finite"):
        print(f"{megatron}: {count:,} weights are NaN or infinite, and were taken as they are")
    print(f"{megatron}: {size:,} bytes, as tensor {layout.tensor} x pipeline {layout.pipeline} would save it")
    return 0


@click.command(
    "export",
    cls=OctoCommand,
    examples=[
        "octo convert export MEGATRON_DIR HF_DIR",
        "octo convert export MEGATRON_LM_DIR HF_DIR --config HF_DIR_OF_THE_SAME_MODEL",
    ],
)
@click.argument("megatron", type=PATH, metavar="MEGATRON_DIR", help="A step-... folder, of any layout.")
@click.argument("hf", type=PATH, metavar="HF_DIR", help="A new folder.")
@click.option(
    "--config",
    type=PATH,
    metavar="HF_DIR",
    show_default="as the checkpoint says",
    help="The folder whose config.json says which model it is.",
)
@click.option(
    "--tokenizer",
    type=PATH,
    metavar="DIR",
    show_default="the checkpoint's",
    help="The folder whose tokenizer goes with the model.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    show_default="the checkpoint's",
    help="Round the weights to this type.",
)
@click.option("--allow-rounding-to-inf", is_flag=True, help="Round although finite weights become infinite in --dtype.")
@click.option("--allow-rounding-to-zero", is_flag=True, help="Round although weights other than 0 become 0 in --dtype.")
@click.option("--shard-gb", type=float, default=5.0, metavar="GB", help="Largest safetensors file, in 10^9 bytes.")
@click.option("--logits", is_flag=True, help="Compare the logits of both models too.")
def export(
    megatron: Path,
    hf: Path,
    config: Path | None,
    tokenizer: Path | None,
    dtype: str | None,
    allow_rounding_to_inf: bool,
    allow_rounding_to_zero: bool,
    shard_gb: float,
    logits: bool,
) -> int:
    """Turn a Megatron distributed checkpoint into a Hugging Face folder."""
    from megatron_octo.bridge.config import DTYPES
    from megatron_octo.bridge.export_hf import export_checkpoint
    from megatron_octo.bridge.megatron_folder import open_megatron_folder
    from megatron_octo.errors import ModelError
    from megatron_octo.runtime.progress import byte_progress

    if not _LEAST_SHARD_GB <= shard_gb <= _MOST_SHARD_GB:  # nor NaN
        raise ModelError(
            f"--shard-gb {shard_gb}: give {_LEAST_SHARD_GB} to {_MOST_SHARD_GB:g} (a gigabyte is 10^9 bytes)"
        )
    rounded_to = DTYPES[dtype] if dtype else None
    checkpoint = open_megatron_folder(megatron, config)
    total = 2 * checkpoint.architecture.num_parameters() * (rounded_to or checkpoint.dtype).itemsize
    with byte_progress(f"export {megatron.name}", total) as on_bytes:
        report = export_checkpoint(
            megatron,
            hf,
            config=config,
            tokenizer=tokenizer,
            dtype=rounded_to,
            shard_bytes=int(shard_gb * 1e9),
            allow_rounding_to_inf=allow_rounding_to_inf,
            allow_rounding_to_zero=allow_rounding_to_zero,
            on_bytes=on_bytes,
        )
    rounded = f", {report.rounded} of them after rounding to {dtype}" if report.rounded else ""
    print(f"{hf}: {report.tensors} tensors, {report.bytes:,} bytes, read back and equal bit for bit{rounded}")
    if report.to_inf or report.to_zero:
        print(f"rounding made {report.to_inf:,} finite weights infinite, and {report.to_zero:,} others 0")
    if not any((hf / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        print(f"{hf} has no tokenizer, as the checkpoint has none; give one with --tokenizer DIR")
    return _compare_logits(hf, megatron) if logits else 0


@click.command("verify", cls=OctoCommand, examples=["octo convert verify HF_DIR MEGATRON_DIR --logits"])
@click.argument("hf", type=PATH, metavar="HF_DIR", help="A Hugging Face folder.")
@click.argument("megatron", type=PATH, metavar="MEGATRON_DIR", help="A Megatron checkpoint of the same model.")
@click.option("--logits", is_flag=True, help="Compare logits on fixed prompts too, in fp32.")
def verify(hf: Path, megatron: Path, logits: bool) -> int:
    """Compare two folders tensor by tensor; exit with 1 if a bit differs."""
    from megatron_octo.bridge.hf_folder import open_hf_folder
    from megatron_octo.bridge.megatron_folder import open_megatron_folder
    from megatron_octo.bridge.verify import verify_tensors
    from megatron_octo.runtime.progress import byte_progress

    folder = open_hf_folder(hf)
    with byte_progress(f"verify {hf.name}", folder.bytes) as on_bytes:
        report = verify_tensors(folder, open_megatron_folder(megatron, hf), on_bytes)
    if report.different:
        print(f"{len(report.different)} of {report.tensors} tensors differ: {', '.join(report.different[:8])}")
        return 1
    rounded = f" ({report.rounded} of them after rounding to {folder.dtype})" if report.rounded else ""
    print(f"{report.tensors} tensors, {report.bytes:,} bytes: equal bit for bit{rounded}")
    return _compare_logits(hf, megatron) if logits else 0


def _compare_logits(hf: Path, megatron: Path) -> int:
    from megatron_octo.bridge.logits import TOLERANCE, compare_logits

    report = compare_logits(hf, megatron)
    print(
        f"logits in fp32 at {report.tokens} tokens: largest difference {report.largest_difference:.2e} "
        f"(tolerance {TOLERANCE:.0e}), top-1 agreement {100 * report.top1_agreement:.2f}%, "
        f"largest KL {report.largest_kl:.2e} nats" + ("" if report.is_finite else "; some are not finite")
    )
    return 0 if report.is_equal else 1


@click.group(
    "convert",
    cls=OctoGroup,
    sections={"Commands": [import_, export, verify]},
    examples=["octo convert import HF_DIR MEGATRON_DIR", "octo convert verify HF_DIR MEGATRON_DIR --logits"],
)
def convert_commands() -> None:
    """Convert weights between Hugging Face and Megatron; compare both."""

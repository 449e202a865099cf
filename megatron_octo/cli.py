"""`octo`: the command line, thin. Each command loads what it needs, so that `octo --help` is instant."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_octo import __version__
from megatron_octo.bridge.command import add_convert_commands
from megatron_octo.errors import DataError, OctoError, RuntimeSetupError, explain_os_error

if TYPE_CHECKING:
    from megatron_octo.recipe import Recipe
    from megatron_octo.runtime.run_folder import RunFolder

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `octo`. Returns the exit status: 0, or an OctoError's own (2 for bad input, 3 for a halted run)."""
    from megatron_octo.runtime.quiet import silence_library_warnings

    silence_library_warnings()
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        _check_working_folder()
        return command(options)
    except OctoError as error:
        print(f"octo: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (told := explain_os_error(error)) is None:
            raise
        print(f"octo: {told}", file=sys.stderr)
        return OctoError.exit_code
    except KeyboardInterrupt:
        print("octo: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise RuntimeSetupError("the folder this was started in is gone; change to one that is there") from None


def _whole_number(most: int) -> Callable[[str], int]:
    """An argparse type: a number from 1 to `most`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to {most:,}")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octo", description="OctoThinker's road on one recipe file.")
    parser.add_argument("--version", action="version", version=f"octo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", help="a shipped recipe's name, or a .yaml file")
    recipe.add_argument(
        "-s",
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, dotted: -s train.learning_rate=1e-3 (repeatable)",
    )
    recipe.add_argument("--runs", type=Path, help="where run folders are (default: $OCTO_RUNS, else ./runs)")

    train = commands.add_parser("train", parents=[recipe], help="train a stage, or all that are not done")
    train.add_argument("stage", nargs="*", help="stages (default: all, each after its parent)")
    train.add_argument("--accept-changes", action="store_true", help="resume although data order or settings changed")
    train.add_argument(
        "--stop-after-step", type=_whole_number(10**9), metavar="N", help="save and stop once step N is done"
    )
    train.set_defaults(command=_train)

    data = commands.add_parser("data", help="check, prepare and verify corpora, look at samples")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    prepare = data_commands.add_parser("prepare", parents=[recipe], help="text to Megatron .bin/.idx")
    prepare.add_argument("--source", action="append", help="only this source (repeatable)")
    prepare.add_argument("--workers", type=_whole_number(4096), default=2, help="processes (default 2)")
    prepare.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    prepare.add_argument(
        "--executor-option", action="append", default=[], metavar="KEY=VALUE", help="for SLURM: partition=..., time=..."
    )
    prepare.set_defaults(command=_data_prepare)
    check = data_commands.add_parser("check", parents=[recipe], help="first rows of every source, read and formatted")
    check.add_argument("--source", action="append", help="only this source (repeatable)")
    check.set_defaults(command=_data_check)
    whole = data_commands.add_parser("verify", parents=[recipe], help="recompute every prepared file's SHA-256")
    whole.add_argument("--source", action="append", help="only this source (repeatable)")
    whole.set_defaults(command=_data_verify)
    show = data_commands.add_parser("show", parents=[recipe], help="print samples of a stage as text")
    show.add_argument("stage")
    show.add_argument("samples", type=int, nargs="+", help="sample numbers, counted from 0 within the stage")
    show.set_defaults(command=_data_show)

    status = commands.add_parser("status", parents=[recipe], help="what is done, running, missing")
    status.set_defaults(command=_status)
    report = commands.add_parser("report", parents=[recipe], help="draw the curves and the table again")
    report.set_defaults(command=_report)

    checkpoint = commands.add_parser("checkpoint", help="look after checkpoints")
    checkpoint_commands = checkpoint.add_subparsers(required=True, metavar="COMMAND")
    verify = checkpoint_commands.add_parser("verify", help="recompute every file's SHA-256")
    verify.add_argument("path", type=Path, help="a step-... folder, or a folder of them")
    verify.set_defaults(command=_checkpoint_verify)

    export = commands.add_parser("export", parents=[recipe], help="a stage's last checkpoint to Hugging Face")
    export.add_argument("stage", nargs="*", help="stages (default: all)")
    export.set_defaults(command=_export)
    heldout = commands.add_parser("heldout", parents=[recipe], help="exported stages answer the held-out problems")
    heldout.add_argument("stage", nargs="*", help="stages (default: all)")
    heldout.set_defaults(command=_heldout)
    rl = commands.add_parser("rl", parents=[recipe], help="PPO or GRPO from an exported stage, by OpenRLHF")
    rl.add_argument("stage", help="the stage to start from")
    rl.set_defaults(command=_rl)
    convert = commands.add_parser("convert", help="Hugging Face weights to Megatron's and back, and the proof")
    add_convert_commands(convert.add_subparsers(required=True, metavar="COMMAND"))

    bench = commands.add_parser("bench", help="measure kernels against the field")
    logprob = bench.add_subparsers(required=True, metavar="COMMAND").add_parser("logprob", help="token log-probs")
    logprob.add_argument("--form", choices=("logits", "linear", "both"), default="both")
    logprob.add_argument("--tokens", type=_whole_number(1 << 20), default=512)
    logprob.add_argument("--vocabulary", type=_whole_number(1 << 24), default=128_256)
    logprob.add_argument("--hidden", type=_whole_number(1 << 16), default=2048)
    logprob.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    logprob.add_argument("--rounds", type=_whole_number(10_000), default=7)
    logprob.add_argument("--threads", type=_whole_number(4096), help="on the CPU (default: all cores)")
    logprob.add_argument("--json", type=Path)
    logprob.add_argument("--plot", type=Path, help="a PNG")
    logprob.set_defaults(command=_bench_logprob)

    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.set_defaults(command=_recipes)
    show_recipe = commands.add_parser("recipe", parents=[recipe], help="print a recipe, resolved and checked")
    show_recipe.set_defaults(command=_recipe)
    return parser


def _load(options: argparse.Namespace) -> tuple["Recipe", "RunFolder"]:
    from megatron_octo.recipe import load_recipe
    from megatron_octo.runtime.run_folder import RunFolder

    recipe = load_recipe(options.recipe, options.set)
    return recipe, RunFolder.of(recipe, options.runs)


def _train(options: argparse.Namespace) -> int:
    from megatron_octo.runtime.rank import Rank, is_rank_already
    from megatron_octo.runtime.signals import listen_for_stop

    # where this process is a rank, a signal that comes while it loads is noted
    stop = listen_for_stop() if is_rank_already() else None
    from megatron_octo.train.run import train_stages

    try:
        recipe, run = _load(options)
        status = train_stages(
            recipe,
            run,
            options.stage,
            accept_changes=options.accept_changes,
            stop_after_step=options.stop_after_step,
        )
        if Rank.from_environment().is_first:
            _draw(recipe, run)
        return status
    finally:
        if stop is not None:
            stop.ignore_others()


def _draw(recipe: "Recipe", run: "RunFolder") -> None:
    from rich.console import Console

    from megatron_octo.report.curves import draw_curves
    from megatron_octo.report.summary import print_summary, write_summary

    if not any(run.metrics(stage).is_file() for stage in recipe.stages):
        return
    print_summary(write_summary(recipe, run), Console())
    print(f"curves: {draw_curves(recipe, run, run.curves)}\nsummary: {run.summary}")


def _report(options: argparse.Namespace) -> int:
    recipe, run = _load(options)
    run.read_recipe()
    _draw(recipe, run)
    return 0


def _data_prepare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_octo.data.prepare import prepare

    recipe, run = _load(options)
    prepare(
        recipe,
        run,
        sources=options.source,
        workers=options.workers,
        executor=options.executor,
        executor_options=_pairs(options.executor_option),
        console=Console(),
    )
    return 0


def _data_check(options: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_octo.data.check import check_sources

    recipe, _ = _load(options)
    return 0 if check_sources(recipe, options.source, Console()) else DataError.exit_code


def _data_verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_octo.data.verify import verify_sources

    recipe, run = _load(options)
    return 0 if verify_sources(recipe, run, options.source, Console()) else DataError.exit_code


def _data_show(options: argparse.Namespace) -> int:
    from megatron_octo.train.samples import show_samples

    recipe, run = _load(options)
    show_samples(recipe, run, options.stage, options.samples)
    return 0


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_octo.report.status import print_status

    recipe, run = _load(options)
    print_status(recipe, run, Console())
    return 0


def _export(options: argparse.Namespace) -> int:
    from megatron_octo.bridge.stages import export_stages

    recipe, run = _load(options)
    export_stages(recipe, run, recipe.chosen(options.stage))
    return 0


def _heldout(options: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_octo.eval.heldout import answer_heldout

    recipe, run = _load(options)
    answer_heldout(recipe, run, recipe.chosen(options.stage), Console())
    _draw(recipe, run)
    return 0


def _rl(options: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_octo.rl.launch import train_rl

    recipe, run = _load(options)
    (stage,) = recipe.chosen([options.stage])
    train_rl(recipe, run, stage, Console())
    _draw_rl(recipe, run, stage)
    return 0


def _draw_rl(recipe: "Recipe", run: "RunFolder", stage: str) -> None:
    from rich.console import Console

    from megatron_octo.eval.heldout import answer_reinforced
    from megatron_octo.report.rl_curves import draw_rl_curves

    if run.heldout.is_file():
        answer_reinforced(recipe, run, stage, Console())
    print(f"RL curves: {draw_rl_curves(run, stage)}")
    _draw(recipe, run)


def _bench_logprob(options: argparse.Namespace) -> int:
    import torch
    from rich.console import Console

    from megatron_octo.ops.bench.run import Case, run_case, write

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    results = []
    for form in ("logits", "linear") if options.form == "both" else (options.form,):
        case = Case(form, options.tokens, options.vocabulary, options.hidden, options.dtype, options.rounds)
        results.append(run_case(case, Console()))
    write(results, options.json, options.plot)
    return 0


def _checkpoint_verify(options: argparse.Namespace) -> int:
    from megatron_octo.runtime.checkpoints import MANIFEST, complete_steps, folder_name, verify_checkpoint
    from megatron_octo.runtime.progress import byte_progress, bytes_of

    path: Path = options.path
    folders = [path] if (path / MANIFEST).is_file() or not complete_steps(path) else []
    folders = folders or [path / folder_name(step) for step in complete_steps(path)]
    for folder in folders:
        with byte_progress(folder.name, bytes_of(folder)) as on_bytes:
            manifest = verify_checkpoint(folder, on_bytes)
        print(f"{folder}: whole ({len(manifest.files)} files, {sum(f.bytes for f in manifest.files):,} bytes)")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from megatron_octo.recipe import load_recipe, shipped_recipes

    del options
    for name in shipped_recipes():
        print(f"{name:<16} {load_recipe(name).description}")
    return 0


def _recipe(options: argparse.Namespace) -> int:
    from megatron_octo.recipe import dump_recipe

    recipe, _ = _load(options)
    print(dump_recipe(recipe), end="")
    return 0


def _pairs(texts: list[str]) -> dict[str, str]:
    from megatron_octo.errors import RecipeError

    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"--executor-option {text!r}: write KEY=VALUE, e.g. partition=cpu")
        pairs[key] = value
    return pairs


if __name__ == "__main__":
    sys.exit(main())

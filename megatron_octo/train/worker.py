"""One rank of a stage: `python -m megatron_octo.train.worker --folder FOLDER --stage NAME`, under torchrun or SLURM."""

import argparse
import io
import sys
from pathlib import Path

from megatron_octo.errors import OctoError
from megatron_octo.runtime.groups import Rank
from megatron_octo.runtime.quiet import silence_library_warnings
from megatron_octo.runtime.run_folder import RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Train the stage on this rank. Status 0 also where it was asked to stop: result.json says whether it is done."""
    parser = argparse.ArgumentParser(prog="python -m megatron_octo.train.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run folder, with stages/<stage>/recipe.yaml")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--accept-changes", action="store_true")
    parser.add_argument("--stop-after-step", type=int)
    options = parser.parse_args(arguments)
    silence_library_warnings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a job's log shows each line as it comes
    try:
        from megatron_octo.recipe import load_recipe
        from megatron_octo.train.stage import StageOptions, train_stage

        run = RunFolder(options.folder)
        train_stage(
            load_recipe(str(run.stage_recipe(options.stage))),
            run,
            options.stage,
            StageOptions(accept_changes=options.accept_changes, stop_after_step=options.stop_after_step),
        )
    except OctoError as error:
        if Rank.from_environment().is_first:
            print(f"octo: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

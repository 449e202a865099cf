"""One rank of a stage: `python -m megatron_octo.train.worker --folder FOLDER --stage NAME`, started by the launcher."""

import argparse
import io
import os
import sys
from pathlib import Path

from megatron_octo.runtime.signals import listen_for_stop


def main(arguments: list[str] | None = None) -> int:
    """Train the stage on this rank. A stop signal gives status 0 too: result.json says if the stage is complete."""
    stop = listen_for_stop()  # first of all, since the launcher starts this process with the signals blocked
    stop.follow(os.getppid())
    parser = argparse.ArgumentParser(prog="python -m megatron_octo.train.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run folder, with stages/<stage>/recipe.yaml")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--accept-changes", action="store_true")
    parser.add_argument("--stop-after-step", type=int)
    options = parser.parse_args(arguments)
    from megatron_octo.runtime.failures import report_failure
    from megatron_octo.runtime.quiet import silence_library_warnings
    from megatron_octo.runtime.rank import Rank

    silence_library_warnings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a job's log shows each line as it comes
    try:
        from megatron_octo.recipe import load_recipe
        from megatron_octo.runtime.run_folder import RunFolder
        from megatron_octo.train.plan import StageOptions
        from megatron_octo.train.stage import joined_world, train_stage

        run = RunFolder(options.folder)
        recipe = load_recipe(str(run.stage_recipe(options.stage)))
        stage_options = StageOptions(options.accept_changes, options.stop_after_step)
        with joined_world(recipe) as context:
            train_stage(context, recipe, run, options.stage, stage_options)
    except Exception as error:
        return report_failure(error, Rank.from_environment().rank)
    finally:
        stop.ignore_others()
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Convert checkpoints without a recipe: the commands of `octo convert`, by themselves.

python tools/convert_checkpoint.py import HF_DIR MEGATRON_DIR --tensor-parallel 2 --pipeline-parallel 2
python tools/convert_checkpoint.py export MEGATRON_DIR HF_DIR
python tools/convert_checkpoint.py export MEGATRON_LM_DIR HF_DIR --config HF_DIR_OF_THE_SAME_MODEL
python tools/convert_checkpoint.py verify HF_DIR MEGATRON_DIR --logits
"""

import argparse
import sys

from megatron_octo.bridge.command import add_convert_commands
from megatron_octo.errors import OctoError
from megatron_octo.runtime.quiet import silence_library_warnings


def main() -> int:
    """Run a command; status 1 where two folders differ, 2 for bad input."""
    silence_library_warnings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_convert_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    options = parser.parse_args()
    try:
        status: int = options.command(options)
    except OctoError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    return status


if __name__ == "__main__":
    sys.exit(main())

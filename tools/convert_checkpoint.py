#!/usr/bin/env python3
"""Convert checkpoints without a recipe: the commands of `octo convert` as a script.

python tools/convert_checkpoint.py import HF_DIR MEGATRON_DIR --tensor-parallel 2 --pipeline-parallel 2
python tools/convert_checkpoint.py export MEGATRON_DIR HF_DIR
python tools/convert_checkpoint.py export MEGATRON_LM_DIR HF_DIR --config HF_DIR_OF_THE_SAME_MODEL
python tools/convert_checkpoint.py verify HF_DIR MEGATRON_DIR --logits

The exit status is 1 if two folders differ, 2 for bad input.
"""

import sys

from megatron_octo.cli.commands import run_command
from megatron_octo.cli.convert import convert_commands

if __name__ == "__main__":
    sys.exit(run_command(convert_commands, "convert_checkpoint"))

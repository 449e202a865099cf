#!/usr/bin/env python3
"""Benchmark of the token operators: `octo bench logprob` as a script.

    python tools/bench_logprob.py --threads 2 --json bench.json --plot bench.png
    python tools/bench_logprob.py --form logits --tokens 8192 --vocabulary 151936       # on a GPU

OpenRLHF's functions come from the installed package (`pip install --no-deps openrlhf==0.11.2` is enough).
"""

import sys

from megatron_octo.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "logprob", *sys.argv[1:]]))

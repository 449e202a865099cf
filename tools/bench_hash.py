"""Benchmark of the hashing at a run's start: files of a checkpoint's size, against `sha256sum` on as many cores.

python tools/bench_hash.py [--gigabytes 14.8] [--files 8] [--folder DIR] [--rounds 3]

A checkpoint of Llama-3.2-1B has 1.236 billion parameters of 12 bytes: fp32 weights and Adam's two moments. Files that
fit into memory are read from the page cache, as after a save; reading from disk takes longer.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from megatron_octo.runtime.files import sha256_of_all

_BLOCK = 1 << 24


def main() -> None:
    """Write the files, hash them both ways in turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=14.8, help="total size of the files")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to write the files (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = _write(Path(folder), options.files, int(options.gigabytes * 1e9 / options.files))
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(_seconds(lambda: sha256_of_all(paths)))
            theirs.append(_seconds(lambda: _sha256sum(paths, cores)))
    a, b = median(ours), median(theirs)
    print(f"{options.gigabytes:g} GB in {options.files} files, {cores} cores, median of {options.rounds} rounds")
    print(f"  sha256_of_all       {a:7.1f} s   {options.gigabytes / a:5.2f} GB/s")
    print(f"  sha256sum -P {cores:<6} {b:7.1f} s   {options.gigabytes / b:5.2f} GB/s   ratio {a / b:.2f}")


def _write(folder: Path, count: int, size: int) -> list[Path]:
    paths = [folder / f"{number}.distcp" for number in range(count)]
    block = os.urandom(_BLOCK)
    for path in paths:
        with open(path, "wb") as file:
            for start in range(0, size, _BLOCK):
                file.write(block[: size - start])
    return paths


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _sha256sum(paths: list[Path], cores: int) -> None:
    names = "\0".join(map(str, paths))
    subprocess.run(
        ["xargs", "-0", "-n", "1", "-P", str(cores), "sha256sum"],
        input=names,
        text=True,
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()

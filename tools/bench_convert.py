"""Benchmark of conversion: import and export of a full-size model against a plain copy of the same bytes.

    python tools/bench_convert.py                       # Llama-3.2-1B's architecture, random bf16 weights, no download
    python tools/bench_convert.py --recipe octothinker-3b --rounds 1 --folder /a/big/disk

The model is imported to tensor 2 x pipeline 2 and exported from there, and the two Hugging Face folders are compared
byte by byte. The copy reads and writes everything and then fsyncs, as both conversions do. Rounds alternate, and the
medians are compared. Before each measurement all pending writes are flushed and the files dropped from the page cache.

Each measurement, the copy included, runs in a process of its own, which imports torch and transformers before its clock
starts; its peak resident memory is the system's figure. The copy needs this too: in a virtual machine, memory freed
some seconds ago has gone back to the host and is slow to get again, so a copy that starts at once would look three
times as fast.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from megatron_octo.bridge.config import config_of
from megatron_octo.bridge.families import family_of
from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.bridge.safetensors_writer import Planned, ShardedWriter
from megatron_octo.bridge.weight_map import in_order, sizes_of
from megatron_octo.recipe import Architecture, load_recipe
from megatron_octo.runtime.files import sync_tree

_BLOCK = 16 << 20
_RUN = """
import json, resource, sys, time
from pathlib import Path
from bench_convert import copy_all
from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.recipe import Parallel
from transformers import AutoConfig, AutoTokenizer
AutoConfig.for_model(model_type="llama")
way, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
start = time.perf_counter()
if way == "copy":
    copy_all(source, target)
elif way == "import":
    import_checkpoint(source, target, Parallel(tensor=2, pipeline=2))
else:
    export_checkpoint(source, target)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def main() -> None:
    """Measure, print a table, and write JSON if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="octothinker-1b", help="recipe whose model.architecture is used")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="working folder; needs three times the model's size of free space")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    architecture = load_recipe(options.recipe).model.architecture
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=options.folder) as folder:
        result = {"recipe": options.recipe, **_measure(architecture, Path(folder), options.rounds)}
    _show(result)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _measure(architecture: Architecture, folder: Path, rounds: int) -> dict[str, object]:
    source, megatron, back, copy = (folder / name for name in ("hf", "megatron", "back", "copy"))
    _write_random_model(architecture, source)
    size = open_hf_folder(source).bytes
    ways = {"copy": (source, copy), "import": (source, megatron), "export": (megatron, back)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peak = dict.fromkeys(ways, 0)
    for _ in range(rounds):
        for old in (megatron, back):
            shutil.rmtree(old, ignore_errors=True)
        for way, (read_from, write_to) in ways.items():
            _drop_page_cache(folder)
            elapsed, memory = _run(way, read_from, write_to)
            seconds[way].append(elapsed)
            peak[way] = max(peak[way], memory)
            shutil.rmtree(copy, ignore_errors=True)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "bytes": size,
        "largest_tensor_bytes": max(stored.bytes for stored in open_hf_folder(source).tensors.values()),
        "seconds": seconds,
        "ratio": {way: medians[way] / medians["copy"] for way in ("import", "export")},
        "peak_resident_bytes": peak,
        "equal_byte_by_byte": _same_tensors(source, back),
    }


def _write_random_model(architecture: Architecture, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(config_of(architecture, torch.bfloat16, None, {}))
    sizes, generator = sizes_of(architecture), torch.Generator().manual_seed(0)
    rules = family_of(architecture.model_type, "bench").rules_of(architecture)
    planned = [
        Planned(name, part, torch.bfloat16)
        for rule, layer in in_order(rules, architecture.num_hidden_layers)
        for name, part in zip(rule.names(layer), rule.part_shapes(sizes), strict=True)
    ]
    writer = ShardedWriter(folder, planned)
    for tensor in planned:
        # Any 16 bits are a bfloat16. Infinities and all NaNs are among them, and must survive the round trip.
        bits = torch.randint(-(1 << 15), 1 << 15, tensor.shape, dtype=torch.int16, generator=generator)
        writer.add(tensor.name, bits.view(torch.bfloat16))
    writer.close()
    sync_tree(folder)


def _run(way: str, source: Path, target: Path) -> tuple[float, int]:
    command = [sys.executable, "-W", "ignore", "-c", _RUN, way, str(source), str(target)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    completed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, memory = json.loads(completed.stdout.splitlines()[-1])
    return seconds, memory


def _drop_page_cache(folder: Path) -> None:
    """Flush all pending writes, and drop a folder's files from the page cache."""
    os.sync()
    for file in (path for path in folder.rglob("*") if path.is_file()):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_all(source: Path, target: Path) -> None:
    """Copy a folder's files, and fsync each."""
    target.mkdir()
    for file in source.iterdir():
        with open(file, "rb") as reading, open(target / file.name, "wb") as writing:
            while block := reading.read(_BLOCK):
                writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())


def _same_tensors(a: Path, b: Path) -> bool:
    one, other = open_hf_folder(a), open_hf_folder(b)
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensor(name).view(torch.int16), other.tensor(name).view(torch.int16)) for name in one.tensors
    )


def _show(result: dict[str, object]) -> None:
    seconds, ratio, peak = result["seconds"], result["ratio"], result["peak_resident_bytes"]
    assert isinstance(seconds, dict) and isinstance(ratio, dict) and isinstance(peak, dict)
    print(f"{result['recipe']}: {result['bytes']:,} bytes, largest tensor {result['largest_tensor_bytes']:,}")
    for way, times in seconds.items():
        line = f"{way:<7} {statistics.median(times):7.2f} s   ({', '.join(f'{t:.2f}' for t in times)})"
        if way in ratio:
            line += f"   {ratio[way]:.2f} x the copy   peak resident {peak[way] / 2**30:.2f} GiB"
        print(line)
    print(f"round trip equal byte by byte: {result['equal_byte_by_byte']}")


if __name__ == "__main__":
    main()

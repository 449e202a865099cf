"""Benchmark of grading: this tree against an older one, on the same responses in one run.

    git archive e9c0304 | tar x -C /tmp/older
    python tools/bench_grading.py /tmp/older [--count 10000] [--rounds 3] [--data math_train.jsonl]

Both trees grade with one process, in turns, after a warm-up. A third of the responses give the gold answer, a third
another problem's, and a third the gold answer in another notation. The gold answers come from `--data` (JSON lines with
`answer`), or are built in. Printed are the seconds, the number of right answers, and the ratio of the medians.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_GOLDS = [
    "7", "-12", "144", "0.25", "3.5", "1000", "x+1", "y", r"\frac{3}{7}", r"\frac{\sqrt{3}}{2}", r"2\sqrt{5}", "(3,-4)",
    r"\frac{\pi}{4}", "[0,1)", r"(-\infty,2)\cup(3,\infty)", "x^2+3x+2", r"\frac{x+1}{x-1}", "3+4i", "1,-2",
    r"\{1,2,3\}",
    r"90^\circ", r"5\text{ cm}", r"50\%", r"1\pm\sqrt{2}", r"\begin{pmatrix}1\\2\end{pmatrix}", "y=2x+3", "2^{10}",
    r"\text{Monday}", r"e^{-2}", r"\sqrt[3]{2}", "12_8",
]  # fmt: skip
_WORKER = """
import json, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
if pathlib.Path(sys.argv[1], "megatron_octo/grading").is_dir():
    from megatron_octo.grading.pool import Graders
    from megatron_octo.grading.verdict import Verdict
    field = "is_right" if "is_right" in Verdict.__dataclass_fields__ else "right"
    right = lambda graders, pair: getattr(graders.grade(*pair), field)
else:  # a tree from before the package `grading`
    from megatron_octo.rl.graders import Graders
    right = lambda graders, pair: graders.grade(*pair)[0]
if __name__ == "__main__":
    with Graders(1, 5.0) as graders:
        right(graders, [r"\\boxed{x+1}", "x+2"])
        for line in sys.stdin:
            pairs = json.loads(line)
            start = time.perf_counter()
            count = sum(right(graders, pair) for pair in pairs)
            print(json.dumps([time.perf_counter() - start, count]), flush=True)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help="a checkout to compare with")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="JSON lines with an `answer`")
    options = parser.parse_args()
    golds = _GOLDS
    if options.data is not None:
        golds = [str(json.loads(line)["answer"]) for line in options.data.read_text(encoding="utf-8").splitlines()]
    print(json.dumps(measure(options.older, pairs_of(golds, options.count), options.rounds), indent=2))


def pairs_of(golds: list[str], count: int) -> list[tuple[str, str]]:
    """Pairs of response and gold answer, from a fixed seed."""
    dice, pairs = random.Random(0), []
    for i in range(count):
        gold = dice.choice(golds)
        answer = [gold, dice.choice(golds), _respelled(gold, dice)][i % 3]
        pairs.append((f"So the answer is $\\boxed{{{answer}}}$.", gold))
    return pairs


def _respelled(gold: str, dice: random.Random) -> str:
    if gold.isdigit():
        return dice.choice(
            [f"{gold}.0", f"{gold}\\text{{ units}}", f"x={gold}", f"{gold}.", f"\\frac{{{2 * int(gold)}}}{{2}}"]
        )
    return dice.choice(
        [gold.replace(",", ",\\ "), gold.replace("\\frac", "\\dfrac"), f"\\left.{gold}\\right.", f" {gold} "]
    )


def measure(older: Path, pairs: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Seconds of each tree, and the number of answers it finds right."""
    here = Path(__file__).resolve().parent.parent
    right: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "worker.py"  # in a file, because spawned graders import their parent's script
        script.write_text(_WORKER, encoding="utf-8")
        workers = {"this": _worker(script, here), "older": _worker(script, older.resolve())}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for worker in workers.values():
            _run(worker, pairs[:200])
        for _ in range(rounds):
            for name, worker in workers.items():
                elapsed, right[name] = _run(worker, pairs)
                seconds[name].append(elapsed)
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
    median = {name: statistics.median(each) for name, each in seconds.items()}
    rounded = {name: [round(second, 2) for second in each] for name, each in seconds.items()}
    ratio = round(median["this"] / median["older"], 3)
    return {"gradings": len(pairs), "seconds": rounded, "right": right, "ratio_this_to_older": ratio}


def _worker(script: Path, tree: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(script), str(tree)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _run(worker: "subprocess.Popen[str]", pairs: list[tuple[str, str]]) -> tuple[float, int]:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps(pairs) + "\n")
    worker.stdin.flush()
    elapsed, right = json.loads(worker.stdout.readline())
    return elapsed, right


if __name__ == "__main__":
    main()

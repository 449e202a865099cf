"""Plot of the benchmark: bars for time and extra memory, one row of panels for each case."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_OURS, _OTHERS = "#0072b2", "#9aa0a6"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Write a bar chart of the results of `run_case`: one bar for each competitor, ours in colour."""
    figure, axes = pyplot.subplots(len(results), 2, figsize=(11, 1.2 + 2.4 * len(results)), squeeze=False)
    for row, result in zip(axes, results, strict=True):
        case, measured = result["case"], result["measured"][::-1]
        names = [m["name"] for m in measured]
        colours = [_OURS if m["is_ours"] else _OTHERS for m in measured]
        for axis, values, label in (
            (row[0], [m["both_ms"] for m in measured], "forward and backward, ms"),
            (row[1], [m["extra_bytes"] / 1e6 for m in measured], "peak extra memory, MB"),
        ):
            bars = axis.barh(names, values, color=colours, height=0.62)
            axis.bar_label(bars, fmt="{:,.0f}" if max(values) >= 100 else "{:.2f}", padding=4, fontsize=9)
            axis.set_xlim(0, 1.18 * max(values))
            axis.set_xlabel(label, color="#555555")
            for side in ("top", "right", "left"):
                axis.spines[side].set_visible(False)
            axis.tick_params(left=False)
        row[1].set_yticklabels([])
        size = f"{case['tokens']} x {case['vocabulary']:,}"
        size += f", hidden {case['hidden']}" if case["form"] == "linear" else ""
        row[0].set_title(f"from {case['form']}: {size}, {case['dtype']}", loc="left", fontsize=11, fontweight="bold")
    figure.suptitle(f"token log-prob and entropy: {results[0]['device']}", x=0.01, ha="left", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

"""The benchmark's table and numbers, at a size that takes no time. Speed is not tested."""

import io

import pytest
from rich.console import Console

from megatron_octo.ops.bench.run import Case, run_case


@pytest.mark.parametrize("form", ["logits", "linear"])
def test_competitors_agree_and_the_table_fits_a_terminal(form):
    text = io.StringIO()
    result = run_case(Case(form, 8, 100, 16, "fp32", 1), Console(file=text, width=80))
    assert {m["name"] for m in result["measured"]} >= {"octo"}
    for measured in result["measured"]:  # those that return the mean loss are compared with the mean
        assert measured["log_prob_error"] < 1e-5, measured
        assert measured["scratch_bytes"] <= measured["extra_bytes"]
    assert "\u2026" not in text.getvalue()
    assert max(len(line.rstrip()) for line in text.getvalue().splitlines()) <= 80
    assert all(m["name"] in text.getvalue() for m in result["measured"])

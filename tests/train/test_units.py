"""Pure parts of the loop."""

import json

import pytest

from megatron_octo.data.mixture import MixtureSource, data_fingerprint, fingerprint_changes
from megatron_octo.recipe.train import Guards
from megatron_octo.runtime.records import as_ranges, missing_steps, read_records, truncate_records
from megatron_octo.train.loop import SpikeDetector


def test_a_spike_is_flagged_and_does_not_hide_the_next():
    detector = SpikeDetector(Guards(spike_deviations=6.0, spike_window=32))
    for i in range(32):
        assert detector.observe(1.0 + 0.01 * (i % 2)) is None  # mean 1.005, deviation 0.005 x sqrt(32/31)
    deviations = detector.observe(1.1)
    assert deviations == pytest.approx(0.095 / (0.005 * (32 / 31) ** 0.5), rel=1e-9)
    assert detector.observe(1.1) == pytest.approx(deviations)
    assert detector.observe(1.03) is None  # 5 deviations


def test_few_losses_flag_nothing():
    detector = SpikeDetector(Guards())
    assert [detector.observe(x) for x in (1.0, 1.0, 1.0, 100.0)] == [None] * 4


def test_ranges_of_numbers():
    assert as_ranges([4, 5, 6, 9, 11, 12]) == "4-6, 9, 11-12"


def source(name, weight=1.0, digest="a"):
    return MixtureSource(name=name, weight=weight, prefixes=(), sha256=digest)


def test_the_fingerprint_changes_with_whatever_reorders():
    fixed = {"samples": 10, "sequence_length": 8, "global_batch_size": 2, "seed": 1}
    base = data_fingerprint([source("a"), source("b")], **fixed)
    assert fingerprint_changes(base, data_fingerprint([source("a"), source("b")], **fixed)) == []
    assert fingerprint_changes(json.loads(json.dumps(base)), base) == []  # as it comes back from a manifest
    for changed in (
        data_fingerprint([source("b"), source("a")], **fixed),
        data_fingerprint([source("a", digest="z"), source("b")], **fixed),
        data_fingerprint([source("a", weight=2.0), source("b")], **fixed),
        *(data_fingerprint([source("a"), source("b")], **(fixed | {key: 99})) for key in fixed),
    ):
        assert len(fingerprint_changes(base, changed)) == 1


def test_a_torn_last_line_is_left_out_and_repeated_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in (1, 2, 3)) + '{"step": 4, "lo')
    assert [r["step"] for r in read_records(path)] == [1, 2, 3]
    truncate_records(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_torn_line_drops_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste\n\xff\xfe\n[1]\n{"step": 4}\n{"loss": 1}\n{"step": 5}\n')
    found = truncate_records(path, 4)
    assert [record["step"] for record in found.kept] == [1, 4] and found.damaged == 4
    assert missing_steps(found.kept, 6) == [2, 3, 5, 6]
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'

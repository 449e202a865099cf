"""Settings stored before a key was added or removed compare equal to those of today, where they train the same."""

import pytest

from megatron_octo.recipe.versions import KeyChange, in_first_form
from megatron_octo.runtime.files import sha256_of_json

BEFORE = {
    "train": {"loss": "logits", "across_documents": "attend"},
    "stages": {"stable": {"tokens": 10}, "decay": {"tokens": 5}},
    "rl": {"prompts": {"kind": "file", "path": "a"}, "validation": {"kind": "builtin", "count": 3}},
}
CHANGES = (
    KeyChange("train.z_loss", "added", 0.0),
    KeyChange("stages.*.mark", "added", None),
    KeyChange("train.across_documents", "retired", "attend"),
    KeyChange("rl.*.answer_after", "added", None, where=("kind", "file")),
    KeyChange("rl.prompts.shuffle", "retired", False, where=("kind", "url")),
    KeyChange("model.gone", "retired", 1),
)
AFTER = {
    "train": {"loss": "logits", "z_loss": 0.0},
    "stages": {"stable": {"tokens": 10, "mark": None}, "decay": {"tokens": 5, "mark": None}},
    "rl": {
        "prompts": {"kind": "file", "path": "a", "answer_after": None},
        "validation": {"kind": "builtin", "count": 3},
    },
}


def test_a_key_added_and_one_removed():
    assert in_first_form(AFTER, CHANGES) == BEFORE
    assert in_first_form(BEFORE, CHANGES) == BEFORE
    assert sha256_of_json(in_first_form(AFTER, CHANGES)) == sha256_of_json(BEFORE)
    assert in_first_form(in_first_form(AFTER, CHANGES), CHANGES) == BEFORE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("train", "z_loss"), 0.1),
        (("stages", "decay", "mark"), 3),
        (("rl", "prompts", "answer_after"), "####"),
        (("train", "loss"), "fused_linear"),
    ],
)
def test_another_value_is_another_run(path, value):
    changed = in_first_form(AFTER, ())
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert in_first_form(changed, CHANGES) != BEFORE


def test_a_retired_key_that_had_another_value_differs():
    other = in_first_form(BEFORE, ())
    other["train"]["across_documents"] = "separate"
    assert in_first_form(other, CHANGES) != in_first_form(AFTER, CHANGES)


def test_nothing_is_changed_in_place():
    before = repr(AFTER)
    in_first_form(AFTER, CHANGES)
    assert repr(AFTER) == before

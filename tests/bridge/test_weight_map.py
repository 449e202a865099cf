"""The joins against plain indexing, and the tables against transformers' own models."""

import pytest
import torch

from megatron_octo.bridge.families import FAMILIES
from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.bridge.layout import cuts, pipeline_rank_of
from megatron_octo.bridge.weight_map import GATE_ABOVE_UP, QUERY_KEY_VALUE, in_order, sizes_of
from megatron_octo.recipe import Architecture, Parallel, load_recipe
from tests.bridge.models import CASES, make_model

SHAPE = Architecture(
    model_type="llama", hidden_size=12, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=4,
    intermediate_size=8, vocab_size=11, max_position_embeddings=16,
)  # fmt: skip


@pytest.mark.parametrize("columns", [(), (12,)])
def test_queries_keys_and_values_lie_group_by_group(columns):
    """Row by row: group g holds its three heads' queries, then its key, then its value."""
    q, k, v = torch.randn(24, *columns), torch.randn(8, *columns), torch.randn(8, *columns)
    joined = QUERY_KEY_VALUE.join([q, k, v], SHAPE)
    expected = []
    for group in range(2):
        for head in range(3):
            expected += [q[(group * 3 + head) * 4 + i] for i in range(4)]
        expected += [k[group * 4 + i] for i in range(4)]
        expected += [v[group * 4 + i] for i in range(4)]
    assert torch.equal(joined, torch.stack(expected))
    for part, back in zip((q, k, v), QUERY_KEY_VALUE.separate(joined, SHAPE), strict=True):
        assert torch.equal(part, back)


def test_the_gate_lies_above_the_up_projection():
    gate, up = torch.randn(8, 12), torch.randn(8, 12)
    joined = GATE_ABOVE_UP.join([gate, up], SHAPE)
    assert torch.equal(joined[:8], gate) and torch.equal(joined[8:], up)
    assert all(torch.equal(a, b) for a, b in zip(GATE_ABOVE_UP.separate(joined, SHAPE), (gate, up), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_table_names_every_tensor_that_transformers_has(case, tmp_path):
    folder = open_hf_folder(make_model(case, tmp_path / "hf"))
    rules = folder.family.rules_of(folder.architecture)
    named = [name for rule, layer in in_order(rules, 4) for name in rule.names(layer)]
    assert sorted(named) == sorted(folder.tensors) and len(set(named)) == len(named)


@pytest.mark.parametrize("tensor", [1, 2, 3, 4, 8])
def test_cuts_cover_every_row_once(tensor):
    """Whole rows or columns, whatever the tensor ranks: 11 rows of vocabulary over 8 ranks too."""
    sizes = sizes_of(SHAPE)
    for rule in (*FAMILIES["qwen2"].rules, FAMILIES["qwen2"].output):
        taken = [
            row
            for rank in range(tensor)
            for cut in cuts(rule, sizes, rank, tensor)
            for row in range(cut.start, cut.start + cut.length)
        ]
        assert sorted(taken) == list(range(rule.shape(sizes)[rule.split or 0])), rule.key


def test_each_band_is_cut_by_itself():
    fc1 = next(rule for rule in FAMILIES["llama"].rules if rule.key.endswith("linear_fc1.weight"))
    second = [(cut.start, cut.length) for cut in cuts(fc1, sizes_of(SHAPE), 1, 2)]
    assert second == [(4, 4), (12, 4)]  # rows 4-7 of the gate, and of the up projection


def test_interleaved_layers_are_dealt_out_in_runs():
    """Pipeline 2 x virtual 2 over 8 layers: rank 0 has layers 0, 1, 4, 5, as Megatron-Core places them."""
    layer_rule, layout = FAMILIES["llama"].rules[1], Parallel(pipeline=2, virtual_pipeline=2)
    assert [pipeline_rank_of(layer_rule, layer, 8, layout) for layer in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_full_size_shapes_have_the_published_number_of_parameters():
    """Llama-3.2-1B: 1,235,814,400; Llama-3.1-8B: 8,030,261,248; from the tables, not from Architecture."""
    for recipe, expected in (("octothinker-1b", 1_235_814_400), ("octothinker-8b", 8_030_261_248)):
        shape = load_recipe(recipe).model.architecture
        sizes, total = sizes_of(shape), 0
        for rule in FAMILIES["llama"].rules_of(shape):
            count = torch.Size(rule.shape(sizes)).numel()
            total += count * (shape.num_hidden_layers if rule.in_layers else 1)
        assert total == expected

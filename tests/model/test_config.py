import pytest

from megatron_octo.errors import ModelError, RecipeError
from megatron_octo.model.config import padded_vocab_size, transformer_config
from megatron_octo.recipe import Architecture, load_recipe


def test_a_vocabulary_is_padded_to_the_tensor_ranks_and_no_further():
    assert [padded_vocab_size(128256, t) for t in (1, 2, 4, 8)] == [128256] * 4
    assert padded_vocab_size(261, 2) == 262 and padded_vocab_size(261, 8) == 264


@pytest.mark.parametrize(
    ("key", "value"),
    [("low_freq_factor", 2.0), ("high_freq_factor", 8.0), ("original_max_position_embeddings", 4096)],
)
def test_rope_that_megatron_cannot_compute_is_refused(key, value):
    """In a recipe when it is loaded, and in an architecture from elsewhere when the model is built."""
    setting = f"model.architecture.rope_scaling.{key}={value}"
    with pytest.raises(RecipeError, match=f"rope_scaling.{key} = {value}"):
        load_recipe("octothinker-1b", [setting])
    recipe = load_recipe("octothinker-1b")
    tree = recipe.model.architecture.model_dump()
    tree["rope_scaling"][key] = value
    with pytest.raises(ModelError, match=f"rope_scaling.{key} = {value}") as error:
        transformer_config(Architecture(**tree), recipe.train, recipe.parallel)
    assert "cannot be trained here" in str(error.value)


def test_flops_of_llama_1b_by_hand():
    """Llama-3.2-1B at 8,192: 6 x (16 layers x 60,817,408 + 128,256 x 2,048) + 6 x 16 x 8,192 x 2,048."""
    architecture = load_recipe("octothinker-1b").model.architecture
    assert architecture.flops_per_token(8192) == 6 * (16 * 60_817_408 + 262_668_288) + 6 * 16 * 8192 * 2048

"""A recipe's rl section in OpenRLHF's own options, as its own parser reads them."""

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_octo.errors import RecipeError, RuntimeSetupError
from megatron_octo.recipe.openrlhf import reserved_options
from megatron_octo.recipe.rl import BuiltinPrompts, LengthLimit, RlSection
from megatron_octo.rl import machine, parser
from megatron_octo.rl.arguments import command_line, gpus_needed, openrlhf_options
from megatron_octo.rl.parser import check_command_line
from megatron_octo.runtime.rl_folder import RlFolder


def section(**changes):
    return RlSection(prompts=BuiltinPrompts(kind="builtin", count=256), **changes)


def options(rl, on_cpu=False):
    return openrlhf_options(rl, model=Path("hf"), folder=RlFolder(Path("run")), on_cpu=on_cpu)


def test_the_papers_settings():
    found = options(section())
    assert found["algo.advantage.estimator"] == "group_norm"
    assert (found["rollout.batch_size"], found["rollout.n_samples_per_prompt"]) == (128, 16)
    assert found["train.batch_size"] == 64 * 16
    assert (found["rollout.temperature"], found["actor.adam.lr"], found["algo.kl.init_coef"]) == (1.0, 1e-6, 0.0)
    assert (found["actor.eps_clip"], found["rollout.max_new_tokens"], found["data.max_len"]) == (0.2, 4096, 4096 + 1024)


def test_flags_are_words_alone_and_lists_are_spread():
    words = command_line({"a.on": True, "a.off": False, "a.none": None, "b": [0.5, 5.0], "c": 3, "d": -1e-5})
    assert words == ["--a.on", "--b", "0.5", "5.0", "--c=3", "--d=-1e-05"]


def test_options_without_a_key_pass_through():
    assert options(section(openrlhf={"actor.max_norm": 0.5}))["actor.max_norm"] == 0.5


@pytest.mark.parametrize("on_cpu", [False, True])
def test_every_option_that_is_set_here_is_reserved_in_recipes(on_cpu):
    """But for those that a recipe may override."""
    rl = section(algorithm="gae", validation=BuiltinPrompts(kind="builtin", count=8), kl_coefficient=0.1)
    free = {"vllm.gpu_memory_utilization", "vllm.enforce_eager", "ds.attn_implementation", "actor.entropy_coef"}
    by_machine = {"vllm.sync_backend"}
    reserved = reserved_options(has_critic=True, has_reference=True, has_validation=True)
    assert options(rl, on_cpu).keys() - reserved.keys() - free - by_machine == set()
    plain = reserved_options(has_critic=False, has_reference=False, has_validation=False)
    assert options(section()).keys() - plain.keys() - free == set()


def test_the_cpu_has_one_backend_for_syncs():
    rl = section(openrlhf={"vllm.sync_backend": "nccl"})
    assert options(rl)["vllm.sync_backend"] == "nccl"
    with pytest.raises(RecipeError, match=r"rl.openrlhf.vllm.sync_backend = 'nccl': without CUDA it is gloo"):
        options(rl, on_cpu=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"template": "Solve it."}, "a template without {prompt}"),
        ({"template": "{prompt} \\boxed{}"}, "not a template"),
        ({"response_tokens": [{"from_step": 5, "tokens": 9}]}, "from_step [5]: the first is 0"),
        ({"response_tokens": [{"from_step": 0, "tokens": 9}, {"from_step": 0, "tokens": 8}]}, "each later one above"),
    ],
)
def test_values_that_do_not_fit(changes, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        section(**changes)


def test_ppo_has_a_critic_and_its_gpus():
    ppo = section(algorithm="gae", gpus=2, engines=3)
    assert options(ppo)["critic.model_name_or_path"] == "hf"
    assert gpus_needed(ppo, options(ppo)) == 2 + 2 + 3
    assert gpus_needed(section(), options(section())) == 1 + 1
    assert gpus_needed(section(kl_coefficient=0.1), options(section(kl_coefficient=0.1))) == 1 + 1 + 1
    shared = section(gpus=4, engines=2, engine_gpus=2, openrlhf={"train.colocate_all": True})
    assert gpus_needed(shared, options(shared)) == 4
    beside = section(gpus=2, kl_coefficient=0.1, openrlhf={"train.colocate_actor_ref": True})
    assert gpus_needed(beside, options(beside)) == 2 + 1


def test_a_constant_rate_warms_up_where_it_is_asked_to():
    """transformers' own `constant` would leave the warm-up out."""
    assert options(section())["actor.lr_scheduler"] == "constant"
    warm = options(section(algorithm="gae", warmup=0.1))
    assert warm["actor.lr_scheduler"] == warm["critic.lr_scheduler"] == "constant_with_warmup"
    assert warm["actor.lr_warmup_ratio"] == warm["critic.lr_warmup_ratio"] == 0.1


def test_another_version_of_openrlhf_is_refused(monkeypatch):
    """The hooks replace what is inside it."""
    monkeypatch.setattr(machine, "version", lambda package: "0.12.0")
    with pytest.raises(RuntimeSetupError, match=r"OpenRLHF 0\.12\.0 is installed, and octo hooks into 0\.11\.2 alone"):
        machine.check_packages()


needs_openrlhf = pytest.mark.skipif(find_spec("openrlhf") is None, reason="OpenRLHF is not installed")


@needs_openrlhf
@pytest.mark.parametrize("algorithm", ["gae", "group_norm", "rloo"])
def test_openrlhf_takes_every_option(algorithm):
    """By its own parser: ours, and others with values of all kinds."""
    others = {"actor.adam.betas": [0.9, 0.999], "reward.clip_range": [-1.5, 10], "actor.min_lr_ratio": -1e-5}
    validation = BuiltinPrompts(kind="builtin", count=8)
    rl = section(algorithm=algorithm, validation=validation, kl_coefficient=0.1, openrlhf=others)
    check_command_line(command_line(options(rl, on_cpu=True)))


@needs_openrlhf
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"actor.max_nrom": 0.5}, "unrecognized arguments: --actor.max_nrom=0.5"),
        ({"actor.max_nor": 0.5}, "unrecognized arguments: --actor.max_nor=0.5"),
        ({"actor.max_norm": "small"}, "argument --actor.max_norm: invalid float value: 'small'"),
        ({"actor.optim": "sgd"}, "argument --actor.optim: invalid choice: 'sgd'"),
        ({"actor.adam.betas": 0.9}, "argument --actor.adam.betas: expected 2 arguments"),
        ({"train.colocate_all": "yes"}, "argument --train.colocate_all: ignored explicit argument 'yes'"),
        ({"help": True}, "unrecognized arguments: --help"),
    ],
)
def test_options_that_openrlhf_does_not_take_are_refused(extra, message):
    with pytest.raises(RecipeError, match=re.escape(f"rl: OpenRLHF refuses its options: {message}")):
        check_command_line(command_line(options(section(openrlhf=extra))))


def test_an_openrlhf_without_the_parser_that_is_known_is_refused(tmp_path, monkeypatch):
    place = tmp_path / "cli/train_ppo_ray.py"
    monkeypatch.setattr(parser, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    place.parent.mkdir()
    lines = ("if __name__ == '__main__':", "parser = argparse.ArgumentParser()", "{}", "args = parser.parse_args()")
    between = "\n    ".join(lines)
    for source in (None, "print()", between.format("unknown()")):
        if source is not None:
            place.write_text(source)
        with pytest.raises(RuntimeSetupError, match=r"no argument parser where OpenRLHF 0\.11\.2 has one"):
            check_command_line([])
    place.write_text(between.format("pass"))
    check_command_line([])
    monkeypatch.setattr(parser, "find_spec", lambda name: None)
    with pytest.raises(RuntimeSetupError, match="RL needs openrlhf, not installed here"):
        check_command_line([])


@pytest.mark.parametrize(
    ("step", "tokens"), [(0, 2048), (99, 2048), (100, 4096), (159, 4096), (160, 8192), (10_000, 8192)]
)
def test_the_papers_length_schedule_at_its_marks(step, tokens):
    limits = tuple(LengthLimit(from_step=at, tokens=n) for at, n in ((0, 2048), (100, 4096), (160, 8192)))
    assert section(response_tokens=limits).response_limit(step) == tokens
    assert section(response_tokens=limits).longest_response == 8192

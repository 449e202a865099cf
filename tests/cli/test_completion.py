import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from megatron_octo.cli import octo
from megatron_octo.recipe import shipped_recipes
from tests.support import MINI

BRANCHES = ["decay-long", "decay-short", "decay-hybrid"]


def completions(*words: str) -> list[CompletionItem]:
    """The completions of the last word."""
    return ShellComplete(octo, {}, "octo", "_OCTO_COMPLETE").get_completions(list(words[:-1]), words[-1])


def values(*words: str) -> list[str]:
    return [item.value for item in completions(*words)]


def test_commands() -> None:
    assert values("") == [
        "train", "rl", "export", "heldout", "report", "status", "data", "checkpoint", "convert", "recipes", "recipe",
        "bench",
    ]  # fmt: skip
    assert values("re") == ["report", "recipes", "recipe"]
    assert values("data", "") == ["check", "prepare", "verify", "show"]


@pytest.mark.parametrize(
    "command", [["train"], ["rl"], ["export"], ["heldout"], ["report"], ["status"], ["recipe"], ["data", "prepare"]]
)
def test_recipes(command: list[str]) -> None:
    assert values(*command, "") == shipped_recipes()
    assert values(*command, "octo") == ["octothinker-1b", "octothinker-3b", "octothinker-8b"]
    assert [item.type for item in completions(*command, "./my")] == ["file"]


@pytest.mark.parametrize("command", ["train", "export", "heldout"])
def test_stages_that_are_not_given_yet(command: str) -> None:
    assert values(command, "tiny", "") == ["stable", *BRANCHES]
    assert values(command, "tiny", "decay-") == BRANCHES
    assert values(command, "tiny", "stable", "decay-long", "") == ["decay-short", "decay-hybrid"]


def test_stages_of_the_recipe_at_hand() -> None:
    assert values("rl", "tiny", "st") == ["stable"]
    assert values("data", "show", "tiny", "decay-s") == ["decay-short"]
    assert values("train", str(MINI), "") == ["stable", "decay"]
    assert "extra" in values("train", "tiny", "-s", "stages.extra={parent: stable, tokens: 1M, mixture: {web: 1}}", "")


def test_sources() -> None:
    for command in ("prepare", "check", "verify"):
        assert values("data", command, "tiny", "--source", "") == ["web", "code", "qa", "long_cot", "instruction"]


@pytest.mark.parametrize("recipe", ["no-such-recipe", "/nowhere/recipe.yaml", ""])
def test_a_recipe_that_cannot_be_loaded_has_no_stages(recipe: str) -> None:
    assert values("train", recipe, "") == []
    assert values("data", "check", recipe, "--source", "") == []


def test_options_and_choices() -> None:
    assert values("train", "tiny", "--st") == ["--stop-after-step"]
    assert values("data", "prepare", "tiny", "--executor", "") == ["local", "slurm", "ray"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str) -> None:
    assert run_as_shell(f"{shell}_source").startswith(
        "#compdef" if shell == "zsh" else ("_octo", "function _octo")[shell == "fish"]
    )


def test_the_process_that_bash_calls(tmp_path: Path) -> None:
    assert run_as_shell("bash_complete", COMP_WORDS="octo train tiny dec", COMP_CWORD="3").split() == [
        f"plain,{branch}" for branch in BRANCHES
    ]


def run_as_shell(instruction: str, **variables: str) -> str:
    """`octo` as a shell runs it to complete a word."""
    return subprocess.run(
        [sys.executable, "-m", "megatron_octo.cli"],
        env=os.environ | {"_OCTO_COMPLETE": instruction} | variables,
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip

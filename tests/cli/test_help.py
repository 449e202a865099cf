import shlex
import subprocess
import sys

import click
import pytest

from megatron_octo.cli import main, octo
from tests.cli.commands import COMMANDS

HEAVY = {"torch", "pydantic", "rich", "numpy", "yaml", "matplotlib", "megatron", "transformers", "ray", "vllm"}
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["convert", "export", "--help"], ["train"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom megatron_octo.cli import main\n"
        "main(sys.argv[1:])\nprint('IMPORTED', *{name.partition('.')[0] for name in sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    imported = set(ended.stdout.rpartition("IMPORTED")[2].split())
    assert "click" in imported and not HEAVY & imported


def test_commands_are_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    blocks = [block.split("\n  ") for block in capsys.readouterr().out.split("\n\n")]
    sections = {lines[0]: [line.split()[0] for line in lines[1:]] for lines in blocks if lines[0].endswith(":")}
    assert sections["Run:"] == ["train", "rl", "export", "heldout", "report", "status"]
    assert sections["Data:"] == ["data"]
    assert sections["Checkpoints:"] == ["checkpoint", "convert"]
    assert sections["Recipes:"] == ["recipes", "recipe"]
    assert sections["Kernels:"] == ["bench"]


@each_command
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_help_has_an_example(words: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, flag]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith(" ".join(["Usage: octo", *words, "[OPTIONS]"]))
    _, title, examples = printed.out.rpartition("\nExample")
    assert title
    for line in examples.splitlines()[1:]:
        assert line.startswith(" ".join(["  octo", *words]))


@each_command
def test_examples_are_commands_that_exist(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    for example in command.examples:  # type: ignore[attr-defined]
        program, *arguments = shlex.split(example)
        assert program == "octo"
        target: click.Command = octo
        while isinstance(target, click.Group):
            target = target.commands[arguments.pop(0)]
        if arguments != ["--help"]:
            target.make_context("octo", arguments)  # which parses them


@each_command
def test_every_argument_and_option_is_explained_with_its_default(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    context = click.Context(COMMANDS[words])
    for parameter in COMMANDS[words].params:
        assert isinstance(parameter, click.Argument | click.Option) and parameter.help
        assert " ".join(parameter.help.split()) in shown
        default = parameter.get_default(context)
        if isinstance(parameter, click.Option) and not parameter.is_flag and isinstance(default, str | int | float):
            record = parameter.get_help_record(context)
            assert record is not None and f"[default: {default}]" in shown


def test_known_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for words, shown in (
        (["data", "prepare"], ["[default: 2]", "[default: local]", "[default: (all that a stage uses)]"]),
        (["train"], ["[default: ($OCTO_RUNS, else ./runs)]", "(default: all, each after its parent)"]),
        (["convert", "export"], ["[default: 5.0]", "[default: (the checkpoint's)]"]),
        (["bench", "logprob"], ["[default: 512]", "[default: 128256]", "[default: bf16]", "[default: (all cores)]"]),
    ):
        main([*words, "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert all(text in printed for text in shown)

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_octo.cli import main
from megatron_octo.errors import TrainingHalted
from megatron_octo.train import run as train_run
from tests.cli.commands import COMMANDS
from tests.support import ROOT, octo

REFUSED = {
    "no command": ([], "Usage: octo"),
    "no command of data": (["data"], "Usage: octo data"),
    "unknown command": (["trian"], "No such command 'trian'. Did you mean 'train'?"),
    "unknown option": (["train", "tiny", "--acept-changes"], "No such option '--acept-changes'"),
    "no recipe": (["train"], "Missing argument 'RECIPE'"),
    "no stage": (["rl", "tiny"], "Missing argument 'STAGE'"),
    "no samples": (["data", "show", "tiny", "stable"], "Missing argument 'SAMPLES...'"),
    "too many words": (["rl", "tiny", "stable", "decay-long"], "unexpected extra argument"),
    "option without value": (["train", "tiny", "-s"], "requires an argument"),
    "flag with value": (["train", "tiny", "--accept-changes=yes"], "does not take a value"),
    "other executor": (
        ["data", "prepare", "tiny", "--executor", "dask"],
        "'dask' is not one of 'local', 'slurm', 'ray'",
    ),
    "no number": (["data", "show", "tiny", "stable", "first"], "'first' is not a valid integer"),
    "no size": (["convert", "export", "a", "b", "--shard-gb", "big"], "'big' is not a valid float"),
    "no layout": (["convert", "import", "a", "b", "--tensor-parallel", "1.5"], "'1.5' is not a valid integer"),
    "no folder for results": (["bench", "logprob", "--json", "/no/where.json"], "there is no folder '/no'"),
    "folder for results": (["bench", "logprob", "--plot", "/"], "is a directory"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "", " 1", "1_0", "²", "٣", "9" * 5000, "1e3", "0x10"])
def test_whole_numbers_are_refused_with_their_limit(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, option, most in (
        (["train", "tiny"], "--stop-after-step", "1,000,000,000"),
        (["data", "prepare", "tiny"], "--workers", "4,096"),
        (["bench", "logprob"], "--vocabulary", "16,777,216"),
    ):
        assert main([*words, option, value]) == 2
        error = capsys.readouterr().err
        assert f"'{option}': {value[:40]!r} is not a whole number from 1 to {most}" in error and len(error) < 400


def test_a_number_beyond_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "tiny", "--workers", "4097"]) == 2
    assert "'4097' is not a whole number from 1 to 4,096" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-1", "-12", "15648", "9" * 30])
def test_samples_that_a_stage_lacks(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "tiny", "stable", "0", number]) == 2
    assert capsys.readouterr().err == f"octo: sample {number}: stable has samples 0 to 15647; choose one of them\n"


@pytest.mark.parametrize("form", ["-s seed=7", "-sseed=7", "--set seed=7", "--set=seed=7"])
@pytest.mark.parametrize("is_first", [True, False])
def test_forms_of_an_override(form: str, is_first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", *form.split(), "tiny"] if is_first else ["recipe", "tiny", *form.split()]) == 0
    assert "\nseed: 7\n" in capsys.readouterr().out


def test_overrides_are_applied_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "tiny", "-s", "seed=7", "-s", "seed=8"]) == 0
    assert "\nseed: 8\n" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("octo 0.")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (TrainingHalted("the loss is not finite"), 3, "octo: the loss is not finite\n"),
        (KeyboardInterrupt(), 130, "octo: interrupted; run the same command again to go on\n"),
    ],
)
def test_statuses(
    raised: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **settings: object) -> int:
        raise raised

    monkeypatch.setattr(train_run, "train_stages", fail)
    assert main(["train", "tiny"]) == status
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("bug", [ValueError("a bug"), EOFError(), FileNotFoundError(2, "a bug")])
def test_a_bug_keeps_its_traceback(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **settings: object) -> int:
        raise bug

    monkeypatch.setattr(train_run, "train_stages", fail)
    with pytest.raises(type(bug)):
        main(["train", "tiny"])


LEAVES = [words for words in COMMANDS if words not in {(), ("data",), ("checkpoint",), ("convert",), ("bench",)}]
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["tiny", "-s", "--set", "--runs", "--source", "--workers", "--tokens", "-1", "--", "-", "=", "--x="]
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(LEAVES), st.lists(WORDS, max_size=6))
def test_any_words_are_parsed_or_refused(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], words: list[str]
) -> None:
    # `--no-such-option` at the end: nothing is run, whatever came before
    status = main([*command, *words, "--no-such-option=1"])
    printed = capsys.readouterr()
    assert (status == 2 and printed.err) or (status == 0 and printed.out.startswith("Usage:"))


def test_words_that_are_not_utf8() -> None:
    for words in ([b"\xff"], [b"train", b"tiny", b"\xff"], [b"train", b"tiny", b"--stop-after-step", b"\xff"]):
        ended = subprocess.run(
            [sys.executable, "-m", "megatron_octo.cli", *words], capture_output=True, check=False, cwd=ROOT
        )
        assert ended.returncode == 2 and rb"\udcff" in ended.stderr and b"Traceback" not in ended.stderr


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    code = (
        f"import os, sys\nfrom megatron_octo.cli import main\nos.rmdir({str(folder)!r})\nsys.exit(main(sys.argv[1:]))"
    )
    for words, status, message in ((["recipes"], 2, "the folder this was started in is gone"), (["-h"], 0, "")):
        folder.mkdir(exist_ok=True)
        ended = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert ended.returncode == status and message in ended.stderr


def test_the_tool_for_conversions(tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/convert_checkpoint.py")]
    for words, status, message in (
        ([], 2, "Usage: convert_checkpoint"),
        (["import"], 2, "Missing argument 'HF_DIR'"),
        (["import", str(tmp_path), str(tmp_path / "new")], 2, f"convert_checkpoint: {tmp_path}: no config.json"),
    ):
        ended = subprocess.run([*tool, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == status and message in ended.stderr and "Traceback" not in ended.stderr


def test_errors_of_a_subprocess(tmp_path: Path) -> None:
    ended = octo("train", "tiny", "-s", "nokey=1", cwd=tmp_path, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("octo: tiny: 1 problem\n  nokey = 1")

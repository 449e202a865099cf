"""Run folders that an older commit made, stopped in the middle, go on with the code of today."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from io import BytesIO

import pytest

from tests.rl.runs import RL, WIDER, gone, needs_rl, wait_for
from tests.support import MINI, ROOT, lines, octo

OLD = "e9c0304"
"""Before settings were compared in a versioned form, and before manifests had a digest."""


@pytest.fixture(scope="module")
def old_code(tmp_path_factory):
    """The package as it was."""
    made = subprocess.run(["git", "archive", OLD, "megatron_octo"], cwd=ROOT, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"commit {OLD} is not in this clone: {made.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def started(code, *arguments, cwd, **options):
    environment = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, "-m", "megatron_octo.cli", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.STDOUT, text=True, **options)


def octo_of(code, *arguments, cwd):
    process = started(code, *arguments, cwd=cwd, stdout=subprocess.PIPE)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


@pytest.mark.slow
def test_a_training_and_its_branch_go_on(old_code, tmp_path):
    stopped, branched, anew = (tmp_path / name for name in ("stopped", "branched", "anew"))
    for folder in (stopped, anew):
        folder.mkdir()
    octo_of(old_code, "data", "prepare", str(MINI), "--workers", "1", cwd=stopped)
    shutil.copytree(stopped, branched)
    octo_of(old_code, "train", str(MINI), "stable", "--stop-after-step", "8", cwd=stopped)
    octo_of(old_code, "train", str(MINI), "stable", cwd=branched)
    octo_of(old_code, "train", str(MINI), "decay", "--stop-after-step", "4", cwd=branched)
    assert "resumes after step 8" in octo("train", str(MINI), cwd=stopped).stdout
    told = octo("train", str(MINI), cwd=branched).stdout
    assert "stable: already trained" in told and "resumes after step 4" in told
    octo("data", "prepare", str(MINI), "--workers", "1", cwd=anew)
    octo("train", str(MINI), cwd=anew)
    for stage in ("stable", "decay"):
        losses = [
            [record["loss"] for record in lines(folder / f"runs/mini/stages/{stage}/metrics.jsonl")]
            for folder in (stopped, branched, anew)
        ]
        assert losses[0] == losses[1] == losses[2]


_DIGEST = """
import sys
from megatron_octo.recipe import load_recipe
from megatron_octo.rl import launch
rl = load_recipe(sys.argv[1], sys.argv[2:]).rl
if hasattr(launch, "_MAY_CHANGE"):  # the old code, which has no function for it
    settings = rl.model_dump(mode="json", exclude=launch._MAY_CHANGE)
    print(launch.sha256_of_json({"rl": settings, "export": "0a", "files": {"prompts.jsonl": "{}"}}))
else:
    from megatron_octo.rl.plan import settings_digest
    print(settings_digest(rl, "0a", {"prompts.jsonl": "{}"}))
"""


@needs_rl
@pytest.mark.parametrize(
    "prompts",
    [
        "rl.prompts={kind: builtin, count: 12}",
        "rl.prompts={kind: file, path: problems.jsonl, answer_key: gold}",
    ],
)
def test_an_rl_run_is_known_by_the_same_settings(old_code, tmp_path, prompts):
    """This digest decides whether `octo rl` resumes from a folder's checkpoints."""
    digests = []
    for code in (old_code, ROOT):
        words = [word for word in (*WIDER, "-s", RL, "-s", prompts) if word != "-s"]
        environment = os.environ | {"PYTHONPATH": str(code)}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(MINI), *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.append(done.stdout.strip())
    assert digests[0] == digests[1]


@needs_rl
@pytest.mark.skipif("OCTO_LONG_TESTS" not in os.environ, reason="takes two minutes: OCTO_LONG_TESTS=1 runs it")
def test_an_rl_run_goes_on(old_code, tmp_path):
    """Its export, its settings, its checkpoints and its records are taken as they are."""
    settings = [*WIDER, "-s", RL]
    octo_of(old_code, "data", "prepare", str(MINI), "--workers", "1", cwd=tmp_path)
    octo_of(old_code, "train", str(MINI), "stable", *WIDER, cwd=tmp_path)
    octo_of(old_code, "export", str(MINI), "stable", *WIDER, cwd=tmp_path)
    folder, log = tmp_path / "runs/mini/rl/stable", tmp_path / "rl.txt"
    with open(log, "w") as output:
        process = started(old_code, "rl", str(MINI), "stable", *settings, cwd=tmp_path, stdout=output)
        wait_for(folder / "checkpoints/whole/global_step1", process, log)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert gone(folder) and not (folder / "result.json").exists()
    before = lines(folder / "metrics.jsonl")
    octo("rl", str(MINI), "stable", *settings, cwd=tmp_path, timeout=500)
    records = lines(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[0] == before[0]
    assert (folder / "last/config.json").is_file()

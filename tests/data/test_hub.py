"""Data sets of the hub through the real clients, `datasets` and `huggingface_hub`, from a stand-in on loopback.

The rows have the fields that the cards of the shipped recipes' sources state. What the real hub serves was not tried.
"""

import io
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard

from megatron_octo.data.manifest import read_manifest
from megatron_octo.recipe import load_recipe
from megatron_octo.runtime.run_folder import RunFolder
from tests.data.helpers import left_behind, read_texts
from tests.data.hub_stand_in import Repository, commit_of, hub_stand_in

_ROWS = 24
DRIVER = """
import sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.05))
from megatron_octo.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`octo`, which waits less between tries."""


def parquet(rows):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts_of(what):
    return [{"text": f"{what}, page {i}: " + "words " * 30} for i in range(_ROWS)]


def messages(i, **more):
    return [
        {"role": "user", "content": f"What is {i}+{i}?", **more},
        {"role": "assistant", "content": f"{2 * i}", **more},
    ]


def open_r1(i):
    thought = {"role": "assistant", "content": f"<think>hm</think>It is {2 * i}"}
    return {
        "problem": f"What is {i}+{i}?", "solution": "x", "answer": str(2 * i), "generations": ["a", "b"],
        "correctness_math_verify": [True, False], "messages": [messages(i)[0], thought],
    }  # fmt: skip


RANGE = range(_ROWS)
CHAT = [f"User:What is {i}+{i}?\nAssistant:{2 * i}" for i in RANGE]
MEGAMATH = ("megamath-web-pro", "megamath-text-code-block", "megamath-qa", "megamath-code", "megamath-translated-code")


def shipped():
    """Every hub data set of octothinker-1b as its card describes it, and the documents that its sources should give."""
    half = _ROWS // 2
    files = {
        "OctoThinker/MegaMath-Web-Pro-Max": {"data/train-00000.parquet": parquet(texts_of("max"))},
        "mlfoundations/dclm-baseline-1.0": {
            "global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst": zstandard.compress(
                json_lines([{**row, "url": "x", "metadata": {"WARC-Type": "response"}} for row in texts_of("dclm")])
            )
        },
        "LLM360/MegaMath": {
            f"{folder}/{part}.parquet": parquet(texts_of(folder)[half * part : half * (part + 1)])
            for folder in MEGAMATH
            for part in (0, 1)
        },
        "allenai/tulu-3-sft-personas-instruction-following": {
            "data/train-00000-of-00001.parquet": parquet(
                [{"id": str(i), "prompt": "x", "messages": messages(i), "constraints": ["short"]} for i in RANGE]
            )
        },
        "allenai/WildChat-1M": {
            "data/train-00000-of-00001.parquet": parquet(
                [
                    {"conversation_hash": "x", "conversation": messages(i, language="English", toxic=False), "turn": 1}
                    for i in RANGE
                ]
            )
        },
        "HuggingFaceH4/ultrachat_200k": {
            f"data/{split}-00000-of-00001.parquet": parquet(
                [{"prompt": "x", "prompt_id": "x", "messages": messages(i)} for i in RANGE]
            )
            for split in ("train_sft", "test_sft", "train_gen")
        },
        "open-r1/OpenR1-Math-220k": {"data/train-00000-of-00001.parquet": parquet([open_r1(i) for i in RANGE])},
        "a-m-team/AM-DeepSeek-Distilled-40M": {
            "train.jsonl": json_lines(
                [{"question": f"What is {i}+{i}?", "answer": f"<think>hm</think>{2 * i}", "model": "r1"} for i in RANGE]
            )
        },
        "nvidia/OpenMathInstruct-2": {
            "data/train-00000-of-00001.parquet": parquet(
                [
                    {"problem": f"What is {i}+{i}?", "generated_solution": f"It is {2 * i}", "expected_answer": "x"}
                    for i in RANGE
                ]
            )
        },
        "AI-MO/NuminaMath-1.5": {
            "data/train-00000-of-00001.parquet": parquet(
                [{"problem": f"What is {i}+{i}?", "solution": f"It is {2 * i}", "answer": None} for i in RANGE]
            )
        },
    }  # fmt: skip
    expected = {
        "megamath-web-pro-max": [row["text"] for row in texts_of("max")],
        "dclm-baseline": [row["text"] for row in texts_of("dclm")],
        **{name: [row["text"] for row in texts_of(name)] for name in MEGAMATH},
        "tulu3-personas-if": CHAT,
        "wildchat": CHAT,
        "ultrachat": CHAT,
        "openr1-math": [f"What is {i}+{i}?\n<think>hm</think>It is {2 * i}" for i in RANGE],
        "am-deepseek-distilled": [f"What is {i}+{i}?\n<think>hm</think>{2 * i}" for i in RANGE],
        "openmathinstruct-2": [f"Question:What is {i}+{i}?\nAnswer:It is {2 * i}" for i in RANGE],
        "numinamath-1.5": [f"Question:What is {i}+{i}?\nAnswer:It is {2 * i}" for i in RANGE],
    }
    return {name: Repository(data, licence="mit") for name, data in files.items()}, expected


class Octo:
    """`octo data ...` against a hub, on a recipe with these sources."""

    def __init__(self, hub, folder, sources):
        self.folder, self.run = folder, RunFolder(folder / "runs" / "mine")
        share = 1.0 / len(sources)
        recipe = {
            "extends": "tiny", "name": "mine",
            "data": {"heldout_problems": 0, "practice_problems": 0, "sources": {
                **dict.fromkeys(("web", "code", "qa", "long_cot", "instruction")), **sources,
            }},
            "stages": {"stable": {"mixture": dict.fromkeys(sources, share)},
                       **dict.fromkeys(("decay-long", "decay-short", "decay-hybrid"))},
        }  # fmt: skip
        (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != "OCTO_RUNS"
        } | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def __call__(self, command, *arguments):
        return subprocess.run(
            [sys.executable, "-c", DRIVER, "data", command, "mine.yaml", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip


def hub_source(dataset, **settings):
    return {"kind": "hub", "dataset": dataset, "validation_documents": 2, **settings}


@pytest.mark.slow
def test_every_shipped_source_is_prepared_from_rows_of_its_cards_shape(tmp_path):
    repositories, expected = shipped()
    sources = {
        name: source.model_dump(mode="json") | {"validation_documents": 2}
        for name, source in load_recipe("octothinker-1b").data.sources.items()
    }
    assert set(sources) == set(expected)
    with hub_stand_in(repositories) as hub:
        octo = Octo(hub, tmp_path, sources)
        done = octo("prepare", "--workers", "2")
    assert done.returncode == 0, done.stderr
    for name, documents in expected.items():
        folder = octo.run.source(name)
        manifest = read_manifest(folder)
        assert sorted(read_texts(folder, "train") + read_texts(folder, "validation")) == sorted(documents), name
        assert manifest.revision == commit_of(repositories[sources[name]["dataset"]].files)
        assert (manifest.rows_read, manifest.bad_rows) == (_ROWS, {})


def test_a_revision_is_pinned(tmp_path):
    old, new = ({"a.jsonl": json_lines([{"text": f"{age} {i}"} for i in range(20)])} for age in ("old", "new"))
    with hub_stand_in({"some/set": Repository(new, older=old)}) as hub:
        octo = Octo(hub, tmp_path, {
            "pinned": hub_source("some/set", revision=commit_of(old)), "newest": hub_source("some/set"),
        })  # fmt: skip
        done = octo("prepare")
    assert done.returncode == 0, done.stderr
    for name, files in (("pinned", old), ("newest", new)):
        assert read_manifest(octo.run.source(name)).revision == commit_of(files)
        assert all(
            name == ("pinned" if text.startswith("old") else "newest")
            for text in read_texts(octo.run.source(name), "train")
        )
    assert not [request for request in hub.requests if "resolve/main" in request]


SOME = {"data/train.parquet": parquet(texts_of("a")), "data/test.parquet": parquet(texts_of("b"))}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (hub_source("some/gated"), "it is gated: accept its terms on its page, and set HF_TOKEN"),
        (hub_source("some/absent"), "check dataset; a private one needs HF_TOKEN"),
        (hub_source("some/set", subset="fr"), "BuilderConfig 'fr' not found"),
        (hub_source("some/set", data_dir="nowhere"), "doesn't contain any data files"),
        (hub_source("some/set", split="validation"), "split"),
        (hub_source("some/set", revision="0" * 40), "check revision"),
        (hub_source("some/set", format={"kind": "text", "text": "body"}), "has no field 'body'; it has text"),
    ],
    ids=["gated", "absent", "subset", "folder", "split", "revision", "field"],
)
def test_what_the_hub_does_not_give(source, said, tmp_path):
    repositories = {
        "some/set": Repository(SOME), "some/gated": Repository({"a.jsonl": json_lines(texts_of("a"))}, gated=True),
    }  # fmt: skip
    with hub_stand_in(repositories) as hub:
        octo = Octo(hub, tmp_path, {"a": source})
        done = octo("prepare")
    assert done.returncode == 2, done.stderr
    assert "octo: data.sources.a" in done.stderr and said in done.stderr and "Traceback" not in done.stderr
    assert left_behind(octo.run) == []


def test_no_hub_at_all(tmp_path):
    with hub_stand_in({}) as hub:
        octo = Octo(hub, tmp_path, {"a": hub_source("some/set")})
    done = octo("prepare")
    assert done.returncode == 2, done.stderr
    assert "check the network and HF_ENDPOINT" in done.stderr and "Traceback" not in done.stderr


BIG = [{"text": f"{i} " + "word " * 800} for i in range(400)]


def cut_file(kind):
    """A file, and where to cut it: of JSON lines at the end of a line, where nothing else would tell."""
    if kind == "jsonl":
        data = json_lines(BIG)
        return "a.jsonl", data, data.index(b"\n", len(data) // 2) + 1
    if kind == "zst":
        data = zstandard.compress(json_lines(BIG[:200])) + zstandard.compress(json_lines(BIG[200:]))
        return "a.jsonl.zst", data, len(zstandard.compress(json_lines(BIG[:200])))
    data = parquet(BIG)
    return "a.parquet", data, len(data) // 2


@pytest.mark.parametrize("quiet", [True, False], ids=["quiet", "loud"])
@pytest.mark.parametrize("kind", ["jsonl", "zst", "parquet"])
def test_a_connection_that_ends_in_the_middle_gives_no_short_corpus(kind, quiet, tmp_path):
    name, data, at = cut_file(kind)
    with hub_stand_in({"some/set": Repository({name: data})}) as hub:
        hub.cuts, hub.quiet = {name: at}, quiet
        octo = Octo(hub, tmp_path, {"a": hub_source("some/set")})
        done = octo("prepare", "--workers", "1")
    assert done.returncode == 2, done.stderr
    assert "octo: " in done.stderr and "Traceback" not in done.stderr
    assert left_behind(octo.run) == []


@pytest.mark.parametrize("quiet", [True, False], ids=["quiet", "loud"])
def test_a_connection_that_ends_once_is_taken_up_again(quiet, tmp_path):
    name, data, at = cut_file("jsonl")
    with hub_stand_in({"some/set": Repository({name: data})}) as hub:
        octo = Octo(hub, tmp_path, {"a": hub_source("some/set", max_bad_rows=0.0)})
        # opening reads the file's beginning for its columns; then it is read whole
        hub.cuts, hub.cut_times, hub.quiet = {name: at}, {name: 3}, quiet
        done = octo("prepare", "--workers", "1")
    assert done.returncode == 0, done.stderr
    found = read_texts(octo.run.source("a"), "train") + read_texts(octo.run.source("a"), "validation")
    assert sorted(found) == sorted(row["text"] for row in BIG)
    assert hub.cut_times[name] < 3

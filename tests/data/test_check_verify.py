"""`octo data check` and `octo data verify`, as they are run."""

import io
import json

import pyarrow
import pyarrow.parquet
import yaml
from rich.console import Console

from megatron_octo.data.check import check_sources
from megatron_octo.recipe import load_recipe
from tests.data.hub_stand_in import Repository, hub_stand_in
from tests.data.test_hub import Octo, hub_source, json_lines, parquet, texts_of
from tests.support import octo

ROWS = [{"text": f"document {i} [with] brackets"} for i in range(50)]


def recipe_file(folder, sources):
    recipe = {
        "extends": "tiny", "name": "mine",
        "data": {"heldout_problems": 0, "practice_problems": 0, "sources": {
            **dict.fromkeys(("web", "code", "qa", "long_cot", "instruction")), **sources,
        }},
        "stages": {"stable": {"mixture": dict.fromkeys(sources, 1.0 / len(sources))},
                   **dict.fromkeys(("decay-long", "decay-short", "decay-hybrid"))},
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))


def test_check_of_local_sources(tmp_path):
    (tmp_path / "good.jsonl").write_bytes(json_lines(ROWS))
    (tmp_path / "some.jsonl").write_bytes(b"nonsense\n" + json_lines(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"body": "x"}]), tmp_path / "b.parquet")
    good = {
        "good": {"kind": "jsonl", "paths": ["good.jsonl"], "licence": "CC0"},
        "some": {"kind": "jsonl", "paths": ["some.jsonl"]},
        "made": {"kind": "builtin", "corpus": "qa", "documents": 100},
    }
    recipe_file(tmp_path, good)
    said = octo("data", "check", "mine.yaml", cwd=tmp_path).stdout
    assert "good: document 0 [with] brackets" in said and "CC0" in said and "made: Question:" in said
    assert "some: some rows cannot be used: 1 of 20 rows: not JSON" in said
    assert "3 sources: all can be used, by their first rows" in said
    bad = {
        "field": {"kind": "jsonl", "paths": ["good.jsonl"], "format": {"kind": "text", "text": "body"}},
        "column": {"kind": "parquet", "paths": ["b.parquet"]},
        "absent": {"kind": "jsonl", "paths": ["absent.jsonl"]},
    }
    recipe_file(tmp_path, good | bad)
    done = octo("data", "check", "mine.yaml", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "field: cannot be used: 20 of 20 rows: no field 'body' (the row has text)" in done.stdout
    assert "has no field 'text'; it has body" in done.stdout and "matches no file" in done.stdout
    assert "3 of 6 sources cannot be used: absent, column, field" in done.stdout
    assert octo("data", "check", "mine.yaml", "--source", "good", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "runs").exists()


def test_check_of_evaluation_files(tmp_path):
    rows = [{"question": f"what is {i}?"} for i in range(50)]
    (tmp_path / "good.jsonl").write_bytes(json_lines(rows))
    (tmp_path / "later.jsonl").write_bytes(json_lines(rows) + b"nonsense\n")  # only the first rows are read
    (tmp_path / "number.jsonl").write_bytes(b'{"question": 5}\n')
    (tmp_path / "nonsense.jsonl").write_bytes(b"nonsense\n")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"body": "x", "id": 1}]), tmp_path / "b.parquet")

    def problems(*paths, field="question"):
        recipe_file(tmp_path, {"made": {"kind": "builtin", "corpus": "qa", "documents": 100}})
        text = yaml.safe_load((tmp_path / "mine.yaml").read_text())
        text["data"]["decontamination"] = {"against": {"e": {"paths": list(paths), "fields": [field]}}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text))
        said = io.StringIO()
        is_good = check_sources(load_recipe(str(tmp_path / "mine.yaml")), None, Console(file=said, width=500))
        assert "1 sources: all can be used" in said.getvalue()
        found = [line for line in said.getvalue().splitlines() if line.startswith("data.decontamination.against.e")]
        assert is_good == (not found)
        wanted = (
            f"{len(found)} of {len(paths)} evaluation files cannot" if found else f"{len(paths)} evaluation files: all"
        )
        assert wanted in said.getvalue()
        return found

    folder = str(tmp_path)
    assert problems(f"{folder}/good.jsonl", f"{folder}/later.jsonl") == []
    for path, said in {
        "absent.jsonl": "does not exist; correct it", "number.jsonl": "it is a number", "empty.jsonl": "holds no rows",
        "nonsense.jsonl": "not JSON", "b.parquet": "no text in field 'question'; correct `fields` (it has body, id)",
        "": "a folder; name the files in it",
    }.items():  # fmt: skip
        (problem,) = problems(f"{folder}/good.jsonl", f"{folder}/{path}")
        assert said in problem, path
    assert "(it has question)" in problems(f"{folder}/good.jsonl", field="text")[0]
    assert "no user of that name" in problems("~no-such-user/a.jsonl")[0]


def test_check_of_hub_sources_reads_only_their_beginnings(tmp_path):
    big = json_lines([{"text": f"{i} " + "word " * 2000} for i in range(8000)])
    repositories = {
        "some/set": Repository({"data/train.parquet": parquet(texts_of("a"))}, licence="mit"),
        "some/gated": Repository({"a.jsonl": json_lines(ROWS)}, gated=True),
        "some/big": Repository({"a.jsonl": big}),
    }
    with hub_stand_in(repositories) as hub:
        run = Octo(hub, tmp_path, {
            "open": hub_source("some/set", licence="CC0"), "closed": hub_source("some/gated"),
            "big": hub_source("some/big"), "gone": hub_source("some/gone"),
        })  # fmt: skip
        done = run("check")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "CC0 (card: mit)" in " ".join(done.stdout.split()) and "open: a, page 0" in done.stdout
    assert "closed: cannot be used: data.sources.closed" in done.stdout and "accept its terms" in done.stdout
    assert "2 of 4 sources cannot be used: closed, gone" in done.stdout
    assert hub.served["a.jsonl"] < len(big) / 2


def test_verify(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    source = {"kind": "jsonl", "paths": ["a.jsonl"], "validation_documents": 1}
    recipe_file(tmp_path, {"a": source, "b": source, "c": source})
    octo("data", "prepare", "mine.yaml", "--source", "a", "--source", "b", cwd=tmp_path)
    said = octo("data", "verify", "mine.yaml", "--source", "a", cwd=tmp_path).stdout
    assert said.startswith("a: intact (4 files, ")
    folder = tmp_path / "runs" / "mine" / "data"
    data = bytearray((folder / "a/train.bin").read_bytes())
    data[10] ^= 1
    (folder / "a/train.bin").write_bytes(data)
    done = octo("data", "verify", "mine.yaml", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a: DAMAGED: ") and "train.bin: SHA-256" in lines[0]
    assert lines[1].startswith("b: intact (4 files, ")
    assert lines[2].startswith("c: DAMAGED: ") and "not prepared" in lines[2]
    # the manifest of one source in the folder of another, and a tokenizer that is another one now
    (folder / "b").rename(folder / "c")
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    done = octo("data", "verify", "mine.yaml", "--source", "c", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "its manifest belongs to source 'b'" in done.stdout
    (folder / "c").rename(folder / "b")
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text())))
    done = octo("data", "verify", "mine.yaml", "--source", "b", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "made with another tokenizer" in done.stdout

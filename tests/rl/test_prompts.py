"""Problems for RL: read, checked, put into templates; and none that training or the held-out set has."""

import json

import pytest

from megatron_octo.errors import DataError
from megatron_octo.recipe import load_recipe
from megatron_octo.recipe.rl import COMPLEX, SIMPLE, ProblemSet, PromptFile
from megatron_octo.rl.prompts import Prompt, prompt_rows, read_prompts, shared_with
from tests.support import SHARED


def read(path, **changes):
    return read_prompts(PromptFile(kind="file", path=str(path), **changes), load_recipe("tiny"), None, 0)


@pytest.mark.parametrize("as_lines", [False, True])
def test_json_and_jsonl(tmp_path, as_lines):
    rows = [{"prompt": "1+1?", "answer": 2}, {"prompt": "2+2?", "answer": "4"}]
    path = tmp_path / "p.json"
    path.write_text("\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows, indent=1))
    assert read(path) == [Prompt("1+1?", "2"), Prompt("2+2?", "4")]
    assert read(path, count=1) == [Prompt("1+1?", "2")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"question": "1", "answer": "2"}]', "row 1: no key 'prompt' (it has 'question', 'answer'); set prompt_key"),
        ('[{"prompt": "1", "answer": ""}]', "1 rows whose problem is empty, or whose answer is empty"),
        ('[{"prompt": " ", "answer": "2"}]', "1 rows whose problem is empty"),
        ('[{"prompt": "1", "answer": "%s"}]' % ("9" * 301), "longer than 300 characters"),
        ("[", "not JSON"),
        ("[1]", "rows that are no objects"),
        ("[]", "holds no rows"),
    ],
)
def test_bad_files_say_where(tmp_path, text, expected):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read(tmp_path / "absent.json")


def test_templates():
    for template, start in ((SIMPLE, "Question:1+{x}?\nAnswer:"), (COMPLEX, "A conversation between")):
        row = json.loads(prompt_rows([Prompt("1+{x}?", "2")], template, "prompts"))
        assert row["input"].startswith(start) and "1+{x}?" in row["input"] and row["label"] == "2"
    assert "\\boxed{}." in row["input"] and row["input"].endswith("Assistant:")


@pytest.mark.skipif(not (SHARED / "data/rl/math8k.json").is_file(), reason="../shared is not here")
def test_math8k_at_its_real_size():
    prompts = read(SHARED / "data/rl/math8k.json")
    assert len(prompts) == 8521  # two have no answer
    assert len(prompt_rows(prompts, SIMPLE, "prompts").split("\n")) == 8521 + 1
    math, math500 = (ProblemSet(path=str(SHARED / f"data/eval/{name}/test.jsonl")) for name in ("math", "math500"))
    shared = shared_with(prompts, {"math": math, "math500": math500})
    # the reference counts 2,936 at least; its own spelling of the problems differs in some more
    assert shared["math"] >= 2900 and shared["math500"] == 0

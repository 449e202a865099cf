"""Prompts for RL: read, checked, put into templates; none is in the training text or held out."""

import gzip
import json
import math

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_octo.data.tokenizer import load_tokenizer
from megatron_octo.errors import DataError
from megatron_octo.recipe import load_recipe
from megatron_octo.recipe.rl import COMPLEX, SIMPLE, ProblemSet, PromptFile
from megatron_octo.rl.prompt_file import Prompt
from megatron_octo.rl.prompts import prompt_rows, read_prompts, shared_with, short_enough
from megatron_octo.runtime.run_folder import RunFolder
from tests.data.test_tokenizer import with_limits
from tests.support import SHARED


def read(path, recipe=None, run=None, **changes):
    return read_prompts(PromptFile(kind="file", path=str(path), **changes), recipe or load_recipe("tiny"), run, 0)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


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
        (
            '[{"question": "1", "answer": "2"}]',
            "1 x no field 'prompt' (it has question, answer); set prompt_key: row 1",
        ),
        ('[{"prompt": "1", "answer": ""}]', "1 of 1 rows cannot be used, and max_bad_share is 0.001"),
        ('[{"prompt": "1", "answer": ""}]', "1 x field 'answer' is empty: row 1"),
        ('[{"prompt": " ", "answer": "2"}]', "1 x field 'prompt' is empty: row 1"),
        ('[{"prompt": "1", "answer": "%s"}]' % ("9" * 301), "longer than 300 characters"),
        ("[", "not JSON"),
        ("[1]", "1 x not an object: row 1"),
        ("", "holds no rows"),
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


SUMS = [{"prompt": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(5)]
EXPECTED = [Prompt(row["prompt"], row["answer"]) for row in SUMS]


def packed_rows(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_any_form_of_file_that_sources_have(tmp_path):
    """../shared/cases/prompts-file-formats."""
    raw = packed_rows(SUMS)
    lines = raw.splitlines()
    files = {
        "bom.jsonl": b"\xef\xbb\xbf" + raw, "blank.jsonl": b"\n\n".join(lines) + b"\n \n",
        "x.jsonl.gz": gzip.compress(raw), "misnamed.jsonl": gzip.compress(raw), "crlf.jsonl": b"\r\n".join(lines),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == EXPECTED, name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SUMS), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == EXPECTED


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e"])
def test_line_ends_of_str_splitlines_do_not_split_rows(tmp_path, separator):
    if separator < " ":
        rows = [{"prompt": f"a{separator}b", "answer": "2"}]
        (tmp_path / "p.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]))
        assert read(tmp_path / "p.jsonl") == [Prompt(f"a{separator}b", "2")] * 2
        return
    rows = [{"prompt": f"a{separator}b {i}", "answer": "2"} for i in range(5)]
    assert [p.problem for p in read(write(tmp_path / "p.jsonl", rows))] == [row["prompt"] for row in rows]


CHAT = [{"role": "user", "content": "1+1"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": CHAT, "answer": "2"}, "field 'prompt' is a chat, not text; set chat: true"),
        ({"prompt": None, "answer": "2"}, "field 'prompt' is null, not text"),
        ({"prompt": math.nan, "answer": "2"}, "field 'prompt' is a number, not text"),
        ({"prompt": 7, "answer": "2"}, "field 'prompt' is a number, not text"),
        ({"prompt": {"text": "1+1"}, "answer": "2"}, "field 'prompt' is an object, not text"),
        ({"prompt": ["1+1"], "answer": "2"}, "field 'prompt' is a list, not text"),
        ({"prompt": "\ud800", "answer": "2"}, "field 'prompt' holds half of a surrogate pair"),
        ({"prompt": "1+1", "answer": None}, "field 'answer' is null, not text"),
        ({"prompt": "1+1", "answer": math.nan}, "field 'answer' is a number with too many digits"),
        ({"prompt": "1+1", "answer": math.inf}, "field 'answer' is a number with too many digits"),
        ({"prompt": "1+1", "answer": 1e20}, "field 'answer' is a number with too many digits"),
        ({"prompt": "1+1", "answer": 10**20}, "field 'answer' is a number with too many digits"),
        ({"prompt": "1+1", "answer": 0.1 + 0.2}, "field 'answer' is a number with too many digits"),
        ({"prompt": "1+1", "answer": True}, "field 'answer' is a boolean, not text"),
        ({"prompt": "1+1", "answer": {"value": "2"}}, "field 'answer' is an object, not text"),
        ({"prompt": "1+1", "answer": ["2"]}, "field 'answer' is a list, not text"),
        ({"prompt": "1+1", "answer": [CHAT]}, "field 'answer' is a list, not text"),
        ({"prompt": "1+1", "answer": "It is 2.\n#### 2"}, "is a worked solution, which does not equal its own answer"),
        ({"prompt": "1+1", "answer": "It is 2.\n#### 2"}, "set answer_after: '####'"),
        ({"prompt": "1+1", "answer": "One and one are two, so $\\boxed{2}$."}, "is a worked solution"),
        ({"prompt": "1+1", "answer": "One more is two. The answer is 2."}, "is a worked solution"),
        ({"prompt": "1+1", "answer": "so " * 200 + "#### 2"}, "is a worked solution"),
    ],
)
def test_rows_without_a_problem_or_an_answer_are_refused(tmp_path, row, reason):
    """../shared/cases/prompts-not-text and prompts-gsm8k-gold."""
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*SUMS, row]))
    with pytest.raises(DataError) as caught:
        read(path)
    assert reason in str(caught.value) and "row 6" in str(caught.value)
    assert read(path, max_bad_share=0.2) == EXPECTED


@pytest.mark.parametrize(
    ("answer", "text"),
    [(2, "2"), (-7, "-7"), (2**63 - 1, "9223372036854775807"), (0.5, "0.5"), (2.0, "2"), (-1.25, "-1.25"),
     (" 2 ", " 2 "), ("\\boxed{2}", "\\boxed{2}"), ("The answer is", "The answer is")],
)  # fmt: skip
def test_answers_that_are_taken(tmp_path, answer, text):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "1+1", "answer": answer}))
    assert read(path) == [Prompt("1+1", text)]


def test_the_answer_after_a_mark(tmp_path):
    rows = [{"prompt": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}, {"prompt": "a", "answer": "#### 5 #### 1,080 "}]
    path = write(tmp_path / "p.jsonl", rows)
    assert read(path, answer_after="####") == [Prompt("1+1?", "2"), Prompt("a", "1,080")]
    write(path, [*rows, {"prompt": "b", "answer": "7"}])
    with pytest.raises(DataError, match="1 x field 'answer' does not hold answer_after = '####': row 3"):
        read(path, answer_after="####")


def test_dotted_keys(tmp_path):
    rows = [{"meta": {"q": "1+1?"}, "reward_model": {"ground_truth": ["2"]}}]
    found = read(write(tmp_path / "p.jsonl", rows), prompt_key="meta.q", answer_key="reward_model.ground_truth.0")
    assert found == [Prompt("1+1?", "2")]


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(tmp_path):
    folder = tmp_path / "mine"
    load_tokenizer(load_recipe("tiny").model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return load_recipe("tiny", [f"model.tokenizer={folder}"])


def test_a_chat_is_put_into_the_tokenizers_template_if_asked(tmp_path):
    recipe, run = with_template(tmp_path), RunFolder(tmp_path / "run")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+{x}?"}]
    path = write(tmp_path / "p.jsonl", [{"prompt": chat, "answer": "2"}])
    (prompt,) = read(path, recipe, run, chat=True)
    assert prompt == Prompt("1+{x}?", "2", "<system>Be brief.<user>1+{x}?<assistant>")
    assert json.loads(prompt_rows([prompt], SIMPLE, "prompts"))["input"] == prompt.chat
    for chat, reason in {
        "1+1?": "is not a list of messages",
        (): "a chat that does not end with what the user says",
        ("user", "assistant"): "a chat that does not end with what the user says",
        ("tool", "user"): "a chat that the chat template refuses",
    }.items():
        messages = chat if isinstance(chat, str) else [{"role": role, "content": "x"} for role in chat]
        with pytest.raises(DataError, match=reason):
            read(write(path, [{"prompt": messages, "answer": "2"}]), recipe, run, chat=True)
    with pytest.raises(DataError, match="has no chat template"):
        read(path, load_recipe("tiny"), RunFolder(tmp_path / "other"), chat=True)


@pytest.mark.parametrize("limit", ["truncation", "padding"])
def test_prompts_are_measured_whole(tmp_path, limit, capsys):
    """../shared/cases/tokenizer-truncation and tokenizer-padding."""
    with_limits(tmp_path / "mine", limit)
    rl = load_recipe("tiny", ["rl.template='{prompt}'", "rl.max_prompt_tokens=40"]).rl
    kept = short_enough([Prompt("x" * 40, "1"), Prompt("x" * 41, "1")], rl, tmp_path / "mine")
    assert [len(prompt.problem) for prompt in kept] == [40]
    assert "(the longest has 41)" in capsys.readouterr().out


def test_a_parquet_file_without_the_column_says_which_it_has(tmp_path):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"query": "1+1", "answer": "2", "id": 1}]), path)
    with pytest.raises(DataError, match=r"no field 'prompt' \(it has query, answer, id\); set prompt_key"):
        read(path)
    with pytest.raises(DataError, match=r"no field 'problem' \(it has query, answer, id\); set rl.test_sets.t"):
        shared_with(EXPECTED, {"t": ProblemSet(path=str(path), problem_key="problem")})


def test_home_folders_of_nobody():
    with pytest.raises(DataError, match=r"~no-such-user/p\.jsonl: .* write the whole path"):
        read("~no-such-user/p.jsonl")
    with pytest.raises(DataError, match=r"~no-such-user/t\.jsonl: .* write the whole path"):
        shared_with(EXPECTED, {"t": ProblemSet(path="~no-such-user/t.jsonl")})


def test_a_test_set_without_text(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"problem": "1+1"}, {"problem": ["2+2"]}])
    with pytest.raises(
        DataError, match=r"row 2: field 'problem' is a list, not text .*; set rl.test_sets.t.problem_key"
    ):
        shared_with(EXPECTED, {"t": ProblemSet(path=str(path))})


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["role", "content", "a"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=4000)
@given(
    st.lists(st.dictionaries(st.sampled_from(["prompt", "answer"]), JSON), max_size=4),
    st.sampled_from([None, "####"]),
)
def test_any_rows_are_read_or_refused(tmp_path_factory, rows, answer_after):
    path = tmp_path_factory.mktemp("rows") / "p.json"
    path.write_text(json.dumps(rows))
    try:
        prompts = read(path, answer_after=answer_after, max_bad_share=0.9)
    except DataError:
        return
    assert all(isinstance(p.problem, str) and p.answer.strip() for p in prompts)


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

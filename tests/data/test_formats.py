"""Every format against text written out by hand, and rows that cannot be used."""

import pickle

import pytest
from pydantic import TypeAdapter

from megatron_octo.data.formats import BadRow, Formatter
from megatron_octo.recipe.data import Format


def formatter(**settings):
    made = Formatter(TypeAdapter(Format).validate_python(settings))
    return pickle.loads(pickle.dumps(made))  # as a task gets it


CONVERSATION = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"}, {"role": "user", "content": "And 2+2?"},
    {"role": "assistant", "content": "4"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "row", "text"),
    [
        ({"kind": "text"}, {"text": " as it stands \n", "id": 3}, " as it stands \n"),
        ({"kind": "text", "text": "body"}, {"body": "b"}, "b"),
        ({"kind": "qa"}, {"question": "1+1?", "answer": "2"}, "Question:1+1?\nAnswer:2"),
        (
            {"kind": "qa", "answer": "solution", "template": "{answer} <- {question} \\boxed{}"},
            {"question": "{answer}", "solution": "{question}"},
            "{question} <- {answer} \\boxed{}",
        ),
        ({"kind": "instruction"}, {"user": "Hi", "assistant": "Hello"}, "User:Hi\nAssistant:Hello"),
        (
            {"kind": "instruction", "messages": "messages"},
            {"messages": CONVERSATION},
            "System:Be brief.\nUser:1+1?\nAssistant:2\nUser:And 2+2?\nAssistant:4",
        ),
        (
            {"kind": "instruction", "messages": "conversations"},
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            "User:Hi\nAssistant:Hello",
        ),
        (
            {"kind": "long_cot", "question": "problem"},
            {"problem": "1+1?", "thought": "one more", "answer": "2"},
            "1+1?\n<think>one more</think>2",
        ),
        (
            {"kind": "long_cot", "thought": None},
            {"question": "q", "answer": "<think>t</think>a"},
            "q\n<think>t</think>a",
        ),
    ],
)  # fmt: skip
def test_formats(settings, row, text):
    assert formatter(**settings)(row) == text


@pytest.mark.parametrize(
    ("settings", "row", "reason"),
    [
        ({"kind": "text"}, ["a"], "not an object"),
        ({"kind": "text"}, {"body": "x"}, "no field 'text'"),
        ({"kind": "text"}, {"text": 5}, "field 'text' is a number, not text"),
        ({"kind": "text"}, {"text": None}, "field 'text' is null, not text"),
        ({"kind": "text"}, {"text": True}, "field 'text' is a boolean, not text"),
        ({"kind": "text"}, {"text": {}}, "field 'text' is an object, not text"),
        ({"kind": "text"}, {"text": b"x"}, "field 'text' is bytes, not text"),
        ({"kind": "instruction", "messages": "m"}, {"m": [{"role": 5}]}, "a role that is a number, not text"),
        ({"kind": "text"}, {"text": " \n"}, "field 'text' is empty"),
        ({"kind": "qa"}, {"question": "q", "answer": ""}, "field 'answer' is empty"),
        ({"kind": "instruction", "messages": "m"}, {"m": "text"}, "field 'm' is not a list of messages"),
        ({"kind": "instruction", "messages": "m"}, {"m": CONVERSATION[:2]}, "lacks a user's or an assistant's message"),
        ({"kind": "instruction", "messages": "m"}, {"m": [{"role": "tool"}]}, "a role other than user"),
    ],
)
def test_bad_rows(settings, row, reason):
    with pytest.raises(BadRow, match=reason):
        formatter(**settings)(row)


def test_a_dot_steps_into_objects_and_lists_unless_it_is_part_of_a_name():
    nested = formatter(kind="text", text="messages.1.content")
    assert nested({"messages": [{"content": "a"}, {"content": "b"}]}) == "b"
    assert nested({"messages": [], "messages.1.content": "literal"}) == "literal"
    for row in ({"messages": [{}]}, {"messages": "text"}, {"messages": {"1": 5}}, {}):
        with pytest.raises(BadRow, match=r"no field 'messages.1.content'"):
            nested(row)


def test_a_template_without_its_places_is_refused():
    with pytest.raises(ValueError, match=r"it must hold \{question\} and \{answer\} once each"):
        formatter(kind="qa", template="Q:{question}")

"""The tokenizer of a run: exact, checked, and kept where other legs find it."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from megatron_octo.data.tokenizer import bytes_tokenizer, load_tokenizer, tokenizer_sha256
from megatron_octo.errors import DataError
from megatron_octo.recipe import load_recipe


def model(*overrides):
    return load_recipe("tiny", overrides).model


TEXTS = [
    "plain", "", "12+7=19\n\t 19-5=14.  ", "Ünïcödé ∑∫ 漢字 🙂👩‍👩‍👧 \u202e", "".join(map(chr, range(0x250))),
    "a" * 5000,    "<think>x</think><|endoftext|>", "\r\n \u00a0\u2028", "e\u0301 \u00e9",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_the_ids_and_come_back(text, tmp_path):
    tokenizer = load_tokenizer(model(), tmp_path / "tokenizer")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    plain = text.replace("<think>", "").replace("</think>", "").replace("<|endoftext|>", "")
    assert [i for i in ids if i < 256] == list(plain.encode())


def test_it_loads_with_auto_tokenizer_and_says_where_documents_end(tmp_path):
    tokenizer = load_tokenizer(model(), tmp_path / "tokenizer")
    again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.eos_token_id, again.pad_token_id) == (256, 257)
    assert again("<think>").input_ids == [258]
    assert again.decode([258, 65, 259, 256], skip_special_tokens=True) == "<think>A</think>"
    assert len(again) == 260


def test_saving_twice_is_the_same(tmp_path):
    load_tokenizer(model(), tmp_path / "a")
    load_tokenizer(model(), tmp_path / "b")
    first = tokenizer_sha256(tmp_path / "a")
    load_tokenizer(model(), tmp_path / "a")
    assert first == tokenizer_sha256(tmp_path / "a") == tokenizer_sha256(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def bpe(folder, bos=True):
    """A small BPE with a beginning-of-text token that its post-processor adds, as Llama 3's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the sum of twelve and seven is nineteen"] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken("<bos>", special=True), AddedToken("<eos>", special=True)])
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def with_limits(folder, limit):
    """builtin:bytes with a tokenizer.json that asks for truncation, or for padding."""
    load_tokenizer(model(), folder)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    if limit == "truncation":
        tokenizer.enable_truncation(16)
    else:
        tokenizer.enable_padding(pad_id=257, pad_token="<|pad|>")
    tokenizer.save(str(path))


def test_a_folder_is_copied_as_it_is(tmp_path):
    original = bpe(tmp_path / "mine")
    sets = (f"model.tokenizer={tmp_path}/mine", "model.end_of_document=<eos>", "model.architecture.vocab_size=512")
    loaded = load_tokenizer(model(*sets), tmp_path / "run" / "tokenizer")
    text = "the sum of 12 and seven"
    assert loaded.encode(text) == original.encode(text).ids
    assert loaded.eos_token == "<eos>"
    assert (tmp_path / "run/tokenizer/tokenizer.json").read_bytes() == (tmp_path / "mine/tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["model.tokenizer=BYTES", "model.end_of_document=<end>"],
            r"'<end>' is 5 tokens of '.*bytes', not 1; choose .*<\|endoftext\|>",
        ),
        (
            ["model.tokenizer=BYTES", "model.architecture.vocab_size=259"],
            r"ids up to 259, but .*vocab_size is 259; raise it to 260",
        ),
        (["model.tokenizer=EMPTY"], r"no tokenizer.json in .*; give a folder that has one"),
        (["model.tokenizer=BROKEN"], r"tokenizer.json is not a tokenizer .*; copy it again"),
    ],
)
def test_bad_tokenizers_are_refused_and_leave_nothing(sets, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (tmp_path / "broken/tokenizer_config.json").write_text("{}")
    (tmp_path / "bytes").mkdir()
    bytes_tokenizer().save(str(tmp_path / "bytes/tokenizer.json"))
    for name in ("empty", "broken", "bytes"):
        sets = [setting.replace(name.upper(), str(tmp_path / name)) for setting in sets]
    with pytest.raises(DataError, match=message):
        load_tokenizer(model(*sets), tmp_path / "run" / "tokenizer")
    assert not list((tmp_path / "run").iterdir())


def test_a_missing_one_names_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer.json here; run `octo data prepare`"):
        tokenizer_sha256(tmp_path)

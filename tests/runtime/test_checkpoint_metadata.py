"""`.metadata` is read without being run: what is not metadata is refused by name, and every place is checked."""

import contextlib
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.checkpoint_metadata import MOST_METADATA_BYTES, check_format, read_checkpoint_metadata
from megatron_octo.runtime.metadata_pickle import read_pickled_records
from tests.runtime.hostile import BYTES, HOSTILE, metadata_bytes


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of two tensors, by torch."""
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    state = {"one": torch.randn(4, 3), "two": torch.arange(5, dtype=torch.bfloat16)}
    save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint_metadata(folder)
    return str(caught.value)


def rewrite(folder: Path, change: Any) -> None:
    """Alter the metadata as pickle reads it."""
    metadata = FileSystemReader(folder).read_metadata()
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_it_says_what_torch_says(written):
    ours, theirs = read_checkpoint_metadata(written), FileSystemReader(written).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(folder, protocol):
    metadata = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
    assert read_checkpoint_metadata(folder).state_dict_metadata == metadata.state_dict_metadata


@pytest.mark.parametrize("kind", [*HOSTILE, *BYTES])
def test_a_pickle_that_calls_is_not_run(folder, kind, tmp_path):
    (folder / ".metadata").write_bytes(metadata_bytes(kind, tmp_path / "marker"))
    message = refused(folder)
    assert not (tmp_path / "marker").exists()
    assert "names " in message or "instruction" in message or "damaged" in message
    if kind == "os.system":
        assert "posix.system" in message and "do not use this checkpoint" in message


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind not in ("import", "getattr", "torch.hub")])
def test_those_pickles_do_run_in_pickle(kind, tmp_path):
    """Or the test above would show nothing."""
    marker = tmp_path / "marker"
    try:
        value = pickle.loads(metadata_bytes(kind, marker))
        getattr(value, "wait", lambda: None)()
    except TypeError:  # `list` of a number, after the call
        pass
    assert marker.exists()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "damaged or cut short"),
        (b"\x80\x04", "damaged or cut short"),
        (b"not a pickle", "instruction"),
        (pickle.dumps({"a": 1}), "damaged"),
        (pickle.dumps([1, 2]), "damaged"),
        (b"\x80\x04N.", "damaged"),
        (b"\x80\x04]r\xff\xff\xff\xff.", "damaged"),  # a memo of 64 GB for Python's own reader
        (b"\x80\x04]X\xff\xff\xff\xff.", "damaged or cut short"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged or cut short"),
        (b"\x80\x04" + b")" + b"\x85" * 200_000 + b"}" + b"\x8c\x01a" + b"s.", "damaged"),
        (b"\x80\x04})" + b"\x85" * 200_000 + b"Ns.", "keys"),  # a hash 200,000 deep ends Python
    ],
    ids=range(11),
)
def test_damaged_metadata(folder, data, expected):
    (folder / ".metadata").write_bytes(data)
    assert expected in refused(folder)


def test_metadata_that_is_cut_anywhere(folder):
    whole = (folder / ".metadata").read_bytes()
    for length in range(0, len(whole), 7):
        (folder / ".metadata").write_bytes(whole[:length])
        assert "cut short" in refused(folder)


def test_metadata_of_another_size(folder):
    with open(folder / ".metadata", "r+b") as file:
        file.truncate(MOST_METADATA_BYTES + 1)
    assert "at most" in refused(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\0b", "link", 7, "missing"])
def test_a_file_outside_the_folder(folder, name):
    (folder / "link").symlink_to("/etc/passwd")
    (folder.parent / "b").write_text("x")

    def change(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = name

    rewrite(folder, change)
    message = refused(folder)
    assert "passwd" not in message or "outside" in message or "leads out" in message


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, 1 << 40), (1 << 70, 1), (10**9, 0), ("a", 1), (0, 1.5)])
def test_a_part_outside_its_file(folder, offset, length):
    def change(metadata):
        for info in metadata.storage_data.values():
            info.offset, info.length = offset, length

    rewrite(folder, change)
    assert ".metadata" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "state_dict_metadata", [1]),
        lambda m: setattr(m, "storage_data", None),
        lambda m: m.storage_data.popitem(),
        lambda m: setattr(m.state_dict_metadata["one"], "size", torch.Size([1 << 40, 1 << 40])),
        lambda m: setattr(m.state_dict_metadata["one"], "size", [4, 3]),
        lambda m: setattr(m.state_dict_metadata["one"], "size", torch.Size([3, 3])),
        lambda m: setattr(m.state_dict_metadata["one"], "chunks", None),
        lambda m: setattr(m.state_dict_metadata["one"], "chunks", m.state_dict_metadata["one"].chunks * 2),
        lambda m: setattr(m.state_dict_metadata["one"], "chunks", m.state_dict_metadata["one"].chunks * 10_000_000),
        lambda m: setattr(m.state_dict_metadata["one"], "properties", 3),
        lambda m: setattr(m.state_dict_metadata["one"].properties, "dtype", "float32"),
        lambda m: m.state_dict_metadata.update({5: m.state_dict_metadata["one"]}),
        lambda m: m.storage_data.update({MetadataIndex("x"): 3}),
        lambda m: m.storage_data.update({MetadataIndex("one", torch.Size([0, 0])): _StorageInfo("a", 0, 1, ["zstd"])}),
    ],
    ids=range(14),
)
def test_metadata_that_contradicts_itself(folder, change):
    rewrite(folder, change)
    start = time.monotonic()
    refused(folder)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"sharded_backend": "zarr"}', '{"a": 1}', '{"sharded_backend": "torch_dist", "x": 1}']
)
def test_another_format(folder, text):
    (folder / "metadata.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"metadata\.json"):
        check_format(folder)


PLAIN = pickle.dumps({"a": [1, (2.5, None, True)], "b": "text" * 5, "c": {"d": -(2**40)}})


@settings(max_examples=300, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda b: b"\x80\x04" + b),
        st.tuples(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=6)).map(
            lambda t: PLAIN[: t[0]] + t[1] + PLAIN[t[0] + len(t[1]) :]
        ),
    )
)
def test_any_bytes_are_a_value_or_our_error(data):
    with contextlib.suppress(CheckpointError):
        read_pickled_records(data, "bytes")


@settings(max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_altered_metadata_is_read_or_our_error(written, tmp_path_factory, data):
    whole = bytearray((written / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("altered") / "checkpoint"
    shutil.copytree(written, folder)
    (folder / ".metadata").write_bytes(whole)
    with contextlib.suppress(CheckpointError):
        read_checkpoint_metadata(folder)
    shutil.rmtree(folder)

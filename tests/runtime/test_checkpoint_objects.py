"""`common.pt`, objects among the tensors and FP8 scales: tensors and plain values come back, nothing else is made."""

import argparse
import contextlib
import io
import pickle
import zipfile

import megatron.core  # noqa: F401 (it lets torch.load make sixteen classes)
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime import checkpoint_objects
from megatron_octo.runtime.checkpoint_objects import check_extra_states, load_common, load_object
from tests.runtime.hostile import HOSTILE, Calling

VALUE = {"optimizer": {"param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}, "step": torch.tensor(3.0)}


def saved(value) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def as_bytes(value) -> torch.Tensor:
    """As Transformer Engine hands out its scales."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def test_plain_values_and_tensors_come_back():
    assert load_object(saved(VALUE), "an object") == VALUE


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_object_that_calls_is_not_run(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch.load asks it where it is not told
    torch.save(HOSTILE[kind](tmp_path / "marker"), tmp_path / "common.pt")
    with pytest.raises(CheckpointError, match=r"common\.pt: (holds more|damaged)"):
        load_common(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_what_megatron_lets_torch_make_is_refused_by_name_and_stays_as_it_was():
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        load_object(saved(argparse.Namespace(a=1)), "an object")
    assert set(torch.serialization.get_safe_globals()) == before and argparse.Namespace in before


def test_a_common_file_that_is_no_mapping_or_missing(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_common(tmp_path)
    torch.save([1], tmp_path / "common.pt")
    with pytest.raises(CheckpointError, match="not a mapping"):
        load_common(tmp_path)
    (tmp_path / "common.pt").unlink()
    (tmp_path / "common.pt").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        load_common(tmp_path)


def test_an_archive_that_is_compressed_or_large(monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(saved(VALUE)) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        load_object(packed, "an object")
    monkeypatch.setattr(checkpoint_objects, "MOST_OBJECT_BYTES", 100)
    with pytest.raises(CheckpointError, match="at most 100 are read"):
        load_object(saved(VALUE), "an object")


WHOLE = saved(VALUE).getvalue()


@settings(max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=100), st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))))
def test_any_bytes_are_an_object_or_our_error(change):
    data = change if isinstance(change, bytes) else WHOLE[: change[0]] + bytes([change[1]]) + WHOLE[change[0] + 1 :]
    with contextlib.suppress(CheckpointError):
        load_object(io.BytesIO(data), "bytes")


def test_scales_come_back_pickled_anew():
    scales = {"scale": torch.tensor([1.0, 2.0]), "extra": {"steps": 3, "names": ("a", None)}}
    state = {"weight": torch.ones(2), "a._extra_state": as_bytes(scales), "b._extra_state": saved(scales)}
    state |= {"c._extra_state": torch.empty(0, dtype=torch.uint8), "d._extra_state": None}
    checked = check_extra_states(state, "a checkpoint")
    assert checked["weight"] is state["weight"] and checked["d._extra_state"] is None
    of_bytes = pickle.loads(checked["a._extra_state"].numpy().tobytes())
    for back in (of_bytes, torch.load(checked["b._extra_state"])):
        assert torch.equal(back.pop("scale"), scales["scale"]) and back == {"extra": scales["extra"]}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("form", [as_bytes, saved])
def test_scales_that_call_are_not_run(kind, form, tmp_path):
    state = {"a._extra_state": form(HOSTILE[kind](tmp_path / "marker"))}
    with pytest.raises(CheckpointError, match=r"a checkpoint: a\._extra_state"):
        check_extra_states(state, "a checkpoint")
    assert not (tmp_path / "marker").exists()


def test_scales_of_another_kind():
    with pytest.raises(CheckpointError, match="holds a Calling"):
        check_extra_states({"a._extra_state": Calling(print)}, "a checkpoint")

"""Files compared with their recorded size and SHA-256."""

from megatron_octo.runtime.recorded_files import RecordedFile, find_damage, find_unrecorded, locate, record_files


def test_each_kind_of_damage_is_found(tmp_path):
    for name in ("same", "altered", "cut", "gone"):
        (tmp_path / name).write_bytes(b"12345678")
    records = record_files(tmp_path)
    assert find_damage(locate(tmp_path, records)) == []
    (tmp_path / "altered").write_bytes(b"12345679")
    (tmp_path / "cut").write_bytes(b"123")
    (tmp_path / "gone").unlink()
    found = {path.name: problem for path, problem in find_damage(locate(tmp_path, records))}
    assert found["cut"] == "3 bytes, recorded with 8 bytes"
    assert found["gone"] == "missing, recorded with 8 bytes"
    assert found["altered"].startswith("SHA-256 ") and f"recorded as {records[0].sha256[:12]}" in found["altered"]
    assert found.keys() == {"altered", "cut", "gone"}
    assert {path.name for path, _ in find_damage(locate(tmp_path, records), hashes=False)} == {"cut", "gone"}


def test_files_without_a_record_are_found(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("recorded", "manifest.json", "below/stray"):
        (tmp_path / name).touch()
    records = [RecordedFile(path="recorded", bytes=0, sha256="")]
    assert find_unrecorded(tmp_path, records, {"manifest.json"}) == ["below/stray"]


def test_every_block_is_reported(tmp_path):
    (tmp_path / "a").write_bytes(b"1" * 1000)
    reported = []
    find_damage(locate(tmp_path, record_files(tmp_path)), reported.append)
    assert sum(reported) == 1000

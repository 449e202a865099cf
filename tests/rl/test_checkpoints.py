"""Which checkpoint a run resumes from, in folders as OpenRLHF and kills leave them."""

import json

from megatron_octo.rl.checkpoints import mark_complete, prepare_resume, publish_best
from megatron_octo.runtime.rl_folder import RlFolder


def save(folder, tag, groups=("_actor", "_critic"), copy=True):
    """As OpenRLHF saves: the groups, each with its `latest`, and the copy for Hugging Face."""
    for group in groups:
        (folder / group / tag).mkdir(parents=True)
        (folder / group / tag / "weights.pt").write_text(tag)
        (folder / group / "latest").write_text(tag)
    if copy:
        (folder / f"{tag}_hf").mkdir()
        (folder / f"{tag}_hf/config.json").write_text(tag)


def latest(folder):
    return {group: (folder / group / "latest").read_text() for group in ("_actor", "_critic")}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_half_written_checkpoint_is_removed_and_the_newest_complete_one_resumes(tmp_path):
    save(tmp_path, "global_step20")
    save(tmp_path, "global_step40")
    mark_complete(tmp_path)
    save(tmp_path, "global_step60", groups=("_actor",), copy=False)  # killed before the critic was saved
    assert prepare_resume(tmp_path, with_critic=True) == 40
    assert latest(tmp_path) == {"_actor": "global_step40", "_critic": "global_step40"}
    assert names(tmp_path / "_actor") == ["global_step20", "global_step40", "latest"]
    assert names(tmp_path) == ["_actor", "_critic", "global_step20_hf", "global_step40_hf", "whole"]


def test_a_checkpoint_without_a_mark_is_not_trusted(tmp_path):
    save(tmp_path, "global_step20")
    mark_complete(tmp_path)
    save(tmp_path, "global_step40")
    (tmp_path / "_actor/latest").write_text("")  # torn
    assert prepare_resume(tmp_path, with_critic=True) == 20
    assert latest(tmp_path)["_actor"] == "global_step20" and not (tmp_path / "global_step40_hf").exists()


def test_the_newest_may_be_the_best_one(tmp_path):
    save(tmp_path, "best_global_step16")
    save(tmp_path, "global_step12")
    mark_complete(tmp_path)
    assert prepare_resume(tmp_path, with_critic=True) == 16
    assert latest(tmp_path)["_critic"] == "best_global_step16"


def test_a_run_without_a_complete_checkpoint_starts_anew(tmp_path):
    assert prepare_resume(tmp_path / "absent", with_critic=False) is None
    save(tmp_path, "global_step1", groups=("_actor",))
    assert prepare_resume(tmp_path, with_critic=False) is None
    assert names(tmp_path) == []


def test_copies_and_marks_of_deleted_checkpoints_are_removed(tmp_path):
    for step in (20, 40):
        save(tmp_path, f"global_step{step}")
    mark_complete(tmp_path)
    for group in ("_actor", "_critic"):
        (tmp_path / group / "global_step20/weights.pt").unlink()
        (tmp_path / group / "global_step20").rmdir()
    mark_complete(tmp_path)
    assert names(tmp_path / "whole") == ["global_step40"]
    assert not (tmp_path / "global_step20_hf").exists() and (tmp_path / "global_step40_hf/config.json").is_file()


def test_the_best_model_is_published_if_its_checkpoint_is_complete(tmp_path):
    folder = RlFolder(tmp_path)
    checkpoints, scores = folder.checkpoints, folder.validation_scores
    rows = [{"step": 4, "accuracy": 0.25}, {"step": 8, "accuracy": 0.5}, {"step": 12, "accuracy": 0.4}]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert publish_best(folder) is None
    save(checkpoints, "best_global_step8")
    save(checkpoints, "global_step12")
    mark_complete(checkpoints)
    save(checkpoints, "best_global_step16")  # never finished
    (tmp_path / "best").mkdir()
    (tmp_path / "best/old").write_text("of an earlier run")
    assert publish_best(folder) == {"step": 8, "accuracy": 0.5}
    assert names(tmp_path / "best") == ["config.json"]
    assert (tmp_path / "best/config.json").read_text() == "best_global_step8"

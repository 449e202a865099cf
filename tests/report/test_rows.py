import json
import math
from pathlib import Path

from megatron_octo.recipe import Recipe
from megatron_octo.report.rows import read_steps, read_validation
from tests.report.made_up import step_row, write_lines


def _rows(recipe: Recipe, *steps_and_losses: tuple[int, float]) -> list[dict[str, object]]:
    return [step_row(recipe, "stable", step, loss) for step, loss in steps_and_losses]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_steps(tmp_path / "metrics.jsonl") == []
    assert read_validation(tmp_path / "validation.jsonl") == []


def test_a_torn_last_line_is_passed_over(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, _rows(recipe, (1, 5.0), (2, 4.0)))
    whole = path.read_text()
    torn = json.dumps(step_row(recipe, "stable", 3, 3.0))
    for length in range(len(torn)):
        path.write_text(whole + torn[:length])
        assert [row.step for row in read_steps(path)] == [1, 2]


def test_a_line_torn_by_a_kill_and_written_over_by_the_resume(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, _rows(recipe, (1, 5.0)))
    after = json.dumps(step_row(recipe, "stable", 3, 3.0))
    path.write_text(path.read_text() + '{"step": 2, "lo' + after + "\n" + after + "\n")
    assert [row.step for row in read_steps(path)] == [1, 3]


def test_after_a_resume_the_later_attempt_wins(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "metrics.jsonl"
    # trained to 4, resumed from a checkpoint at 2, and now at 3: the old step 4 belongs to no run any more
    write_lines(path, _rows(recipe, (1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (3, 3.5)))
    assert [(row.step, row.loss) for row in read_steps(path)] == [(1, 5.0), (2, 4.0), (3, 3.5)]


def test_tokens_are_of_the_stage_and_of_the_lineage(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [step_row(recipe, "decay-long", 1, 1.0)])
    (row,) = read_steps(path)
    assert row.stage_tokens == 4_096
    assert row.tokens == 490 * 4_096
    assert row.lr == 2e-3


def test_a_missing_loss_is_nan(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [step_row(recipe, "stable", 1, 1.0) | {"loss": None}])
    assert math.isnan(read_steps(path)[0].loss)


def test_validation_rows_of_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"

    def row(step: int, source: str, loss: float) -> dict[str, object]:
        return {"step": step, "stage_tokens": step, "tokens": step, "source": source, "loss": loss}

    first = [row(2, "web", 3.0), row(2, "qa", 2.0), row(4, "web", 2.5), row(4, "qa", 1.5)]
    write_lines(path, [*first, row(2, "web", 3.1), row(2, "qa", 2.1)])
    found = [(r.step, r.source, r.loss) for r in read_validation(path)]
    assert found == [(2, "web", 3.1), (2, "qa", 2.1)]

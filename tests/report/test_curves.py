from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from megatron_octo.recipe import Recipe, load_recipe
from megatron_octo.report import draw_curves
from megatron_octo.report.curves import _curves
from megatron_octo.runtime.run_folder import RunFolder
from tests.report.made_up import step_row, train, write_lines


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: object, **kwargs: object) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def _texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_the_whole_tree(recipe: Recipe, run: RunFolder, drawn: list[Figure]) -> None:
    train(recipe, run, "stable", 5.5, 1.25)
    for branch, end in (("decay-long", 0.95), ("decay-short", 0.92), ("decay-hybrid", 0.85)):
        train(recipe, run, branch, 1.3, end)
    path = draw_curves(recipe, run, run.curves)
    assert path == run.curves
    picture = imread(path)
    assert picture.shape[:2] == (990, 1875)
    # each stage's colour is in the picture
    for colour in ("3b4252", "0072b2", "d55e00", "009e73"):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        assert (np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.01).sum() > 100
    (figure,) = drawn
    assert len(figure.axes) == 4  # the lineage and the branches, loss over rate
    for stage in recipe.stages:
        assert _texts(figure).count(f"{stage}  ") == 1
    whole, zoom, rate = figure.axes[:3]
    assert whole.get_xlim()[1] == pytest.approx(1.02 * (489 + 171) * 4_096)
    assert zoom.get_xlim()[0] > 1_900_000
    assert rate.get_xlim() == whole.get_xlim()


def test_tokens_and_rates_are_written_shortly(recipe: Recipe, run: RunFolder, drawn: list[Figure]) -> None:
    train(recipe, run, "stable", 5.5, 1.25)
    draw_curves(recipe, run, run.curves)
    rate = drawn[0].axes[1]
    assert "1M" in [label.get_text() for label in rate.get_xticklabels()]
    assert "2e-3" in [label.get_text() for label in rate.get_yticklabels()]


def test_stages_that_have_not_begun_are_left_out(recipe: Recipe, run: RunFolder, drawn: list[Figure]) -> None:
    train(recipe, run, "stable", 5.5, 1.25, steps=300)
    draw_curves(recipe, run, run.curves)
    assert len(drawn[0].axes) == 2
    assert "stable" in _texts(drawn[0])
    assert "decay" not in _texts(drawn[0])


def test_a_run_without_a_step(recipe: Recipe, run: RunFolder, drawn: list[Figure]) -> None:
    assert draw_curves(recipe, run, run.curves).is_file()
    assert "no step has been trained yet" in _texts(drawn[0])


def test_nothing_but_the_picture_is_left_behind(recipe: Recipe, run: RunFolder) -> None:
    train(recipe, run, "stable", 5.5, 1.25, steps=20)
    run.curves.write_bytes(b"an older picture")
    draw_curves(recipe, run, run.curves)
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in run.root.iterdir()) == ["curves.png", "stages"]


def test_a_spike_and_a_nan_do_not_flatten_the_frame(recipe: Recipe, run: RunFolder, drawn: list[Figure]) -> None:
    rows = [step_row(recipe, "stable", step, 1.0) for step in range(1, 401)]
    rows[200]["loss"], rows[300]["loss"] = 40.0, None
    write_lines(run.metrics("stable"), rows)
    draw_curves(recipe, run, run.curves)
    assert drawn[0].axes[0].get_ylim()[1] < 4.0


def test_one_step_is_enough(recipe: Recipe, run: RunFolder) -> None:
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", 1, 5.5)])
    write_lines(run.metrics("decay-long"), [step_row(recipe, "decay-long", 1, 1.5)])
    assert draw_curves(recipe, run, run.curves).is_file()


def test_validation_is_weighted_by_the_mixture(recipe: Recipe, run: RunFolder) -> None:
    train(recipe, run, "stable", 5.5, 1.25, steps=10)
    losses = {"web": 3.0, "code": 2.0, "qa": 1.0, "instruction": 100.0}  # the last is not in the mixture

    def row(step: int, source: str) -> dict[str, object]:
        return {"step": step, "stage_tokens": step, "tokens": step, "source": source, "loss": losses[source]}

    # at 20, one source is still to come: no point is drawn from the two that are there
    write_lines(run.validation("stable"), [*(row(10, source) for source in losses), row(20, "web"), row(20, "qa")])
    (curve,) = _curves(recipe, run)
    assert curve.validation == [(10, pytest.approx(0.6 * 3.0 + 0.1 * 2.0 + 0.3 * 1.0))]


def test_a_full_size_run_on_its_axis(tmp_path: Path, drawn: list[Figure]) -> None:
    recipe = load_recipe("octothinker-1b")
    run = RunFolder(tmp_path)
    train(recipe, run, "stable", 2.3, 1.85)
    train(recipe, run, "decay-short", 1.5, 1.05)
    draw_curves(recipe, run, run.curves)
    assert "200B" in [label.get_text() for label in drawn[0].axes[2].get_xticklabels()]

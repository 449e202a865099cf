import numpy as np
import pytest

from megatron_octo.report.numbers import short_duration, short_number, smoothed


@pytest.mark.parametrize(
    ("value", "written"),
    [(5e-5, "5e-5"), (2.75e-5, "2.75e-5"), (2e-3, "2e-3"), (1.0, "1e0"), (0.0, "0"), (10.0, "1e1")],
)
def test_short_numbers(value: float, written: str) -> None:
    assert short_number(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.4, "0.4s"), (59.0, "59.0s"), (60, "1m00s"), (312.5, "5m12s"), (11_040, "3h04m")]
)
def test_short_durations(seconds: float, written: str) -> None:
    assert short_duration(seconds) == written


def test_a_running_mean_by_hand() -> None:
    values = np.array([4.0, 1.0, 1.0, 4.0, 7.0])
    # half a window is 1: 4 alone, (4+1+1)/3, (1+1+4)/3, (1+4+7)/3, and at the end (4+7)/2
    assert smoothed(values, 3).tolist() == [4.0, 2.0, 2.0, 4.0, 5.5]
    assert smoothed(values, 1).tolist() == values.tolist()


def test_a_running_mean_passes_over_what_is_not_finite() -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf, 5.0])
    assert smoothed(values, 3).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert np.isnan(smoothed(np.array([np.nan]), 5)).all()
    assert smoothed(np.array([]), 5).size == 0

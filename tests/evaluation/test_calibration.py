import itertools
import math

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_recipes.evaluation.reward_model import (
    Bin,
    expected_calibration_error,
    plot_reliability,
    reliability,
)


def brute_force(predicted, observed, borders):
    """The calibration error straight from its definition, bin after bin, row after row."""
    total = 0.0
    for low, high in itertools.pairwise(borders):
        pairs = zip(predicted, observed, strict=True)
        rows = [(p, o) for p, o in pairs if low < p <= high or (p == low == borders[0])]
        if rows:
            confidence = math.fsum(p for p, _ in rows) / len(rows)
            accuracy = math.fsum(o for _, o in rows) / len(rows)
            total += len(rows) / len(predicted) * abs(confidence - accuracy)
    return total


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_that_of_its_definition(rows):
    predicted, observed = [p for p, _ in rows], [float(o) for _, o in rows]
    bins = reliability(predicted, observed)
    borders = np.linspace(0, 1, 11).tolist()
    expected = brute_force(predicted, observed, borders)
    assert expected_calibration_error(bins) == pytest.approx(expected, abs=1e-9)
    assert sum(entry.count for entry in bins) == len(rows)


def test_worked_by_hand():
    bins = reliability([0.95, 0.95, 0.65, 0.65], [1, 0, 1, 1])
    assert bins == [Bin(2, pytest.approx(0.65), 1.0), Bin(2, pytest.approx(0.95), 0.5)]
    assert expected_calibration_error(bins) == pytest.approx((0.35 + 0.45) / 2)


def test_numbers_are_put_into_bins_of_like_counts():
    values = [float(value**2) for value in range(100)]  # few are large
    bins = reliability(values, [value + 3 for value in values], equal_counts=True)
    assert {entry.count for entry in bins} <= {9, 10, 11}
    assert expected_calibration_error(bins) == pytest.approx(3)
    assert len(reliability([2.0] * 5, [1.0] * 5, equal_counts=True)) == 1


def test_the_picture_shows_the_bins(tmp_path):
    bins = reliability([0.55, 0.75, 0.95, 0.95], [0, 1, 1, 1])
    figure = plot_reliability(bins, tmp_path / "reliability.png", title="n = 4")
    _, line = figure.axes[0].lines
    assert list(line.get_xdata()) == [entry.predicted for entry in bins]
    assert list(line.get_ydata()) == [entry.observed for entry in bins]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [1, 1, 2]
    assert f"{expected_calibration_error(bins):.3f}" in figure.axes[0].get_title(loc="left")
    assert matplotlib.image.imread(tmp_path / "reliability.png").shape[0] > 400

import math

import matplotlib.image
import numpy as np
import pytest

from trl_recipes.report.overoptimization import (
    find_parting,
    judges_of,
    overoptimization,
    plot_overoptimization,
    plot_run,
)

JUDGE = "metrics/true/mean"


def rows(judge, score=None, kl=None, spread=1.0):
    """Rows of a run whose judge and score are given step by step."""
    steps = range(1, len(judge) + 1)
    score = np.linspace(0, 3, len(judge)) if score is None else score
    kl = np.linspace(0, 20, len(judge)) if kl is None else kl
    spreads = {"env/reward_std": spread, "metrics/true/std": spread}
    columns = {"step": steps, "objective/kl": kl, "env/reward_mean": score, JUDGE: judge}
    return [
        dict(zip(columns, row, strict=True)) | spreads
        for row in zip(*columns.values(), strict=True)
    ]


def gao(count=100, top=0.4):
    """A judge that rises up to a share of the run and falls by as much afterwards."""
    x = np.linspace(0, 1, count)
    return 2 * np.where(x < top, x, 2 * top - x)


def without(run, name):
    return [{key: value for key, value in row.items() if name not in key} for row in run]


def test_the_parting_is_where_the_judge_was_highest_and_the_sentence_says_so():
    run = rows(gao(100, 0.4))
    found, sentence = find_parting(run, JUDGE), overoptimization(run, JUDGE)
    for part in (f"step {found.step}", f"{found.fall:.2f}", f"{found.rise:.2f}", "`true`"):
        assert part in sentence
    # the window of ten steps whose middle is the peak at step 41, KL 20 * 40 / 99
    assert found.step == pytest.approx(41, abs=2)
    assert found.kl == pytest.approx(20 * 40 / 99, abs=0.3)
    # from the peak's window to the last one: the judge falls 2 per run's length, the score rises 3
    assert found.fall == pytest.approx(2 * (100 - 41 - 7) / 99, abs=0.1)
    assert found.rise == pytest.approx(3 * (100 - 41 - 5) / 99, abs=0.1)


@pytest.mark.parametrize(
    "run",
    [
        rows(np.linspace(0, 1, 60)),  # rises
        rows(np.zeros(60)),
        rows(np.minimum(np.linspace(0, 2, 60), 1)),  # levels
        rows(gao(80), score=gao(80)),  # falls with the score
        rows(0.05 * gao(80)),  # falls little
        rows(gao(5)),  # is short
        without(rows(gao(80)), "metrics"),
        without(rows(gao(80)), "kl"),
    ],
)
def test_where_no_judge_falls_alone_nothing_is_said(run):
    assert overoptimization(run, JUDGE) is None


def test_a_small_fall_counts_by_the_std_of_responses_and_one_from_the_start_parts_there():
    assert overoptimization(rows(0.05 * gao(80), spread=0.01), JUDGE) is not None
    assert find_parting(rows(np.linspace(1, 0, 60)), JUDGE).step <= 6


@pytest.mark.parametrize("trend", [0.0, 1.0], ids=["flat", "rising"])
def test_chance_alone_seldom_parts_them(trend):
    draw = np.random.default_rng(0)
    for count in (30, 100):
        noise = draw.normal(size=(400, count))
        runs = [rows(trend * np.linspace(0, 1, count) + row) for row in noise]
        said = sum(find_parting(run, JUDGE) is not None for run in runs)
        assert said <= 12  # of 400, where 4 are expected


def test_a_fall_well_above_the_noise_is_found():
    noise = np.random.default_rng(1).normal(scale=0.15, size=(100, 80))
    said = [find_parting(rows(gao(80) + row), JUDGE) for row in noise]
    assert all(said)
    assert np.mean([found.step for found in said]) == pytest.approx(33, abs=4)


def test_gains_do_not_depend_on_units_and_take_the_judges_own_course_without_std():
    plain = rows(gao(50))
    scaled = [row | {JUDGE: 7 + 100 * row[JUDGE], "metrics/true/std": 100.0} for row in plain]
    silent = [row | {"metrics/true/std": 0.0} for row in plain]
    found = find_parting(plain, JUDGE)
    assert find_parting(scaled, JUDGE) == pytest.approx(found)
    assert find_parting(silent, JUDGE).fall == pytest.approx(found.fall / gao(50).std())
    holes = rows(gao(100))
    holes[3][JUDGE] = holes[50][JUDGE] = math.nan
    holes[70]["objective/kl"] = None
    assert find_parting(holes, JUDGE).step == pytest.approx(41, abs=3)


def test_the_picture_shows_gains_against_kl_and_marks_the_parting(tmp_path):
    run = rows(3 + gao(100), kl=np.linspace(-0.1, 20, 100), spread=2.0)
    figure = plot_overoptimization(run, JUDGE, path=tmp_path / "gao.png", title="a $run")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    judge = lines["judge (true), not optimized"]
    gain = (gao(100) - gao(100)[:10].mean()) / 2.0
    averages = [gain[i - 4 : i + 6].mean() for i in range(20, 25)]
    assert np.allclose(judge.get_ydata()[20:25], averages)
    assert min(judge.get_xdata()) >= 0
    assert any("part here" in text.get_text() for text in axes.texts)
    assert "falls while the score rises" in figure.get_suptitle()
    image = matplotlib.image.imread(tmp_path / "gao.png")[..., :3]
    assert (image < 0.9).any(axis=-1).mean() > 0.01
    calm = plot_overoptimization(rows(np.linspace(0, 1, 50)), JUDGE)
    assert calm.get_suptitle() == "Score and judge do not part"


@pytest.mark.parametrize(("left_out", "pictures"), [("", 2), ("metrics", 0), ("kl", 0)])
def test_a_run_is_drawn_with_each_of_its_metrics_where_it_logs_a_kl(tmp_path, left_out, pictures):
    run = [row | {"metrics/my: own/mean": row["step"]} for row in rows(gao(60))]
    assert judges_of(run) == [JUDGE, "metrics/my: own/mean"]
    said = plot_run(without(run, left_out) if left_out else run, tmp_path, "a run")
    names = ["overoptimization_my_own.png", "overoptimization_true.png"][:pictures]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "training.png"]
    assert said == [overoptimization(run, JUDGE)][:pictures]

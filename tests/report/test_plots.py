import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from launching import run_here
from test_report import comparison, ppo_rows

from trl_recipes.report.plots import moving_average, plot_comparison, plot_runs, plot_stats
from trl_recipes.stats import append_stats

SHARED = ["KL from the reference", "Length of the responses", "Entropy of the next token"]


def group_rows(count=30):
    return [
        {"step": step, "env/reward_mean": 2 * step / count, "objective/kl": 0.1 * step}
        | {"groups/reward_std": 1 / step, "groups/equal": step / count}
        | {"tokens/responses_len_mean": 12.0, "entropy": 2 - step / count}
        for step in range(1, count + 1)
    ]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    return axes


def drawn(figure, title):
    return list(panel(figure, title).lines[0].get_ydata())


def not_blank(path):
    image = matplotlib.image.imread(path)[..., :3]
    assert min(image.shape[:2]) > 400
    assert (image < 0.9).any(axis=-1).mean() > 0.01


def test_every_statistic_is_drawn_as_recorded_with_its_unit_and_told_in_the_title():
    rows = [row | {"ppo/val/var_explained": row["step"] / 100} for row in ppo_rows()]
    figure = plot_stats(rows, title="ppo-good", kl_target=6)
    points, line = panel(figure, "Mean score").lines
    scores = [row["env/reward_mean"] for row in rows]
    assert list(points.get_xdata()) == [row["step"] for row in rows]
    # three steps (a tenth of thirty), centered; a straight line stays itself inside
    assert list(line.get_ydata())[1:-1] == pytest.approx(scores[1:-1])
    assert line.get_ydata()[0] == pytest.approx((scores[0] + scores[1]) / 2)
    for title, key in {
        "Mean score": "env/reward_mean",
        "Loss": "ppo/loss/total",
        "KL coefficient": "objective/kl_coef",
        "Clipped": "ppo/policy/clipfrac",
        "Variance explained": "ppo/val/var_explained",
        "KL from": "objective/kl",
    }.items():
        assert drawn(figure, title) == pytest.approx([row[key] for row in rows]), title
    assert all(axes.get_ylabel() and axes.get_xlabel() == "step" for axes in figure.axes)
    assert panel(figure, "KL from").get_ylabel() == "nats per response"
    # averages of the first and the last three of -0.9, -0.8, ..., 2
    assert figure.get_suptitle() == "ppo-good: mean score rose from -0.8 to 1.9 over 30 steps"
    assert "target 6" in [text.get_text() for text in panel(figure, "KL from").texts]


def test_a_grpo_run_shows_what_its_groups_have_to_learn_from():
    figure, rows = plot_stats(group_rows(), title="grpo-good"), group_rows()
    groups = ["Mean score", "Score's spread in a group", "Groups without any spread"]
    assert titles(figure) == groups + SHARED
    keys = ["env/reward_mean", "groups/reward_std", "groups/equal", "objective/kl"]
    keys += ["tokens/responses_len_mean", "entropy"]
    for title, key in zip(groups + SHARED, keys, strict=True):
        assert drawn(figure, title) == [row[key] for row in rows]
    assert panel(figure, "Groups without").get_ylim()[1] > 1


def test_ppo_beside_grpo_shows_the_panels_that_both_have():
    figure = plot_runs({"ppo": ppo_rows(), "grpo": group_rows()})
    assert titles(figure)[1:] == SHARED
    ppo, grpo = panel(figure, "Entropy").lines
    assert set(ppo.get_ydata()) == {2.0}
    assert list(grpo.get_ydata()) == [row["entropy"] for row in group_rows()]
    assert len(titles(plot_runs({"a": group_rows(), "b": group_rows()}))) == 6


@pytest.mark.parametrize(
    ("scores", "words"),
    [([2, 2, 2, 1], "Mean score fell from 2 to 1.67 over 4 steps"),
     ([1, 1, 1], "Mean score stayed at 1 over 3 steps"),
     ([0.5], "Mean score stayed at 0.5 over 1 step"),
     ([math.nan] * 3, "Score not recorded over 3 steps")],
)  # fmt: skip
def test_the_title_tells_the_direction(scores, words):
    figure = plot_stats([{"ppo/mean_scores": score} for score in scores])
    assert figure.get_suptitle() == words


def test_a_handwritten_loop_is_drawn_too_and_what_it_lacks_is_said():
    stats = [{"ppo/mean_scores": np.float32(i), "tokens/queries_dist": [1, 2]} for i in range(5)]
    stats[3]["ppo/mean_scores"] = math.nan  # leaves a gap
    figure = plot_stats(stats)
    points, line = panel(figure, "Mean score").lines
    assert list(points.get_xdata()) == [1, 2, 3, 4, 5]
    np.testing.assert_equal(points.get_ydata(), [0, 1, 2, math.nan, 4])
    assert np.isfinite(line.get_ydata()).all()
    assert [text.get_text() for text in panel(figure, "Loss").texts] == ["not recorded"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # as a notebook shows it


@pytest.mark.parametrize("count", [1, 200])
def test_any_number_of_steps_makes_the_same_picture_in_threads(tmp_path, count):
    paths = [tmp_path / "new" / f"{i}.png" for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: plot_stats(ppo_rows(count), path), paths))
    not_blank(paths[0])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_several_runs_have_a_color_each_and_a_legend_of_their_names(tmp_path):
    figure = plot_runs({"ppo-good": ppo_rows(30), r"_$\bad$": ppo_rows(20)}, tmp_path / "runs.png")
    not_blank(tmp_path / "runs.png")
    (legend,) = figure.legends
    # kept from being read as mathematics ($) and as a line to hide (_)
    assert [text.get_text() for text in legend.get_texts()] == ["ppo-good", r" _\$\bad\$"]
    lines = panel(figure, "Mean score").lines
    assert [len(line.get_xdata()) for line in lines] == [30, 30, 20, 20]
    assert lines[1].get_color() != lines[3].get_color()
    figure = plot_runs({f"run-{i}": ppo_rows(3) for i in range(20)})
    looks = {(h.get_color(), h.get_linestyle()) for h in figure.legends[0].get_lines()}
    assert len(looks) == 20


def test_a_comparison_shows_means_intervals_and_how_scores_are_spread(tmp_path):
    compared = comparison([0, 1, 2, 1.0], [3, 3, 4, None])
    figure = plot_comparison(compared, tmp_path / "comparison.png")
    not_blank(tmp_path / "comparison.png")
    bars = panel(figure, "score")
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([1, 10 / 3])
    # 0 1 2 1: variance 2/3, standard error sqrt(1/6), t(3) = 3.182
    low, high = bars.collections[0].get_segments()[0][:, 0]
    assert (high - low) / 2 == pytest.approx(3.1824 * math.sqrt(1 / 6), rel=1e-4)
    names = [result.name for result in compared.results]
    assert [text.get_text() for text in bars.texts][::2] == names
    filled = [bars for bars in panel(figure, "Distribution").containers if len(bars) == 30]
    shares = [sum(bar.get_height() for bar in bars) for bars in filled]
    assert shares == pytest.approx([1, 1])


def test_moving_average_by_hand():
    # an even window looks one further ahead
    assert list(moving_average([1, 2, 6], 2)) == [1.5, 4, 6]
    gap = [math.nan, 2, math.nan, math.nan, math.nan]
    np.testing.assert_equal(moving_average(gap, 3), [2, 2, 2, math.nan, math.nan])


def test_the_recipe_draws_runs_where_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/good", "runs/bad"):
        for row in ppo_rows(4):
            append_stats(f"{name}/all_stats.jsonl", row)
    config = "# A run of trl_recipes.\nadap_kl_ctrl: true\ntarget: 6.0\n"
    Path("runs/good/config.yaml").write_text(config)
    run_here("plot.py", "runs/good", "runs/bad", "--output", "new/both.png")
    assert capsys.readouterr().out == "new/both.png\n"
    not_blank("new/both.png")
    assert not list(tmp_path.rglob("report.html"))  # one file was asked for
    run_here("plot.py", "runs/good")
    written = "runs/good/plots/training.png\nruns/good/report.html\n"
    assert capsys.readouterr().out == written
    assert "target 6" in Path("runs/good/report.html").read_text()

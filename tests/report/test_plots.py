import math
from concurrent.futures import ThreadPoolExecutor

import matplotlib.image
import numpy as np
import pytest
from launching import run_warm

from trl_recipes.evaluation.compare import Comparison, ModelResult
from trl_recipes.report.plots import moving_average, plot_comparison, plot_runs, plot_stats
from trl_recipes.stats import append_stats

SHARED = ["KL from the reference", "Length of the responses", "Entropy of the next token"]


def rows(count=30, top=2.0):
    return [
        {"step": step, "env/reward_mean": top * step / count, "ppo/mean_scores": -1.0}
        | {"objective/kl": 0.1 * step, "objective/kl_coef": 0.2, "ppo/loss/total": 1 / step}
        | {"ppo/policy/clipfrac": 0.3 / step, "ppo/val/var_explained": step / 100}
        for step in range(1, count + 1)
    ]


@pytest.fixture
def comparison():
    def model(name, scores):
        n = len(scores)
        return ModelResult(name, ["x"] * n, [[1]] * n, {"score": scores}, [0.0] * n, [1.0] * n)

    return Comparison(
        ["p"] * 4, [model("reference", [0, 1, 2, 1.0]), model("ppo-good", [3, 3, 4, None])], seed=0
    )


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    return axes


def not_blank(path):
    image = matplotlib.image.imread(path)[..., :3]
    assert min(image.shape[:2]) > 400
    assert (image < 0.9).any(axis=-1).mean() > 0.01


def test_every_statistic_is_drawn_as_recorded_with_its_unit_and_told_in_the_title():
    figure = plot_stats(rows(30), title="ppo-good", kl_target=6)
    points, line = panel(figure, "Mean score").lines
    scores = [2 * step / 30 for step in range(1, 31)]
    assert list(points.get_ydata()) == pytest.approx(scores)
    assert list(points.get_xdata()) == list(range(1, 31))
    # three steps (a tenth of thirty), centered; a straight line stays itself inside
    assert list(line.get_ydata())[1:-1] == pytest.approx(scores[1:-1])
    assert line.get_ydata()[0] == pytest.approx((scores[0] + scores[1]) / 2)
    for title, value in {
        "Loss": lambda step: 1 / step,
        "KL coefficient": lambda step: 0.2,
        "Clipped": lambda step: 0.3 / step,
        "Variance explained": lambda step: step / 100,
        "KL from": lambda step: 0.1 * step,
    }.items():
        drawn = panel(figure, title).lines[0].get_ydata()
        assert list(drawn) == pytest.approx(list(map(value, range(1, 31)))), title
    assert all(axes.get_ylabel() and axes.get_xlabel() == "step" for axes in figure.axes)
    assert panel(figure, "KL from").get_ylabel() == "nats per response"
    # averages of the first and the last three of 2/30, 4/30, ..., 60/30
    assert figure.get_suptitle() == "ppo-good: mean score rose from 0.133 to 1.93 over 30 steps"
    assert "target 6" in [text.get_text() for text in panel(figure, "KL from").texts]


def group_rows(count=30):
    kept = ("step", "env/reward_mean", "objective/kl")
    return [
        {key: row[key] for key in kept}
        | {"groups/reward_std": 1 / row["step"], "groups/equal": row["step"] / count}
        | {"tokens/responses_len_mean": 12.0, "entropy": 2 - row["step"] / count}
        for row in rows(count)
    ]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_grpo_run_shows_what_its_groups_have_to_learn_from():
    figure = plot_stats(group_rows(), title="grpo-good")
    groups = ["Mean score", "Score's spread in a group", "Groups without any spread"]
    assert titles(figure) == groups + SHARED
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"}
    share, entropy = panel(figure, "Groups without"), panel(figure, "Entropy")
    assert list(share.lines[0].get_ydata()) == [step / 30 for step in range(1, 31)]
    assert share.get_ylim()[1] > 1
    assert list(entropy.lines[0].get_ydata()) == [2 - step / 30 for step in range(1, 31)]
    points, _ = panel(figure, "Score's spread").lines
    assert list(points.get_ydata()) == [1 / step for step in range(1, 31)]


def test_ppo_beside_grpo_shows_the_panels_that_both_have():
    both = {"tokens/responses_len_mean": 9.0, "ppo/policy/entropy": 1.5}
    figure = plot_runs({"ppo": [row | both for row in rows()], "grpo": group_rows()})
    assert titles(figure)[1:] == SHARED
    ppo, grpo = panel(figure, "Entropy").lines
    assert set(ppo.get_ydata()) == {1.5}
    assert list(grpo.get_ydata()) == [2 - step / 30 for step in range(1, 31)]
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
    assert list(points.get_ydata()[:3]) == [0, 1, 2]
    assert math.isnan(points.get_ydata()[3])
    assert np.isfinite(line.get_ydata()).all()
    assert [text.get_text() for text in panel(figure, "Loss").texts] == ["not recorded"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # as a notebook shows it


@pytest.mark.parametrize("count", [1, 200])
def test_any_number_of_steps_makes_the_same_picture_in_threads(tmp_path, count):
    paths = [tmp_path / "new" / f"{i}.png" for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: plot_stats(rows(count), path), paths))
    not_blank(paths[0])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_several_runs_have_a_color_each_and_a_legend_of_their_names(tmp_path):
    runs = {"ppo-good": rows(30), r"_$\bad$": rows(20, -2)}
    figure = plot_runs(runs, tmp_path / "runs.png")
    not_blank(tmp_path / "runs.png")
    (legend,) = figure.legends
    # kept from being read as mathematics ($) and as a line to hide (_)
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["ppo-good", r" _\$\bad\$"]
    lines = panel(figure, "Mean score").lines
    assert [len(line.get_xdata()) for line in lines] == [30, 30, 20, 20]
    assert lines[1].get_color() != lines[3].get_color()
    figure = plot_runs({f"run-{i}": rows(3) for i in range(20)})
    looks = {(h.get_color(), h.get_linestyle()) for h in figure.legends[0].get_lines()}
    assert len(looks) == 20


def test_a_comparison_shows_means_intervals_and_how_scores_are_spread(comparison, tmp_path):
    figure = plot_comparison(comparison, tmp_path / "comparison.png")
    not_blank(tmp_path / "comparison.png")
    bars = panel(figure, "score")
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([1, 10 / 3])
    # 0 1 2 1: variance 2/3, standard error sqrt(1/6), t(3) = 3.182
    low, high = bars.collections[0].get_segments()[0][:, 0]
    assert (high - low) / 2 == pytest.approx(3.1824 * math.sqrt(1 / 6), rel=1e-4)
    assert [text.get_text() for text in bars.texts][::2] == ["reference", "ppo-good"]
    filled = [bars for bars in panel(figure, "Distribution").containers if len(bars) == 30]
    shares = [sum(bar.get_height() for bar in bars) for bars in filled]
    assert shares == pytest.approx([1, 1])


def test_moving_average_by_hand():
    # an even window looks one further ahead
    assert list(moving_average([1, 2, 6], 2)) == [1.5, 4, 6]
    gap = moving_average([math.nan, 2, math.nan, math.nan, math.nan], 3)
    assert list(gap[:3]) == [2, 2, 2]
    assert np.isnan(gap[3:]).all()


@pytest.fixture
def two_runs(tmp_path):
    for name in ("ppo-good", "ppo-bad"):
        for row in rows(4):
            append_stats(tmp_path / "runs" / name / "all_stats.jsonl", row)
    config = "# A run of trl_recipes.\nadap_kl_ctrl: true\ntarget: 6.0\n"
    (tmp_path / "runs" / "ppo-good" / "config.yaml").write_text(config)
    return tmp_path


def test_the_recipe_draws_runs_where_told(two_runs):
    both = ("runs/ppo-good", "runs/ppo-bad", "--output", "new/both.png")
    done = run_warm("plot.py", *both, cwd=two_runs)
    assert (done.returncode, done.stdout) == (0, "new/both.png\n"), done.stderr
    not_blank(two_runs / "new/both.png")
    assert not list(two_runs.rglob("report.html"))  # one file was asked for
    done = run_warm("plot.py", "runs/ppo-good", cwd=two_runs)
    written = "runs/ppo-good/plots/training.png\nruns/ppo-good/report.html\n"
    assert (done.returncode, done.stdout) == (0, written), done.stderr
    assert "target 6" in (two_runs / "runs/ppo-good/report.html").read_text()

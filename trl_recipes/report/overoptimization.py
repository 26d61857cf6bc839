"""Over-optimization: where a learned score still rises and a judge that nothing optimizes falls.

The further a policy moves from the reference, the more it finds what a reward model overrates (Gao,
Schulman and Hilton 2022, "Scaling laws for reward model overoptimization", figure 1). Both are
drawn against the KL from the reference, as gains since the start over the standard deviation (std)
of single responses there. A judge is one of the trainer's `metrics`, for which higher is better.
"""

import math
import re
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trl_recipes.describe import printable
from trl_recipes.report import plots
from trl_recipes.stats import Rows, steps_of, tenth

SCORE = "env/reward_mean"
KL = "objective/kl"
# Chance that a run whose judge does not fall is said to part: of all windows together.
FALSE_ALARM = 0.01
# A fall smaller than this is not worth a word, in std of the start's responses.
SMALLEST = 0.1


class Parting(NamedTuple):
    """Where score and judge part; gains are in std of the start's responses."""

    step: int  # the middle of the window in which the judge was highest
    kl: float  # nats per response there
    fall: float  # of the judge, from there to the end
    rise: float  # of the score, from there to the end


def find_parting(all_stats: Rows, judge: str) -> Parting | None:
    """Find from where on the judge fell while the score rose; None where they do not part.

    The highest mean of a tenth of the steps is held against the mean of the last tenth. Fall and
    rise count where chance alone would make one in less than `FALSE_ALARM` of runs (Bonferroni over
    the windows, because the highest was picked). `judge` is a key such as `metrics/vader/mean`.
    """
    course = _course(all_stats, judge)
    window = tenth(len(course))
    windows = len(course) - 2 * window + 1  # that do not reach into the last one
    if windows < 1:
        return None
    means = course.rolling(window).mean().iloc[window - 1 :]
    best = int(means["judge"].iloc[:windows].argmax())
    change = means.iloc[-1] - means.iloc[best]
    # of the difference of two windows' means: differences of neighbors hold twice the variance of
    # one step and hardly any of the trend (von Neumann 1941)
    error = (course.diff().pow(2).mean() / window) ** 0.5
    quantile = NormalDist().inv_cdf
    if -change["judge"] <= max(quantile(1 - FALSE_ALARM / windows) * error["judge"], SMALLEST):
        return None
    if change["score"] <= quantile(1 - FALSE_ALARM) * error["score"]:
        return None
    kl, fall, rise = means["kl"].iloc[best], -change["judge"], change["score"]
    return Parting(int(course.index[best + window // 2]), float(kl), float(fall), float(rise))


def overoptimization(all_stats: Rows, judge: str) -> str | None:
    """Say from where on the judge fell while the score rose; None where they agree."""
    found = find_parting(all_stats, judge)
    if found is None:
        return None
    return (
        f"Score and judge part: from about step {found.step} on (KL {found.kl:.2g} nats per "
        f"response) `{_name(judge)}` fell by {found.fall:.2f} std of the start's responses "
        f"while the learned score rose by {found.rise:.2f}. If `{_name(judge)}` is what is wanted, "
        "the policy over-optimizes its reward from there on: stop there (--max_steps), weigh the "
        "KL more (--init_kl_coef in PPO, --beta in GRPO and RLOO), or better the reward."
    )


def plot_overoptimization(
    all_stats: Rows, judge: str, path: str | Path | None = None, title: str | None = None
) -> Figure:
    """Draw learned score and judge against the KL from the reference, and where they part."""
    course, found = _course(all_stats, judge), find_parting(all_stats, judge)
    figure = plots.Picture(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    line = course.apply(plots.moving_average, window=tenth(len(course)))
    names = {"score": "learned score", "judge": f"judge ({_name(judge)}), not optimized"}
    for (column, name), color in zip(names.items(), plots.COLORS, strict=False):
        # the estimate of a KL near 0 goes below it by chance
        points, average = (table["kl"].clip(lower=0) for table in (course, line))
        style = {"color": color, "markersize": 3.5, "alpha": 0.3, "markeredgewidth": 0}
        axes.plot(points, course[column], "o", **style)
        axes.plot(average, line[column], color=color, linewidth=2.4, label=plots.as_label(name))
    axes.axhline(0, color=plots.GREY, linewidth=0.8)
    verdict = "score and judge do not part"
    if found is not None:
        verdict = f"from step {found.step} on the judge falls while the score rises"
        axes.axvline(max(found.kl, 0), **plots.DASHED)
        words = f"part here: step {found.step}, {found.kl:.2g} nats"
        axes.annotate(words, (max(found.kl, 0), 0.02), xytext=(4, 3), **plots.BESIDE_X)
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
    axes.set_xlim(0, max(1e-3, 1.03 * course["kl"].max()))
    axes.set_xlabel("KL from the reference, nats per response (scale of its square root)")
    axes.set_ylabel("gain, in std of the start's responses")
    axes.legend(loc="upper left", frameon=False)
    plots.style_axes(axes, "Points: single steps; lines: moving averages", grid="y")
    figure.suptitle(f"{plots.as_label(title)}: {verdict}" if title else verdict.capitalize())
    return plots.save_figure(figure, path)


def plot_run(all_stats: Rows, folder: str | Path, title: str | None = None) -> list[str]:
    """Draw `training.png`, and the score beside each metric; say which fell while it rose."""
    plots.plot_stats(all_stats, Path(folder) / "training.png", title=title)
    judges = judges_of(all_stats) if any(KL in row for row in all_stats) else []
    for judge in judges:
        name = re.sub(r"\W+", "_", _name(judge))
        picture = Path(folder) / f"overoptimization_{name}.png"
        plot_overoptimization(all_stats, judge, path=picture, title=title)
    said = (overoptimization(all_stats, judge) for judge in judges)
    return [sentence for sentence in said if sentence is not None]


def judges_of(all_stats: Rows) -> list[str]:
    """Give the keys of the means of all metrics that a run logged, in their order."""
    keys = dict.fromkeys(key for row in all_stats for key in row)
    return [key for key in keys if key.startswith("metrics/") and key.endswith("/mean")]


def _course(all_stats: Rows, judge: str) -> pd.DataFrame:
    """What a run did at the steps at which all is known: `kl`, and gains of `score` and `judge`."""
    stds = {key: key.removesuffix("mean") + "std" for key in (SCORE, judge)}
    table = pd.DataFrame(all_stats, index=steps_of(all_stats))
    table = table.reindex(columns=[KL, *stds, *stds.values()]).astype(float)
    table = table.replace([math.inf, -math.inf], math.nan).dropna(subset=[KL, SCORE, judge])
    first, course = table.iloc[: tenth(len(table))].mean(), {"kl": table[KL]}
    for name, key in (("score", SCORE), ("judge", judge)):
        # a run may not log the std of responses, or all began alike: then that of the steps' means
        found = (first[stds[key]], table[key].std(ddof=0), 1.0)
        course[name] = (table[key] - first[key]) / next(std for std in found if std > 1e-8)
    return pd.DataFrame(course)


def _name(key: str) -> str:
    return printable(key.removeprefix("metrics/").removeprefix("rewards/").removesuffix("/mean"))

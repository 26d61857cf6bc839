"""How good a saved reward model is on held-out rows, and the card that says so beside it.

Calibration asks whether a model that says 0.8 is right in 8 of 10 cases: predictions are put into
bins, and the mean prediction of each is held against what was observed (Guo et al. 2017, "On
calibration of modern neural networks", equations 1 to 3).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from huggingface_hub import ModelCard, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from trl_recipes.describe import printable
from trl_recipes.evaluation.compare import mean_interval
from trl_recipes.models.loading import load_classifier
from trl_recipes.report.plots import COLORS, DASHED, Picture, save_figure, style_axes
from trl_recipes.rewards.models import can_pad, classifier_logits, longest_input
from trl_recipes.run_folder import RunFolder, versions
from trl_recipes.training.reward_data import Labeled, Pairs

AXES = {
    "classes": ("confidence in the label that wins", "fraction that is right"),
    "pairs": ("probability that the winner is better", "fraction that is right"),
    "number": ("predicted number", "true number"),
}
SENTENCES = (
    "held-out accuracy {accuracy:.3f} ± {accuracy_half:.3f} ({n})\n"
    "expected calibration error {ece:.3f}, mean confidence {confidence:.3f}\n"
    "mean margin {margin:.2f} ± {margin_half:.2f} logits",
    "held-out root mean squared error {rmse:.3f} ({n}; the labels' own std is {spread:.3f})\n"
    "correlation with the labels {correlation:.3f}\n"
    "mean distance of predicted and true number over bins {ece:.3f}",
)
BINS = 10


class Bin(NamedTuple):
    """The predictions of one bin: how many, their mean, and the mean of what was observed."""

    count: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Figures:
    """What was measured on `n` held-out rows of classes, numbers or pairs."""

    kind: str
    n: int
    # accuracy, confidence, ece (expected calibration error) and margin (in logits) for classes and
    # pairs; rmse, correlation and ece for numbers
    values: dict[str, float]
    bins: list[Bin]

    def sentences(self) -> str:
        """Format the figures for a terminal, one per line."""
        noun = "pairs" if self.kind == "pairs" else "texts"
        return SENTENCES[self.kind == "number"].format(n=f"n = {self.n} {noun}", **self.values)


def evaluate_reward_model(folder: str | Path, heldout: Labeled | Pairs) -> Figures:
    """Measure a saved reward model on rows that it never saw, of the kind that it learned from."""
    model, tokenizer = load_classifier(folder, source="the reward model")
    model.to(PartialState().device).eval()
    if isinstance(heldout, Pairs):
        special = not heldout.rendered
        sides = (heldout.chosen, heldout.rejected)
        chosen, rejected = (_logits(model, tokenizer, texts, special)[:, 0] for texts in sides)
        margin = chosen - rejected
        return _decisions("pairs", (margin > 0).float(), margin.abs().sigmoid(), margin)
    logits = _logits(model, tokenizer, heldout.texts)
    if heldout.names is None:
        return _numbers(logits[:, 0], torch.tensor(heldout.labels))
    labels = torch.tensor(heldout.labels)[:, None]
    confidence, winner = logits.softmax(1).max(1)
    own = logits.gather(1, labels)[:, 0]
    others = logits.scatter(1, labels, -math.inf).max(1).values
    return _decisions("classes", (winner == labels[:, 0]).float(), confidence, own - others)


def write_card(
    folder: str | Path, figures: Figures, *, base: str, source: str, rows: int, seconds: float
) -> None:
    """Write README.md beside a model: what it is, from what, how good, and how to use it."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers", pipeline_tag="text-classification", tags=["reward-model"]
        ),
        template_path=str(Path(__file__).with_name("reward_model_card.md.j2")),
        labels=[printable(str(name)) for name in config["id2label"].values()],
        figures=figures,
        axes=AXES[figures.kind],
        base=printable(base),
        source=printable(source),
        rows=rows,
        seconds=seconds,
        versions=versions(),
    )
    card.save(Path(folder) / "README.md")


def reliability(
    predicted: Sequence[float], observed: Sequence[float], *, equal_counts: bool = False
) -> list[Bin]:
    """Put predictions into bins, from low to high, and take the means of those that hold one.

    `observed` is 1 where a prediction came true and 0 elsewhere, or the true numbers. Bins divide 0
    to 1 evenly, or with `equal_counts` the predictions.
    """
    if equal_counts:
        places = pd.qcut(predicted, BINS, labels=False, duplicates="drop")
    else:
        places = pd.cut(predicted, np.linspace(0, 1, BINS + 1), labels=False, include_lowest=True)
    rows = pd.DataFrame({"predicted": predicted, "observed": observed}, dtype=float)
    groups = rows.groupby(np.nan_to_num(places))  # nan: all predictions are the same
    return [Bin(len(group), *group.mean()) for _, group in groups]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Give the bins' mean distance of predicted and observed, weighted by their counts."""
    counts, predicted, observed = np.array(bins).T
    return float(np.average(np.abs(predicted - observed), weights=counts))


def plot_reliability(
    bins: Sequence[Bin],
    path: str | Path | None = None,
    *,
    title: str = "",
    kind: Literal["classes", "pairs", "number"] = "classes",
) -> Figure:
    """Draw what was observed against what was predicted, and how many each bin holds."""
    figure = Picture(figsize=(6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    counts, x, y = zip(*bins, strict=True)
    ends, (predicted, observed) = (min(*x, *y), max(*x, *y)), AXES[kind]
    upper.plot(ends, ends, label="calibrated", **DASHED)
    upper.plot(x, y, "o-", color=COLORS[0], linewidth=2, label="held out")
    upper.set_ylabel(observed)
    upper.legend(loc="upper left", frameon=False)
    width = 0.6 * min(np.diff(x), default=ends[1] - ends[0] or 1.0)
    lower.bar(x, counts, width=width, color=COLORS[0], alpha=0.5)
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set(xlabel=predicted, ylabel="count")
    error = expected_calibration_error(bins)
    style_axes(upper, f"{title}: " * bool(title) + f"calibration error {error:.3f}", grid="both")
    style_axes(lower, "How many of them", grid="y")
    return save_figure(figure, path)


def _logits(model: Any, tokenizer: Any, texts: Sequence[str], special: bool = True) -> Tensor:
    """Logits (N, labels) on the CPU, of texts that are cut where the rewards cut them."""
    size, longest = 64 if can_pad(model, tokenizer) else 1, longest_input(model, tokenizer)
    return classifier_logits(model, tokenizer, texts, size, longest, special)[0]


def _decisions(kind: str, right: Tensor, confidence: Tensor, margin: Tensor) -> Figures:
    bins = reliability(confidence.tolist(), right.tolist())
    accuracy, accuracy_half = mean_interval(right.tolist())
    mean_margin, margin_half = mean_interval(margin.tolist())
    values = {
        "accuracy": accuracy,
        "accuracy_half": accuracy_half,
        "ece": expected_calibration_error(bins),
        "confidence": float(confidence.mean()),
        "margin": mean_margin,
        "margin_half": margin_half,
    }
    return Figures(kind, len(right), values, bins)


def _numbers(predicted: Tensor, true: Tensor) -> Figures:
    bins = reliability(predicted.tolist(), true.tolist(), equal_counts=True)
    values = {
        "rmse": float((predicted - true).square().mean().sqrt()),
        "spread": float(true.std(correction=0)),
        "correlation": float(torch.stack([predicted, true]).corrcoef()[0, 1]),
        "ece": expected_calibration_error(bins),
    }
    return Figures("number", len(true), values, bins)


def write_figures(
    run: RunFolder, heldout: Labeled | Pairs, trained: Mapping[str, float], base: str, source: str
) -> Figures:
    """Measure a trained reward model, and leave a picture and a card with its figures.

    `trained` is what its training returned; it started from `base` and learned from `source`.
    """
    figures = evaluate_reward_model(run.model, heldout)
    picture = run.plots / "reliability.png"
    plot_reliability(figures.bins, picture, title=f"n = {figures.n}", kind=figures.kind)
    rows, seconds = int(trained["rows"]), trained["seconds"]
    write_card(run.model, figures, base=base, source=source, rows=rows, seconds=seconds)
    return figures

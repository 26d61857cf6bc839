"""A picture of a language model's training: loss on the text, and on text held out of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trl_recipes.report.plots import COLORS, Picture, save_figure, style_axes


def plot_losses(
    all_stats: Sequence[Mapping[str, Any]],
    path: str | Path | None = None,
    title: str = "",
    unit: str = "nats per character",
) -> Figure:
    """Draw `loss/train` and `loss/heldout` over the steps.

    Args:
        all_stats: rows of `trl_recipes.loss_log.LossLog`, read by `load_stats`.
        path: where to save the PNG; None saves nothing.
        title: what was trained, and how it ended.
        unit: of the losses.

    Returns:
        The figure; a notebook shows it.
    """
    figure = Picture(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    looks = {"train": (COLORS[0], None), "heldout": (COLORS[1], "o")}
    for name, (color, marker) in looks.items():
        losses = [(row["step"], row.get(f"loss/{name}", math.nan)) for row in all_stats]
        points = [(step, loss) for step, loss in losses if math.isfinite(loss)]
        if points:
            label = {"train": "training text", "heldout": "held-out text"}[name]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=label)
    style_axes(axes, "Loss", grid="y")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", frameon=False)
    figure.suptitle(title)
    return save_figure(figure, path)

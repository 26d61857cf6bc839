"""Where pages are written, and what a recipe does when its run has ended."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from trl_recipes.distributed import is_main_process
from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.compare import Comparison
from trl_recipes.evaluation.overoptimization import plot_run
from trl_recipes.report.comparison_page import comparison_page
from trl_recipes.report.plots import plot_comparison
from trl_recipes.report.reading import read_run
from trl_recipes.report.run_page import run_page
from trl_recipes.run_folder import RunFolder, note, write_whole
from trl_recipes.stats import load_stats, run_names


def write_report(
    run: str | os.PathLike | RunFolder, figures: Mapping[str, float] | None = None
) -> Path:
    """Write report.html into a run folder, as far as the run has come.

    Args:
        run: the run folder; the run may be going on, finished, or years old.
        figures: what the run found, by name; kept with it.

    Returns:
        The page; only the main process writes it.

    Raises:
        RecipeError: no run is there, one of its files is damaged, or the page cannot be written.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run).expanduser())
    if not is_main_process():
        return run.report
    if figures is not None:
        note(run, figures=dict(figures))
    return _written(run.report, run_page(read_run(run.path)))


def conclude(run: RunFolder, comparison: Comparison, samples: str | None = None) -> str:
    """Keep what a finished run came to - comparison, pictures, page - and say it.

    Args:
        run: the run folder.
        comparison: of the run with what it started from.
        samples: texts to tell first; None takes three prompts with their answers side by side.

    Returns:
        Samples, the table, where score and judges part, and where all of it lies.

    Raises:
        RecipeError: a file of the run is damaged, or one cannot be written.
    """
    comparison.save(run.comparison)
    said = plot_run(load_stats(run.path), run.plots, run.path.name)
    write_report(run)
    samples = comparison.side_by_side(3) if samples is None else samples
    return "\n\n".join([samples, comparison.table(), *said, run.places()])


def write_comparison(
    comparison: Comparison, folder: str | os.PathLike, runs: Sequence[str | os.PathLike] = ()
) -> str:
    """Write a comparison: comparison.json, comparison.png and compare.html.

    Args:
        comparison: of models on the same prompts.
        folder: for the three; made where it is not there.
        runs: folders of the runs that the models are of, whose curves the page shows.

    Returns:
        Where they lie, in three lines.

    Raises:
        RecipeError: one of them cannot be written.
    """
    folder = Path(folder)
    comparison.save(folder / "comparison.json")
    plot_comparison(comparison, folder / "comparison.png")
    trained = [run for run in runs if RunFolder(Path(run)).all_stats.is_file()]
    names = dict(zip(map(str, runs), run_names(list(runs), taken=["reference"]), strict=True))
    curves = {names[str(run)]: load_stats(run) for run in trained}
    page = _written(folder / "compare.html", comparison_page(comparison.to_dict(), curves))
    return (
        f"Page:     {page}\nPictures: {folder / 'comparison.png'}\n"
        f"Numbers:  {folder / 'comparison.json'}"
    )


def _written(path: Path, page: str) -> Path:
    try:
        write_whole(path, page)
    except OSError as error:
        raise RecipeError(
            f"`{path}` could not be written ({error.strerror}). Free some space, or make the "
            "folder writable."
        ) from error
    return path

"""What each part of PPO does: the default of ppo_sentiment.py with one setting changed at a time.

    python recipes/ppo_ablation.py                                 # all variants, three seeds each
    python recipes/ppo_ablation.py --seeds 0 --only "1 epoch"      # a first look

The variants stand in recipes/configs/ppo_ablation.yaml. Each run is recipes/ppo_sentiment.py in a
process of its own; the same command goes on with what is unfinished, and runs nothing twice.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import yaml

from trl_recipes import RecipeError, load_stats, run_recipe, setting
from trl_recipes.describe import markdown_table
from trl_recipes.run_folder import RunFolder, check_folder

RECIPES = Path(__file__).parent
DIGITS = {"P(POSITIVE)": 3, "KL": 2, "distinct-2": 3, "clipped": 3, "variance explained": 2}
DIGITS |= {"responses": 0, "CPU seconds": 0}
WITH_RANGE = ("P(POSITIVE)", "KL", "distinct-2")


@dataclass
class AblationArguments:
    """Which variants to train, and where."""

    variants: dict | None = setting(None, "Settings of each variant, by its name (YAML).")
    only: list[str] | None = setting(None, "Names of the variants to train (default: all).")
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each."})
    output_dir: str = setting("runs/ppo-ablation", "Folder of all runs.")


def train(folder: Path, settings: dict) -> dict[str, float]:
    """Train in a process of its own, unless that was done, and read what came of it."""
    wanted, done, log = (Path(f"{folder}{end}") for end in (".yaml", ".json", ".log"))
    text = yaml.safe_dump(settings | {"output_dir": str(folder)}, sort_keys=False)
    if not done.is_file() or wanted.read_text() != text:
        wanted.write_text(text)
        command = [sys.executable, RECIPES / "ppo_sentiment.py", "--config", wanted]
        command += ["--overwrite_output_dir", "true"]
        env = {"OMP_NUM_THREADS": "1", **os.environ}
        with log.open("w") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
            _, status, used = os.wait4(process.pid, 0)  # its processor time too
        if status:
            raise RecipeError(f"A run failed. Read `{log}`, and give the same command again.")
        done.write_text(json.dumps(figures(folder) | {"CPU seconds": used.ru_utime}))
        print(folder.name, done.read_text(), flush=True)
    return json.loads(done.read_text())


def figures(folder: Path) -> dict[str, float]:
    """Measure a run: its model on held-out prompts, means of its steps, of its last quarter."""
    model = json.loads(RunFolder(folder).comparison.read_text())["models"][folder.name]
    rows = load_stats(folder)
    return {
        "P(POSITIVE)": model["P(POSITIVE)"]["mean"],
        "KL": model["kl"]["mean"],
        "distinct-2": model["distinct_2"],
        "clipped": fmean(row["ppo/policy/clipfrac"] for row in rows),
        "variance explained": fmean(r["ppo/val/var_explained"] for r in rows[3 * len(rows) // 4 :]),
        "responses": rows[-1]["episode"],
    }


def cell(column: str, values: list[float]) -> str:
    """Write a column's mean over the seeds, with the least and the most where they matter."""
    mean, least, most = (f"{f(values):,.{DIGITS[column]}f}" for f in (fmean, min, max))
    return f"{mean} ({least} to {most})" if column in WITH_RANGE and len(values) > 1 else mean


def main(args: AblationArguments) -> None:
    folder, variants = check_folder(args.output_dir), args.variants or {}
    chosen = args.only or list(variants)
    for name in chosen:
        if name not in variants:
            raise RecipeError(f"--only: there is no `{name}`. Choose of: {', '.join(variants)}.")
    shared = yaml.safe_load((RECIPES / "configs" / "ppo_sentiment.yaml").read_text())
    folder.mkdir(parents=True, exist_ok=True)

    # Results
    table = [["", *DIGITS]]
    for name in chosen:
        settings, stem = shared | variants[name], name.replace(" ", "-")
        runs = [train(folder / f"{stem}-seed{s}", settings | {"seed": s}) for s in args.seeds]
        table.append([name, *(cell(column, [run[column] for run in runs]) for column in DIGITS)])
    (folder / "table.md").write_text(markdown_table(table) + "\n")
    print(markdown_table(table), "", folder / "table.md", sep="\n")


if __name__ == "__main__":
    run_recipe(main, AblationArguments, default_config="ppo_ablation", trains=False)

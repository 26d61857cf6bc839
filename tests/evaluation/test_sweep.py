"""recipes/compare_algorithms.py: equal budgets, figures as in the files, nothing run twice."""

import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
from launching import run_here, run_script, warm
from matplotlib.image import imread
from tiny_models import save_tiny_classifier
from transformers import AutoTokenizer

from trl_recipes import load_stats
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.evaluation import sweep
from trl_recipes.evaluation.sweep import (
    Results,
    Run,
    SweepRun,
    Task,
    load_results,
    make_runs,
    plot_results,
    run_all,
)
from trl_recipes.report.page import read_json
from trl_recipes.stats import read_rows

TEXTS = ["The acting was wonderful and the plot kept me awake.", "A dull film, sadly."] * 30
BUDGET, BATCH, RESPONSE = 200, 8, 6
OWN = {"ppo": {"save_steps": 3}, "grpo": {"num_generations": 4, "save_steps": 3}}
OWN |= {"rloo": {"num_generations": 4, "learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_gpt2):
    """Words that let the recipe run on a tiny model, a tiny classifier and few texts."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_classifier(AutoTokenizer.from_pretrained(tiny_gpt2), folder / "classifier")
    rows = [{"text": f"{text} {i}"} for i, text in enumerate(TEXTS)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {"model_name_or_path": tiny_gpt2, "reward_model": folder / "classifier"}
    names |= {"dataset_name": folder / "data.jsonl", "tokens": BUDGET, "batch": BATCH}
    names |= {"response_length": RESPONSE, "evaluations": 2, "eval_prompts": 6, "seeds": 0}
    return names | {"jobs": 1} | {name: json.dumps(settings) for name, settings in OWN.items()}


def recipe(flags, folder, **changes):
    """Run the recipe in this process; its runs have processes of their own."""
    chosen = flags | {"output_dir": folder} | changes
    words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    started = SimpleNamespace(Popen=WarmProcess, DEVNULL=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "subprocess", started)
        run_here("compare_algorithms.py", *words)


def plain(path):
    """Rows of a file of a run but for its times."""
    slow = ("time", "seconds", "step_time", "train_")
    return [{k: v for k, v in row.items() if not k.startswith(slow)} for row in read_rows(path)]


def answers_of(folder, name, model):
    models = read_json(folder / f"{name}-seed0" / "comparison.json")["models"]
    return models[model]["responses"]


class WarmProcess:
    """A run's process as `subprocess.Popen` starts it, but forked from a warm interpreter."""

    def __init__(self, command, stdout, **_):
        script = (sweep.__file__, command[-1:], Path.cwd(), [stdout.name] * 2, {})
        self.process = warm().Process(target=run_script, args=script)
        self.process.start()
        self.kill = self.process.kill

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)


@pytest.fixture(scope="module")
def compared(flags, tmp_path_factory):
    """A comparison of one seed, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "algorithms"
    with redirect_stdout(io.StringIO()) as printed:
        recipe(flags, folder)
    return folder, printed.getvalue()


def test_every_run_generates_the_budget_and_ends_with_the_policy_that_was_saved(compared):
    for name in OWN:
        run = compared[0] / f"{name}-seed0"
        result, rows = read_json(run / "stage.json")["result"], load_stats(run)
        assert BUDGET <= result["tokens"] < BUDGET + BATCH * RESPONSE
        generated = sum(row["tokens/responses_len_mean"] * BATCH for row in rows)
        assert generated == pytest.approx(result["tokens"])
        assert rows[-1]["episode"] == result["responses"] == len(rows) * BATCH
        if name != "ppo":  # TRL's own count
            assert rows[-1]["tokens/generated"] == result["tokens"]
        measured = [row for row in read_rows(run / "curve.jsonl") if "reward" in row]
        assert len(measured) == 3  # the start and two evaluations
        ended = {key: measured[-1][key] for key in ("kl", "perplexity", "distinct_2", "length")}
        ended |= {"reward": measured[-1]["reward"]}
        assert ended == pytest.approx({key: result["policy"][key] for key in ended}, abs=1e-4)


def test_all_start_alike_and_answer_the_same_prompts(compared):
    found = [read_json(compared[0] / f"{name}-seed0" / "comparison.json") for name in OWN]
    assert found[0]["prompts"] == found[1]["prompts"] == found[2]["prompts"]
    references = [answers_of(compared[0], name, "reference") for name in OWN]
    assert references[0] == references[1] == references[2]
    trained = [answers_of(compared[0], name, f"{name}-seed0") for name in OWN]
    assert trained[0] != trained[1] != trained[2] != references[0]
    starts = [read_rows(compared[0] / f"{name}-seed0" / "curve.jsonl")[0] for name in OWN]
    assert [start.pop("kl") for start in starts] == pytest.approx([0, 0, 0], abs=1e-5)
    assert starts[0] == starts[1] == starts[2]


def test_the_table_says_what_the_files_say(compared):
    folder, printed = compared
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] in printed
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert table[0] == ["", "before", "PPO", "GRPO", "RLOO"]
    cells = {row[0]: row[1:] for row in table}
    titles = {"kl": "KL, nats per response"}
    for column, name in enumerate(OWN, 1):
        for place, model in ((0, "reference"), (column, f"{name}-seed0")):
            answers = answers_of(folder, name, model)
            for figure, near in (("P(POSITIVE)", 6e-4), ("score (logit)", 6e-4), ("kl", 6e-3)):
                mean = fmean(answer[figure] for answer in answers)
                shown = float(cells[titles.get(figure, figure)][place])
                assert shown == pytest.approx(mean, abs=near)
            nll, length = (sum(a[key] for a in answers) for key in ("reference_nll", "length"))
            perplexity = float(cells["perplexity"][place])
            assert perplexity == pytest.approx(np.exp(nll / length), abs=6e-3)
        tokens = read_rows(folder / f"{name}-seed0" / "curve.jsonl")[-1]["tokens"]
        assert int(cells["tokens generated"][column]) == tokens
        assert f"{name.upper()} seed 0: reward " in printed
    assert imread(folder / "algorithms.png").std() > 0.05


def test_finished_runs_are_not_run_again_and_other_settings_are_refused(compared, flags, capsys):
    before = {path: path.stat().st_mtime_ns for path in compared[0].glob("*-seed0/**/*")}
    recipe(flags, compared[0])
    assert "begun" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        recipe(flags, compared[0], tokens=240)
    assert "other settings: tokens was 200 and is 240" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in compared[0].glob("*-seed0/**/*")}


def test_an_unfinished_run_goes_on_as_if_never_stopped(compared, flags, capsys):
    run = compared[0] / "grpo-seed0"
    kept = {name: plain(run / name) for name in ("curve.jsonl", "all_stats.jsonl")}
    note = read_json(run / "stage.json")
    (run / "stage.json").write_text(json.dumps(note | {"result": None}))
    recipe(flags, compared[0])
    printed = capsys.readouterr().out
    assert printed.count("begun") == 1
    assert "GRPO seed 0: begun, 1 of 1" in printed
    assert "starting at" not in (run / "log.txt").read_text()
    assert kept == {name: plain(run / name) for name in kept}
    assert read_json(run / "stage.json")["result"]["policy"] == note["result"]["policy"]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_looking_does_not_change_the_run(flags, tmp_path, algorithm):
    names = ("model_name_or_path", "reward_model", "dataset_name")
    shared = {name: str(flags[name]) for name in names} | {"tokens": 150, "batch": BATCH}
    shared |= {"response_length": RESPONSE, "eval_prompts": 4, "max_prompt_length": 4}
    for often in (1, 4):
        task = Task(**shared, evaluations=often)
        SweepRun(Run(algorithm, 0, task, tmp_path / str(often), OWN[algorithm])).train()
    once, often = (plain(tmp_path / times / "all_stats.jsonl") for times in "14")
    assert len(once) > 2
    assert once == often


STAND_IN = """
import json, signal, sys, time
from pathlib import Path
run = json.loads(sys.argv[1])
folder = Path(run["folder"])
folder.mkdir(exist_ok=True)
if run["algorithm"] == "grpo":
    print("error: the disk is full"); sys.exit(2)
if run["seed"] == 9:
    signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").write_text("1") and sys.exit(143))
    (folder / "ready").write_text("")
    time.sleep(60)
figures = {"reward": 0.5, "kl": 1.0}
result = {"reference": figures, "policy": figures, "tokens": 9, "seconds": 1.0}
settings = {"seed": run["seed"]} | run["task"] | run["settings"]
(folder / "stage.json").write_text(json.dumps({"settings": settings, "result": result}))
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "COMMAND", (sys.executable, str(tmp_path / "stand_in.py")))


def some_runs(folder, *seeds, algorithms=("ppo", "grpo")):
    task = Task(tokens=64, batch=8, response_length=4, evaluations=2, eval_prompts=4)
    return make_runs(task, algorithms, seeds, {"grpo": {"num_generations": 4}}, folder)


def test_a_run_that_fails_says_so_and_the_others_stay(stand_in, tmp_path):
    said = []
    assert load_results(some_runs(tmp_path, 0)) is None
    failures = run_all(some_runs(tmp_path, 0, 1), 2, said.append)
    assert sorted(words[:18] for words in failures) == ["GRPO seed 0 failed", "GRPO seed 1 failed"]
    assert all("error: the disk is full" in words and "log.txt" in words for words in failures)
    assert all((tmp_path / f"ppo-seed{seed}" / "stage.json").is_file() for seed in (0, 1))
    assert sum("failed" in line for line in said) == 2
    (tmp_path / "ppo-seed0" / "stage.json").write_text("{")
    with pytest.raises(RecipeError, match="damaged"):
        load_results(some_runs(tmp_path, 0))


def test_a_signal_reaches_every_run_and_waits_for_it(stand_in, tmp_path):
    run = tmp_path / "ppo-seed9"

    def press():
        while not (run / "ready").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=press).start()
    with pytest.raises(RunStopped, match="The same command goes on"):
        run_all(some_runs(tmp_path, 9, algorithms=["ppo"]), 1, lambda _: None)
    assert (run / "saved").is_file()


def made_up(**ends):
    """Results of three seeds: reward, KL and seconds at the end of each algorithm."""
    task = Task(tokens=50_000, batch=8, response_length=4, evaluations=2, eval_prompts=4)
    figures = {"perplexity": 5.0, "distinct_2": 0.5, "length": 4.0}
    before = {"P(POSITIVE)": 0.4, "reward": 0.4, "kl": 0.0, **figures}
    results = Results([], [], [])
    for name, (rewards, kls, seconds) in ends.items():
        for seed, (reward, kl, second) in enumerate(zip(rewards, kls, seconds, strict=True)):
            policy = {"P(POSITIVE)": reward, "reward": reward, "kl": kl, **figures}
            result = {"reference": before, "policy": policy, "tokens": 50_001, "step": 9}
            results.runs.append(Run(name, seed, task, Path(f"{name}-seed{seed}")))
            results.found.append(result | {"seconds": second})
            start = {"tokens": 0, "seconds": 0.0, "reward": 0.4, "kl": 0.0}
            end = {"tokens": 50_001, "seconds": second, "reward": reward, "kl": kl}
            results.curves.append([start, end])
    return results


def test_table_and_picture_say_what_the_seeds_came_to(tmp_path):
    results = made_up(
        ppo=([0.90, 0.91, 0.95], [3.0, 3.1, 3.2], [20.0, 20.0, 21.0]),
        grpo=([0.904, 0.914, 0.924], [3.0, 3.1, 3.2], [30.0, 30.0, 30.0]),
    )
    assert "0.920 (0.900 to 0.950)" in results.table()
    assert results.over_seeds()["ppo"]["kl"].tolist() == pytest.approx([3.1, 3.0, 3.2])
    figure = plot_results(results, tmp_path / "a.png")
    words = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert words == [
        ["PPO 0.92", "GRPO 0.91", "before 0.40"],
        ["PPO 20 s", "GRPO 30 s", "before 0.40"],
        ["PPO 3.1 nats", "GRPO 3.1 nats", "before 0.40"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own": {"ppo": "[1]"}}, r"--ppo is '\[1\]', which is no JSON object"),
        ({"own": {"ppo": "{"}}, "no JSON object"),
        ({"own": {"ppo": {"lerning_rate": 1}}}, "--ppo: .*'lerning_rate'.*ppo_sentiment.py --help"),
        ({"own": {"rloo": {"batch_size": 1}}}, "`batch_size` is the same for every algorithm"),
        ({"own": {"grpo": {"num_generations": 3}}}, "must be a multiple of `num_generations` .3."),
        ({"own": {"ppo": {"learning_rate": -1.0}}}, "`learning_rate` is -1.0"),
        ({"algorithms": ["ppo", "dqn"]}, "`dqn` is unknown. Use ppo, grpo, rloo"),
    ],
)
def test_what_is_asked_for_is_checked_before_anything_runs(changes, message):
    asked = {"algorithms": ["ppo", "grpo", "rloo"], "seeds": [0], "own": {}} | changes
    task = Task(tokens=64, batch=8, response_length=4, max_prompt_length=4)
    with pytest.raises(RecipeError, match=message):
        make_runs(task, **asked, place=Path("runs"))

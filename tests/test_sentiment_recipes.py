"""The sentiment recipes as users run them; their mistakes stand in test_bad_inputs.py."""

import dataclasses
import io
import json
import os
import re
import subprocess
from contextlib import redirect_stdout

import pytest
import trl
from launching import ACCELERATE, RECIPES, run_here, run_warm
from tiny_grpo import without_times
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_recipes.stats import load_stats, read_rows

LAUNCH = [ACCELERATE, "launch", "--num_processes", "1"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
each = pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
groups = pytest.mark.parametrize("kind", ["grpo", "rloo"])


def settings_of(kind, models, **changes):
    settings = {"max_steps": 3, "batch_size": 8, "eval_prompts": 8, "response_length": 6}
    settings |= {"disable_tqdm": "true", "learning_rate": 1e-3}
    return models | settings | ({} if kind == "ppo" else {"num_generations": 4}) | changes


def run(kind, folder, settings):
    words = (word for name, value in settings.items() for word in (f"--{name}", str(value)))
    run_here(f"{kind}_sentiment.py", *words, "--output_dir", folder)


@pytest.fixture(scope="module")
def finished(sentiment_models, tmp_path_factory):
    """A run of each, laid beside each other; and what they printed."""
    folder = tmp_path_factory.mktemp("runs")
    told = {}
    for kind in ("ppo", "grpo", "rloo"):
        with redirect_stdout(io.StringIO()) as printed:
            run(kind, folder / kind, settings_of(kind, sentiment_models))
        told[kind] = printed.getvalue()
    return folder, told


@each
def test_the_run_folder_holds_what_it_promises(kind, finished):
    folder, told = finished[0] / kind, finished[1][kind]
    rows = load_stats(folder)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all("env/reward_mean" in row and "objective/kl" in row for row in rows)
    assert (folder / "plots" / "training.png").stat().st_size > 10_000
    assert len(read_rows(folder / "samples.jsonl")) == (12 if kind == "ppo" else 6)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-3"]
    model, info = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(AutoTokenizer.from_pretrained(folder / "model")) <= model.config.vocab_size
    assert (folder / "model" / "value_head.safetensors").is_file() is (kind == "ppo")
    shape = "gone over 4 times" if kind == "ppo" else "4 to a prompt"
    said = (f"3 steps, each of 8 responses, {shape}", "P(POSITIVE)", str(folder / "model"))
    assert [words for words in said if words not in told] == []


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_its_config_runs_it_again_and_another_seed_differs(kind, finished, tmp_path):
    first = finished[0] / kind
    config = {"config": first / "config.yaml", "eval_prompts": 2}
    run(kind, tmp_path / "again", config)
    run(kind, tmp_path / "other", config | {"seed": 1})
    folders = (first, tmp_path / "again", tmp_path / "other")
    rows, again, other = (without_times(load_stats(folder)) for folder in folders)
    assert rows == again != other


def test_compare_takes_any_two_runs(finished, tmp_path, capsys):
    runs = (finished[0] / "grpo", finished[0] / "rloo")
    run_here("compare.py", *runs, "--max_prompts", 4, "--output_dir", tmp_path)
    told = capsys.readouterr().out
    assert "KL (nats/response)" in told
    assert "rloo" in told


def test_the_three_recipes_differ_in_the_algorithm_alone():
    """The same flags of the recipe, and below `Trainer` the same text but for the names."""
    texts = {}
    for kind in ("ppo", "grpo", "rloo"):
        text = (RECIPES / f"{kind}_sentiment.py").read_text()
        text = text.partition("@dataclass")[2].replace(kind.upper(), "X").replace(kind, "x")
        texts[kind] = re.split("# (?:Models|Prompts)", text)
    assert texts["ppo"][::2] == texts["grpo"][::2]
    assert len(texts["ppo"]) == 3
    assert texts["grpo"] == texts["rloo"]


@groups
def test_every_setting_of_trl_is_a_flag_and_help_explains_what_matters(kind, capsys):
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            run_here(f"{kind}_sentiment.py", flag)
        text = capsys.readouterr().out
        names = ("num_generations", "beta", "num_iterations", "check")
        assert [name for name in names if f"--{name} " not in text] == []
    fields = dataclasses.fields(getattr(trl, f"{kind.upper()}Config"))
    assert [field.name for field in fields if field.init and f"--{field.name}" not in text] == []


def test_an_ablation_runs_each_variant_once(sentiment_models, tmp_path):
    few = {"mini_batch_size": 4, "min_response_length": 4, "ppo_epochs": 1, "disable_tqdm": True}
    once = settings_of("ppo", {name: str(path) for name, path in sentiment_models.items()}, **few)
    variants = {"once": once, "no score clip": once | {"score_clip": None, "ppo_epochs": 2}}
    (tmp_path / "few.yaml").write_text(json.dumps({"variants": variants}))
    command = ["ppo_ablation.py", "--config", tmp_path / "few.yaml", "--seeds", "3"]
    command += ["--output_dir", tmp_path / "runs"]
    first, again = (run_warm(*command) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr[-2000:]
    assert first.stdout.count("seed3") == 2
    assert again.stdout in first.stdout  # the table alone: nothing is run twice
    for name, epochs in (("once", 1), ("no-score-clip", 2)):
        folder = tmp_path / "runs" / f"{name}-seed3"
        comparison = json.loads((folder / "comparison.json").read_text())
        mean = comparison["models"][folder.name]["P(POSITIVE)"]["mean"]
        assert re.search(rf"\| {name.replace('-', ' ')} *\| *{mean:.3f} \|", first.stdout)
        config = (folder / "config.yaml").read_text()
        assert f"ppo_epochs: {epochs}" in config
        assert ("score_clip: null" in config) is (epochs == 2)


def test_the_default_clips_and_opens_no_network_socket(tmp_path):
    """From the command line. Every connect is refused and noted; the run must not notice."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(self, address):\n"
        f"    open({str(tmp_path / 'reached')!r}, 'a').write(repr(address))\n"
        "    raise OSError('refused')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
    )
    words = ["--max_steps", "2", "--batch_size", "64", "--mini_batch_size", "16"]
    words += ["--eval_prompts", "8", "--disable_tqdm", "true", "--output_dir", tmp_path / "run"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{RECIPES.parent}"
    command = [*LAUNCH, RECIPES / "ppo_sentiment.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "P(POSITIVE)" in done.stdout
    assert not (tmp_path / "reached").exists()
    assert all(0.01 < row["ppo/policy/clipfrac"] < 0.5 for row in load_stats(tmp_path / "run"))

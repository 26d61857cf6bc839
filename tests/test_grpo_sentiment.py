"""recipes/grpo_sentiment.py and recipes/rloo_sentiment.py as users run them."""

import dataclasses
import importlib.util
import json
import sys

import pytest
import trl
from conftest import save_tiny_classifier
from launching import RECIPES, run_warm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from trl_recipes.arguments import run_recipe
from trl_recipes.stats import load_stats

TEXTS = ["The acting was wonderful and the plot kept me awake.", "A dull film, sadly."] * 15
both = pytest.mark.parametrize("kind", ["grpo", "rloo"])


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_gpt2):
    """A GPT-2 and a RoBERTa in the hub's format, and reviews with a test split."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    save_tiny_classifier(tokenizer, folder / "classifier")
    rows = [
        {"text": f"{text} {i}", "label": i % 2, "split": "test" if i < 8 else "train"}
        for i, text in enumerate(TEXTS)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "--model_name_or_path": str(tiny_gpt2),
        "--reward_model": str(folder / "classifier"),
        "--dataset_name": str(folder / "data.jsonl"),
    }


def recipe(kind):
    """The recipe's module, not run."""
    path = RECIPES / f"{kind}_sentiment.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(kind, words):
    """Run a recipe in this process, as its last line does."""
    module = recipe(kind)
    config = getattr(module, f"{kind.upper()}Config")
    run_recipe(module.main, module.SentimentArguments, config, module.ModelConfig, argv=words)


def flags(models, folder, **changes):
    settings = models | {"--output_dir": str(folder), "--max_steps": "3", "--batch_size": "8"}
    settings |= {"--num_generations": "4", "--eval_prompts": "8", "--response_length": "6"}
    settings |= {"--disable_tqdm": "true", "--learning_rate": "1e-3"}
    settings |= {f"--{name}": value for name, value in changes.items()}
    return [word for pair in settings.items() for word in pair]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A run of each, laid beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("grpo", "rloo"):
        run(kind, flags(models, folder / kind))
    return folder


def without_times(folder):
    timed = ("time/", "step_time")
    return [{k: v for k, v in r.items() if not k.startswith(timed)} for r in load_stats(folder)]


@both
def test_the_run_folder_holds_what_it_promises(kind, finished):
    folder = finished / kind
    assert [row["step"] for row in load_stats(folder)] == [1, 2, 3]
    assert all("env/reward_mean" in row and "objective/kl" in row for row in load_stats(folder))
    assert (folder / "plots" / "training.png").stat().st_size > 10_000
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 6
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-3"]
    model, info = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(AutoTokenizer.from_pretrained(folder / "model")) <= model.config.vocab_size


@both
def test_its_config_runs_it_again_and_another_seed_differs(kind, finished, tmp_path):
    config = ["--config", str(finished / kind / "config.yaml"), "--eval_prompts", "2"]
    run(kind, [*config, "--output_dir", str(tmp_path / "again")])
    assert without_times(tmp_path / "again") == without_times(finished / kind)
    run(kind, [*config, "--output_dir", str(tmp_path / "other"), "--seed", "1"])
    assert without_times(tmp_path / "other") != without_times(finished / kind)


@both
def test_a_check_says_what_it_takes_and_writes_nothing(kind, models, tmp_path, capsys):
    run(kind, flags(models, tmp_path / "run", check="true"))
    said = capsys.readouterr().out
    assert "6 responses in all" not in said
    assert f"{kind.upper()} on GPT2LMHeadModel" in said
    assert "3 steps, each of 8 responses: 2 prompts with 4 responses each, 24 responses" in said
    assert "The whole training will take about" in said
    assert not (tmp_path / "run").exists()


def test_compare_takes_any_two_runs(finished, tmp_path):
    words = [str(finished / "grpo"), str(finished / "rloo"), "--max_prompts", "4"]
    words += ["--output_dir", str(tmp_path)]
    done = run_warm("compare.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "KL (nats/response)" in done.stdout
    assert "rloo" in done.stdout


def test_the_three_recipes_differ_in_the_algorithm_alone():
    """The same flags of the recipe, and below `Trainer` the same text but for the names."""
    texts = {
        kind: (RECIPES / f"{kind}_sentiment.py").read_text() for kind in ("ppo", "grpo", "rloo")
    }
    parts = {
        kind: [
            text.split(mark)[1].replace(kind.upper(), "X").replace(kind, "x")
            for mark in ("@dataclass", "# Prompts")
        ]
        for kind, text in texts.items()
    }
    assert parts["ppo"][1] == parts["grpo"][1] == parts["rloo"][1]
    first = {kind: part[0].split("# Models")[0] for kind, part in parts.items()}
    assert first["ppo"] == first["grpo"] == first["rloo"]
    assert parts["grpo"] == parts["rloo"]


@pytest.mark.parametrize("flag", ["num_generations", "beta", "epsilon", "num_iterations", "check"])
def test_help_explains_what_matters(flag, capsys):
    with pytest.raises(SystemExit):
        run("grpo", ["--help"])
    assert f"--{flag} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("grpo", ["loss_type", "scale_rewards", "importance_sampling_level", "delta"]),
        ("rloo", ["reward_clip_range", "normalize_advantages"]),
    ],
)
def test_every_setting_of_trl_is_a_flag(kind, own, capsys):
    with pytest.raises(SystemExit):
        run(kind, ["--help_all"])
    text = capsys.readouterr().out
    fields = dataclasses.fields(getattr(trl, f"{kind.upper()}Config"))
    assert [field.name for field in fields if field.init and f"--{field.name}" not in text] == []
    assert [name for name in own if f"--{name}" not in text] == []

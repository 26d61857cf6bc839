"""recipes/ppo_custom_reward.py as users run it, short; its figures are measured elsewhere."""

import pytest
from launching import RECIPES, run_here, run_warm
from transformers import AutoModelForCausalLM

from trl_recipes.stats import load_stats

RECIPE = "ppo_custom_reward.py"
COMPONENTS = ("log_perplexity", "similarity", "length", "repetition")


@pytest.fixture(scope="session")
def words(sentiment_models):
    data, model = (sentiment_models[name] for name in ("dataset_name", "model_name_or_path"))
    common = ["--config", RECIPES / "configs" / "ppo_custom_reward.yaml", "--dataset_name", data]
    common += ["--model_name_or_path", model, "--max_steps", 2, "--batch_size", 8]
    return [*common, "--response_length", 8, "--disable_tqdm", "true", "--output_dir"]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom") / "run"
    done = run_warm(RECIPE, *words, folder, "--max_length", "4", "--prompt", "The film")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_text_before_and_after_is_shown_with_every_component(finished):
    lines = finished[1].splitlines()
    for name in ("reference", "run"):
        assert sum(line.startswith(f"{name}: The film") for line in lines) == 3
    shown = [line for line in lines if line.startswith("    log_perplexity -")]
    assert len(shown) == 6
    assert all(f", {component} " in line for line in shown for component in COMPONENTS[1:])
    assert {line.split()[0] for line in lines if "±" in line} >= set(COMPONENTS)


def test_every_component_is_in_every_row_raw_and_with_what_normalized_it(finished):
    rows = load_stats(finished[0])
    assert len(rows) == 2
    figures = ("mean", "std", "shift", "scale")
    assert {f"rewards/{name}/{figure}" for name in COMPONENTS for figure in figures} <= set(rows[0])
    assert all(0 <= row["rewards/length/mean"] <= 1 for row in rows)


def test_only_the_attention_was_trained(finished, tiny_gpt2):
    before = AutoModelForCausalLM.from_pretrained(tiny_gpt2).state_dict()
    after = AutoModelForCausalLM.from_pretrained(finished[0] / "model").state_dict()
    changed = {name for name, value in after.items() if (value != before[name]).any()}
    assert changed
    assert all(".attn." in name for name in changed)


def test_version_1_optimizes_perplexity_and_logs_the_rest(words, tmp_path):
    (tmp_path / "goal.txt").write_text("A dull film.")
    more = ["--version", "1", "--reference_text", f"{tmp_path}/goal.txt"]
    run_here(RECIPE, *words, tmp_path / "run", *more)
    for row in load_stats(tmp_path / "run"):
        raw = 3.0 * row["rewards/log_perplexity/mean"] - 0.5 * row["rewards/repetition/mean"]
        assert row["env/reward_mean"] == pytest.approx(raw, abs=1e-5)
        assert row["rewards/similarity/mean"] != 0


def test_a_users_own_function_replaces_the_recipes_rewards(words, tmp_path):
    mine = (
        "def shouts(completions, **_):\n    return [float(text.isupper()) for text in completions]"
    )
    (tmp_path / "mine.py").write_text(mine)
    more = ["--reward_funcs", f"{tmp_path / 'mine.py'}:shouts", "RepetitionPenalty"]
    run_here(RECIPE, *words, tmp_path / "run", *more, "--metrics", "UppercaseReward")
    (row, _) = load_stats(tmp_path / "run")
    keys = {key for key in row if key.startswith(("rewards/", "metrics/")) and "mean" in key}
    assert keys == {"rewards/shouts/mean", "rewards/repetition/mean", "metrics/uppercase/mean"}

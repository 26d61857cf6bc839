"""recipes/rlhf.py: the chain as users run it, killed, gone on with, skipped and refused."""

import json
import random
import signal

import pytest
from chains import assert_same_weights, result_of, rows_of
from launching import Recipe, run_here
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trl_recipes.data.files import load_rows
from trl_recipes.data.prompts import PromptArguments
from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.judges import mood_judges
from trl_recipes.ppo import PPOConfig
from trl_recipes.training.reward_model import LearnedReward, RewardArguments, divide

SLOW = pytest.mark.slow
GOOD, BAD = ("wonderful", "lovely", "great"), ("dull", "awful", "poor")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Labeled reviews, some of them twice."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    mood = lambda i: draw.choice((BAD, GOOD)[i % 2])  # noqa: E731
    texts = [f"The acting was {mood(i)} and the plot kept me awake." for i in range(140)]
    texts += [f"It is {mood(i)}, said number {i}." for i in range(60)]
    splits = ["test"] * 20 + ["train"] * 180
    rows = [{"text": t, "label": i % 2, "split": splits[i]} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(tiny_gpt2, reviews, output_dir, **changes):
    settings = {"model_name_or_path": tiny_gpt2, "dataset_name": reviews, "output_dir": output_dir}
    settings |= {"max_steps": 4, "batch_size": 8, "eval_prompts": 8, "response_length": 6}
    settings |= {"reward_context_length": 32, "reward_epochs": 2, "save_steps": 1}
    given = (settings | {"disable_tqdm": "true"} | changes).items()
    return [word for name, value in given for word in (f"--{name}", str(value))]


def run(words):
    run_here("rlhf.py", *words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_gpt2, reviews):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("rlhf") / "run"
    run(flags(tiny_gpt2, reviews, folder))
    return folder


def test_the_chain_leaves_two_models_and_their_figures(finished):
    assert len(rows_of(finished)) == 4
    assert AutoModelForCausalLM.from_pretrained(finished / "model").config.n_layer == 2
    scorer = AutoModelForSequenceClassification.from_pretrained(finished / "reward" / "model")
    assert scorer.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    for picture in ("plots/training.png", "plots/overoptimization_vader.png"):
        assert (finished / picture).stat().st_size > 10_000
    assert (finished / "reward" / "plots" / "reliability.png").stat().st_size > 10_000
    card = (finished / "reward" / "model" / "README.md").read_text()
    assert f"{result_of(finished / 'reward')['rows']} rows" in card


def test_the_judge_is_logged_and_not_optimized(finished):
    row = rows_of(finished)[0]
    assert row["env/reward_mean"] == pytest.approx(row["rewards/reward_model/mean"], abs=1e-5)
    assert "metrics/vader/mean" in row
    assert not [key for key in row if "classifier" in key]  # it knows other reviews


def test_called_again_it_trains_nothing_and_generates(finished, tiny_gpt2, reviews, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.suffix == ".safetensors"}
    words = flags(tiny_gpt2, reviews, finished)
    run(words)
    judged = capsys.readouterr().out
    assert "judge (vader)" in judged
    assert "Reward model: held-out accuracy" in judged
    run([*words, "--task", "generate", "--prompt", "The plot"])
    shown = capsys.readouterr().out
    assert shown.count("> The plot ...") == 3
    config = ["--config", str(finished / "config.yaml"), "--task", "generate"]
    run([*config, "--prompt", "The plot"])
    assert capsys.readouterr().out == shown  # its YAML says the same as its flags
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reward_epochs": 1}, "reward model of other settings: reward_epochs was 2"),
        ({"reward_share": 0.4}, "the reward model of other settings: data was"),
        ({"learning_rate": 0.5}, "policy of other settings: learning_rate was left out"),
        ({"label": "HAPPY"}, "no label 'HAPPY'. Its labels are: NEGATIVE, POSITIVE"),
        ({"reward_share": 1}, "--reward_share is 1.0. Give a fraction between 0"),
        ({"reward_funcs": "LengthPenalty"}, "--reward_funcs LengthPenalty: this recipe trains"),
    ],
    ids=str,
)
def test_other_settings_are_refused(finished, tiny_gpt2, reviews, changes, told, capsys):
    with pytest.raises(SystemExit):
        run(flags(tiny_gpt2, reviews, finished, **changes))
    assert told in capsys.readouterr().err
    assert len(rows_of(finished)) == 4


@pytest.mark.parametrize("moment", ["reward model", pytest.param("policy", marks=SLOW)])
def test_a_killed_chain_ends_as_one_that_was_left_alone(
    moment, finished, tiny_gpt2, reviews, tmp_path
):
    words = flags(tiny_gpt2, reviews, tmp_path / "run")
    chain = Recipe("rlhf.py", *words)
    watched = {
        "reward model": tmp_path / "run" / "reward" / "stage.json",  # written when it begins
        "policy": tmp_path / "run" / "checkpoints" / "checkpoint-1",
    }[moment]
    chain.wait_until(watched.exists)
    chain.send_signal(signal.SIGKILL)
    assert chain.finish().returncode == -signal.SIGKILL
    run(words)
    assert rows_of(tmp_path / "run") == rows_of(finished)
    assert_same_weights(tmp_path / "run", finished, "model", "reward/model")


def test_check_tries_both_stages_and_writes_nothing(tiny_gpt2, reviews, tmp_path, capsys):
    run(flags(tiny_gpt2, reviews, tmp_path / "run", check="true"))
    said = capsys.readouterr().out
    assert said.count("nothing kept") + said.count("nothing was written") >= 1
    assert "The reward model: Checked" in said
    assert not (tmp_path / "run").exists()


def test_what_the_reward_model_learns_from_is_no_prompt(tiny_gpt2, reviews, tmp_path):
    rows = load_rows(str(reviews))
    seen, rest = divide(rows, 0.3, seed=0)
    assert (len(seen), len(rest)) == (54, 126)
    together = sorted([*seen["text"], *rest["text"]])
    assert together == sorted(rows["text"])
    config = PPOConfig(output_dir=str(tmp_path), disable_tqdm=True)
    data = PromptArguments(dataset_name=str(reviews))
    reward = LearnedReward(RewardArguments(reward_share=0.3), data, config, label="POSITIVE")
    assert not reward.ready
    with pytest.raises(RecipeError, match="not trained yet"):
        reward(["The film"], [" is wonderful."])
    prompts = reward.unseen(rows)
    assert not set(prompts["text"]) & set(seen["text"])
    assert len(prompts) < 126  # texts that stand twice are in neither half twice


def test_the_judges_point_where_the_reward_points():
    texts = {"prompts": ["The film"] * 2, "completions": [" is wonderful.", " is awful."]}
    for label, sign in (("POSITIVE", 1), ("negative", -1)):
        (judge,) = mood_judges(label, "reviews.jsonl")
        good, bad = judge(**texts)
        assert sign * good > 0 > sign * bad
    assert mood_judges("SPAM", "mails.jsonl") == []

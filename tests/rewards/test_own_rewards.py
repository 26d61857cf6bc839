"""Rewards of one's own: their unit, one for each token, and the files of docs/rewards.md."""

import json
import pickle
import re
from pathlib import Path

import pytest
import tiny_grpo
from launching import run_here

from trl_recipes import RecipeError, Rewards, SentimentReward
from trl_recipes.evaluation.judges import score_of

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
SHORT = ["--max_steps", "2", "--batch_size", "8", "--eval_prompts", "8", "--save_steps", "0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of the page, each under the name in its first line."""
    folder = tmp_path_factory.mktemp("files")
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(text)
    row = '{"prompt": "The capital of France is", "answer": "Paris"}'
    assert row in PAGE
    (folder / "questions.jsonl").write_text(f"{row}\n" * 40)
    return folder


def commands():
    lines = [
        block.replace("\\\n", " ").splitlines()
        for block in re.findall(r"```sh\n(accelerate.*?)```", PAGE, re.DOTALL)
    ]
    found = [line.split(" #")[0].split()[2:] for line, *_ in lines]
    more = [["ppo.py", "--reward_funcs", f] for f in ("critic.py:praise", "tokens.py:no_echo")]
    return [[words[0].removeprefix("recipes/"), *words[1:]] for words in found + more]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_what_the_page_shows_runs_and_is_measured(words, files, capsys):
    folder = files / "-".join(words).replace("/", "-")

    def said(*words):
        run_here(*words)
        return capsys.readouterr().out

    words = [str(files / w) if re.match(r"\w+\.(py:|jsonl)", w) else w for w in words]
    sizes = ["--num_generations", "4"] if words[0] != "ppo.py" else ["--ppo_epochs", "1"]
    sizes += ["--mini_batch_size", "8", "--output_dir", folder]
    told = said(*words, *SHORT, *sizes)
    names = [name.rpartition(":")[2] for name in words[2:] if name.endswith(":vowels")]
    assert "Rewards on " in told
    assert all(re.search(rf"(?m)^{name} +\S+ ± ", told) for name in names)
    assert "POSITIVE" not in told.replace("READ", "")
    if words[-1].endswith(":vowels"):
        compared = said("compare.py", folder, "--max_prompts", 4, "--output_dir", folder)
        assert re.search(rf"(?m)^{names[0]} +\S+ ± ", compared)
        assert f"(score: {names[0]}" in said("generate.py", "--model", folder, "--prompt", "A")


def test_a_text_alone_is_scored_by_what_needs_no_column(tmp_path, caplog):
    own = "def near(completions, answer, **_):\n    return [9.0]\n"
    own += "def size(completions):\n    return [float(len(text)) for text in completions]\n"
    (tmp_path / "own.py").write_text(own)
    names = [f"{tmp_path}/own.py:{name}" for name in ("near", "size")]
    settings = {"reward_funcs": names, "reward_weights": [1.0, 2.0]}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    score, name = score_of(tmp_path, None, None, "POSITIVE")
    assert (name, score(["a"], ["bc"], [[0]])) == ("size", [4.0])
    assert "need a column" in caplog.text


def test_grpo_refuses_a_reward_for_each_token():
    trainer = tiny_grpo.build(
        rewards=lambda completion_ids: [[0.0] * len(ids) for ids in completion_ids]
    )
    with pytest.raises(RecipeError, match="one advantage: return their sum, or train with PPO"):
        trainer.train()


def test_by_default_all_but_a_lone_sentiment_logit_is_normalized():
    logit, probability = SentimentReward(), SentimentReward(score="probability")
    mine = tiny_grpo.variety
    for functions, norm in (([logit], False), ([probability], True), ([mine], True)):
        assert Rewards(functions).wants_reference_norm("auto") == norm
    assert Rewards([logit, mine]).wants_reference_norm("auto")
    assert not Rewards([mine]).wants_reference_norm("none")
    assert Rewards([logit]).wants_reference_norm("reference")


def test_tokens_are_weighed_and_one_too_few_is_told():
    ids = [[5, 6], [7]]

    def mine(completion_ids, **_):
        return [[1.0] * len(row) for row in completion_ids]

    rewards = Rewards([mine, lambda completions, **_: [3.0, 4.0]], [2.0, 1.0])
    totals, raw = rewards(["a", "b"], ["c d", "e"], ids)
    assert totals == [7.0, 6.0]
    raw = pickle.loads(pickle.dumps(raw))  # as processes send it to one another
    assert rewards.by_token(raw) == [[2.0, 2.0], [2.0]]
    with pytest.raises(RecipeError, match=r"\[1.0, 1.0\] .list. for sample 1.* of 1 tokens"):
        Rewards(lambda completions, **_: [1.0, [1.0, 1.0]])(["a", "b"], ["c d", "e"], ids)

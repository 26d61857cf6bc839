"""TextGenerationEnv: Gymnasium's own checks, and the reward that the trainers would give."""

import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import LengthPenalty, Rewards, UppercaseReward

gymnasium = pytest.importorskip("gymnasium", reason="the extra gymnasium is not installed")

PROMPTS = ["The acting", "A dull film", "I"]


def label_times_length(completions, label):
    return [value * len(text) for value, text in zip(label, completions, strict=True)]


FUNCTIONS = [UppercaseReward(), LengthPenalty(2), label_times_length]


@pytest.fixture
def own_tokenizer(tiny_gpt2):
    return AutoTokenizer.from_pretrained(tiny_gpt2)


@pytest.fixture
def env(own_tokenizer):
    from trl_recipes.rewards.environment import TextGenerationEnv

    return TextGenerationEnv(
        PROMPTS, own_tokenizer, FUNCTIONS, max_new_tokens=5, columns={"label": [1, 2, 3]}
    )


@pytest.mark.filterwarnings("error", "ignore:.*alternative render modes")  # there is but one
def test_gymnasiums_own_checks_pass(env):
    from gymnasium.utils.env_checker import check_env

    check_env(env)


def play(env, text, end):
    observation, _ = env.reset(options={"prompt": 1})
    ids = env.tokenizer(text)["input_ids"] + [env.tokenizer.eos_token_id] * end
    steps = [env.step(token) for token in ids]
    return observation, ids, steps


@pytest.mark.parametrize(
    ("text", "end"), [("WHY", True), ("", True), (" plot here and so on", False)]
)
def test_the_reward_at_the_end_is_that_of_the_trainers(env, own_tokenizer, text, end):
    ids = own_tokenizer(text)["input_ids"][: env.max_new_tokens]
    text = own_tokenizer.decode(ids)
    first, ids, steps = play(env, text, end)
    (expected,), raw = Rewards(FUNCTIONS)([PROMPTS[1]], [text], [ids], {"label": [2]})
    assert [step[1] for step in steps] == [0.0] * (len(ids) - 1) + [expected]
    assert [step[2] for step in steps] == [False] * (len(ids) - 1) + [end]
    assert [step[3] for step in steps] == [False] * (len(ids) - 1) + [not end]
    info = steps[-1][4]
    assert (info["prompt"], info["completion"]) == (PROMPTS[1], text)
    assert info["rewards"] == {name: values[0] for name, values in raw.items()}
    prompt_ids = own_tokenizer(PROMPTS[1])["input_ids"]
    assert first["length"] == len(prompt_ids)
    last = steps[-1][0]
    assert last["input_ids"][: last["length"]].tolist() == [*prompt_ids, *ids]
    assert set(last["input_ids"][last["length"] :]) <= {env.pad_token_id}


def test_a_seed_gives_the_same_prompts_all_of_them_come_and_the_text_so_far_is_seen(env):
    def rows(seed):
        return [env.reset(seed=seed if i == 0 else None)[1]["row"] for i in range(20)]

    assert rows(3) == rows(3)
    assert set(rows(3)) == {0, 1, 2}
    env.reset(options={"prompt": 0})
    env.step(env.tokenizer(" was")["input_ids"][0])
    assert env.render().startswith("The acting")
    assert len(env.render()) > len("The acting")


def test_steps_that_make_no_sense_are_refused(env):
    with pytest.raises(RecipeError, match="Call `reset` first"):
        env.step(0)
    env.reset()
    for action in (-1, env.action_space.n, 1.5, np.array([1])):
        with pytest.raises(RecipeError, match="is no token"):
            env.step(action)
    env.step(env.tokenizer.eos_token_id)
    with pytest.raises(RecipeError, match="The episode is over"):
        env.step(0)


def test_wrong_prompts_are_refused(own_tokenizer):
    from trl_recipes.rewards.environment import TextGenerationEnv

    for prompts in [], ["a", ""]:
        with pytest.raises(RecipeError, match="`prompts` is empty, or one of them"):
            TextGenerationEnv(prompts, own_tokenizer, UppercaseReward())


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "trl_recipes.rewards.environment", raising=False)
    with pytest.raises(RecipeError, match=r"pip install 'trl_recipes\[gymnasium\]'"):
        import trl_recipes.rewards.environment  # noqa: F401

"""TextGenerationEnv: Gymnasium's own checks, and the reward that the trainers would give."""

import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import LengthPenalty, Rewards, UppercaseReward

pytest.importorskip("gymnasium", reason="the extra gymnasium is not installed")

PROMPTS = ["The acting", "A dull film", "I"]


def label_times_length(completions, label):
    return [value * len(text) for value, text in zip(label, completions, strict=True)]


FUNCTIONS = [UppercaseReward(), LengthPenalty(2), label_times_length]


def make(folder, prompts):
    from trl_recipes.rewards.environment import TextGenerationEnv

    settings = {"max_new_tokens": 5, "columns": {"label": [1, 2, 3]}}
    return TextGenerationEnv(prompts, AutoTokenizer.from_pretrained(folder), FUNCTIONS, **settings)


@pytest.fixture
def env(tiny_gpt2):
    return make(tiny_gpt2, PROMPTS)


@pytest.mark.filterwarnings("error", "ignore:.*alternative render modes")  # there is but one
def test_gymnasiums_own_checks_pass(env):
    from gymnasium.utils.env_checker import check_env

    check_env(env)


@pytest.mark.parametrize(
    ("text", "end"), [("WHY", True), ("", True), (" plot here and so on", False)]
)
def test_the_reward_at_the_end_is_that_of_the_trainers(env, text, end):
    ids = env.tokenizer(text)["input_ids"][: env.max_new_tokens]
    text = env.tokenizer.decode(ids)
    ids += [env.tokenizer.eos_token_id] * end
    first, _ = env.reset(options={"prompt": 2})
    (expected,), raw = Rewards(FUNCTIONS)([PROMPTS[2]], [text], [ids], {"label": [3]})
    *before, (last, *end_of_it, info) = map(env.step, ids)
    assert [step[1:4] for step in before] == [(0.0, False, False)] * (len(ids) - 1)
    assert end_of_it == [expected, end, not end]
    rewards = {name: values[0] for name, values in raw.items()}
    told = {"prompt": PROMPTS[2], "completion": text, "rewards": rewards}
    assert {name: info[name] for name in told} == told
    prompt_ids = env.tokenizer(PROMPTS[2])["input_ids"]
    assert first["length"] == len(prompt_ids)
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


def test_what_makes_no_sense_is_refused(env, tiny_gpt2):
    with pytest.raises(RecipeError, match="Call `reset` first"):
        env.step(0)
    env.reset()
    for action in (-1, env.action_space.n, 1.5, np.array([1])):
        with pytest.raises(RecipeError, match="is no token"):
            env.step(action)
    env.step(env.tokenizer.eos_token_id)
    with pytest.raises(RecipeError, match="The episode is over"):
        env.step(0)
    with pytest.raises(RecipeError, match="asks for prompt 5; there are 0 to 2"):
        env.reset(options={"prompt": 5})
    for prompts in [], ["a", ""]:
        with pytest.raises(RecipeError, match="`prompts` is empty, or one of them"):
            make(tiny_gpt2, prompts)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "trl_recipes.rewards.environment", raising=False)
    with pytest.raises(RecipeError, match=r"pip install 'trl_recipes\[gymnasium\]'"):
        import trl_recipes.rewards.environment  # noqa: F401

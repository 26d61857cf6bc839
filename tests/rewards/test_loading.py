"""Reward functions by name: the user's own, ours with settings, and every mistake."""

import sys

import pytest
from trl.rewards import think_format_reward

from trl_recipes import PPOConfig
from trl_recipes.arguments import parse_arguments
from trl_recipes.errors import RecipeError
from trl_recipes.rewards import LengthPenalty, Rewards, UppercaseReward, load_reward_funcs
from trl_recipes.run_folder import prepare_run, write_config

FILE = """
from math import sqrt

FACTOR = 3


def short(completions, **kwargs):
    return [-float(len(text)) for text in completions]


def times(factor, offset=0):
    def scaled(completions, **kwargs):
        return [factor * len(text) + offset for text in completions]

    return scaled


def breaks():
    raise KeyError("inside")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_for_a_test.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_rewards_for_a_test", None)


@pytest.mark.parametrize("place", ["my_rewards_for_a_test.py", "my_rewards_for_a_test"])
def test_a_function_of_a_file_or_module_or_one_that_its_settings_make(folder, place):
    made = {f"{place}:times": {"factor": 2, "offset": 1}}
    short, scaled = load_reward_funcs([f"{place}:short", made])
    assert short(completions=["ab", ""]) == [-2.0, -0.0]
    assert short.__name__ == "short"
    assert scaled(completions=["ab", ""]) == [5, 1]


def test_a_file_runs_once_and_only_when_it_is_named(folder):
    (folder / "counts.py").write_text(
        "import pathlib\npathlib.Path('ran').open('a').write('x')\ndef f(**_): ...\n"
    )
    load_reward_funcs(["UppercaseReward"])
    assert not (folder / "ran").exists()
    load_reward_funcs(["counts.py:f", "counts.py:f"])
    assert (folder / "ran").read_text() == "x"
    (folder / "counts.py").write_text("def f(completions, **_): return [2.0 for _ in completions]")
    assert Rewards("counts.py:f")(["a"], ["b"], [[1]])[0] == [2.0]  # as it is now
    assert Rewards(["RepetitionPenalty"], metrics={"RegexReward": {"pattern": "a"}}).weights == [
        -1.0
    ]
    for name, value in (("a", 1), ("b", 2)):  # two files of one name do not mix
        (folder / name).mkdir()
        (folder / name / "same.py").write_text(f"def f(**_): return {value}\n")
    assert [f() for f in load_reward_funcs(["a/same.py:f", "b/same.py:f"])] == [1, 2]


def test_functions_of_this_package_and_of_trl_with_and_without_settings():
    specs = ["UppercaseReward", {"LengthPenalty": {"max_length": 3}}]
    specs += [{"RegexReward": {"pattern": "a"}}, "trl.rewards:think_format_reward"]
    specs += [{"trl.rewards:get_repetition_penalty_reward": {"ngram_size": 2}}]
    upper, length, regex, loaded, penalty = load_reward_funcs(specs)
    assert (type(length), length.max_length) == (LengthPenalty, 3)
    assert isinstance(upper, UppercaseReward)
    assert regex(completions=["a", "b"]) == [1.0, 0.0]
    assert loaded is think_format_reward
    assert penalty(completion_ids=[[5, 5, 5, 5, 5]]) == [-0.75]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("my_rewards_for_a_test.py:shrt", r"no function `shrt`. .*It has: short, times, breaks\."),
        ("my_rewards_for_a_test:shrt", r"no function `shrt`. .*It has: short, times, breaks\."),
        ("my_rewards_for_a_test.py", r"Write `my_.*py:NAME`. It has: short, times, breaks\."),
        ("my_rewards_for_a_test.py:FACTOR", "no function `FACTOR`. Write"),
        ("nowhere.py:f", "there is no file `nowhere.py`"),
        ("nowhere.at_all:f", "there is no module `nowhere.at_all`"),
        ("UpercaseReward", "neither a kind of reward .*UppercaseReward"),
        ({"Uppercase": {}}, "`Uppercase` is neither a kind of reward .KeywordReward"),
        ({"LengthPenalty": {"length": 3}}, "does not take the settings .* It takes: max_length"),
        ({"LengthPenalty": 3}, "is no reward function. Write its name"),
        (3, "3 is no reward function"),
    ],
)
def test_mistakes_say_what_there_is(folder, spec, told):
    with pytest.raises(RecipeError, match=f"--reward_funcs: .*{told}"):
        load_reward_funcs([spec])


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"my_rewards_for_a_test.py:breaks": {}}, KeyError),
        ("needs.py:f", ModuleNotFoundError),
        ("needs:f", ModuleNotFoundError),
    ],
)
def test_what_goes_wrong_inside_the_users_code_is_raised_as_it_is(folder, spec, error):
    (folder / "needs.py").write_text("import not_installed_at_all\n")
    with pytest.raises(error, match=r"inside|not_installed_at_all"):
        load_reward_funcs([spec])


def test_a_configuration_names_them_with_settings_and_runs_again_from_what_it_wrote(tmp_path):
    file, run = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text(
        "reward_funcs:\n  - UppercaseReward\n  - LengthPenalty: {max_length: 3}\n"
        "metrics: [RegexReward: {pattern: a}]\n"
    )
    argv = ["--config", str(file), "--reward_weights", "1", "-5e-1"]
    (config,) = parse_arguments(PPOConfig, argv=argv)
    write_config(prepare_run(run), config)
    (again,) = parse_arguments(PPOConfig, argv=["--config", str(run / "config.yaml")])
    assert config.reward_funcs == again.reward_funcs
    assert config.reward_funcs == ["UppercaseReward", {"LengthPenalty": {"max_length": 3}}]
    assert config.reward_weights == again.reward_weights == [1.0, -0.5]
    assert config.metrics == again.metrics == [{"RegexReward": {"pattern": "a"}}]
    file.write_text("reward_weights: [{a: 1}]\n")  # other lists still refuse settings
    with pytest.raises(RecipeError, match="`reward_weights`: invalid float value"):
        parse_arguments(PPOConfig, argv=["--config", str(file)])

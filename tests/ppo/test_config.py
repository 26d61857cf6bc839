"""PPOConfig: one meaning for each setting, whichever of its names was written."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import yaml

from trl_recipes import PPOConfig, RecipeError
from trl_recipes.arguments import parse_arguments
from trl_recipes.grpo import RLOOConfig
from trl_recipes.ppo.config import NOT_HONORED, REFUSED

SIZES = ("batch_size", "mini_batch_size", "gradient_accumulation_steps", "num_mini_batches")
DEFAULTS = Path(__file__).parents[2] / "recipes" / "configs"
PPO_DEFAULTS = ["ppo", "ppo_custom_reward", "ppo_sentiment", "ppo_sentiment_imdb"]
PPO_DEFAULTS += ["ppo_sentiment_smollm2", "ppo_seq2seq", "rlhf"]


@pytest.mark.parametrize("name", PPO_DEFAULTS)
def test_a_default_clips_or_says_why_not(name):
    """With one update a batch every ratio is 1 when its gradient is taken: clipping never acts."""
    text = (DEFAULTS / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    known = {setting.name for setting in dataclasses.fields(PPOConfig) if setting.init}
    config = PPOConfig(**{key: value for key, value in values.items() if key in known})
    assert config.ppo_epochs * config.num_mini_batches > 1 or "nothing is clipped" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (128, 128, 1, 1)),
        ({"batch_size": 64}, (64, 64, 1, 1)),
        ({"batch_size": 64, "mini_batch_size": 16}, (64, 16, 1, 4)),
        (
            {"batch_size": 64, "mini_batch_size": 16, "gradient_accumulation_steps": 2},
            (64, 16, 2, 2),
        ),
        ({"mini_batch_size": 16, "gradient_accumulation_steps": 8}, (128, 16, 8, 1)),
        ({"forward_batch_size": 32}, (128, 32, 1, 4)),
        ({"batch_size": 64, "gradient_accumulation_steps": 4}, (64, 16, 4, 1)),
        ({"batch_size": 64, "num_mini_batches": 4}, (64, 16, 1, 4)),
        (  # as TRL 1.12 counts: 8 passes of 4 make a batch of 32, in 2 optimizer steps
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
            | {"num_mini_batches": 2},
            (32, 4, 4, 2),
        ),
        ({"per_device_train_batch_size": 8}, (8, 8, 1, 1)),
    ],
)
def test_batch_sizes_follow_from_what_was_given(given, expected):
    config = PPOConfig(**given)
    assert tuple(getattr(config, name) for name in SIZES) == expected


def test_a_configuration_can_be_copied_and_takes_the_classic_name_of_its_cache():
    config = PPOConfig(batch_size=64, mini_batch_size=16, ppo_epochs=2)
    copy = dataclasses.replace(config, learning_rate=1e-4)
    assert PPOConfig(optimize_cuda_cache=True).optimize_device_cache is True
    values = (copy.batch_size, copy.num_mini_batches, copy.ppo_epochs, copy.learning_rate)
    assert values == (64, 4, 2, 1e-4)


@pytest.mark.parametrize(
    ("classic", "modern", "value", "other"),
    [
        ("ppo_epochs", "num_ppo_epochs", 3, 2),
        ("init_kl_coef", "kl_coef", 0.1, 0.3),
        ("mini_batch_size", "per_device_train_batch_size", 32, 64),
        ("log_with", "report_to", "tensorboard", ["wandb"]),
        ("gradient_checkpointing", "activation_checkpointing", True, False),
    ],
)
def test_two_names_of_one_thing_must_agree(classic, modern, value, other):
    config = PPOConfig(**{classic: value})
    assert getattr(config, modern) in (value, [value])
    assert getattr(PPOConfig(**{classic: value, modern: value}), classic) in (value, [value])
    with pytest.raises(RecipeError, match=f"(?=.*`{classic}`)(?=.*`{modern}`).*differ"):
        PPOConfig(**{classic: value, modern: other})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 10, "mini_batch_size": 4}, r"`batch_size` \(10\).*8 or 12.*1, 2, 5, 10"),
        ({"batch_size": 0}, "`batch_size` is 0. It must be 1 or more"),
        ({"target": 0}, "`target` is 0. It must be greater than 0"),
        ({"horizon": -1.0}, "`horizon` is -1.0. It must be greater than 0"),
        ({"temperature": 0.0}, "`temperature` is 0.0. It must be greater than 0"),
        ({"response_length": 0}, "`response_length` is 0. It must be 1 or more"),
        ({"max_steps": 0}, "`max_steps` is 0"),
        ({"kl_penalty": "k2"}, "Unknown `kl_penalty` 'k2'. Choose one of: kl, abs, mse"),
        ({"trainable": "head"}, "Unknown `trainable` 'head'"),
        ({"vllm_server_port": 8001}, "`vllm_server_port` is vLLM's. Set `use_vllm`"),
        ({"use_vllm": True, "vllm_mode": "both"}, "Unknown `vllm_mode` 'both'. Choose one of: co"),
        ({"min_response_length": 20}, "`min_response_length` .20. must lie between 1 and"),
        ({"save_strategy": "best"}, "`save_strategy` 'best' goes by an evaluation, which PPO"),
        ({"fp16": True}, "`fp16` is refused: the probability ratio needs more"),
        ({"batch_size": 64, "mini_batch_size": 16, "num_mini_batches": 3}, "makes 4"),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
            | {"num_mini_batches": 2},
            r"`gradient_accumulation_steps` \(3\) must be a multiple of `num_mini_batches` \(2\)",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_do(given, message):
    with pytest.raises(RecipeError, match=message):
        PPOConfig(**given)


@pytest.mark.parametrize("name", NOT_HONORED)
def test_what_ppo_does_not_honor_of_transformers_is_refused(name):
    with pytest.raises(RecipeError, match=f"`{name}` .7. is not for PPO: .*. Leave it out"):
        PPOConfig(**{name: 7})


def test_options_without_meaning_warn_once_and_say_why(monkeypatch):
    monkeypatch.setattr("trl_recipes.ppo.config._told", set())
    with pytest.warns(UserWarning, match="`steps` no longer means anything: TRL never read it"):
        PPOConfig(steps=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig(steps=100)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(PPOConfig, name) for name in REFUSED] + [(RLOOConfig, name) for name in RLOOConfig.refused],
)
def test_settings_of_trl_that_have_no_meaning_here_are_refused_by_both_ways(kind, name):
    with pytest.raises(RecipeError, match=f"`{name}` is TRL's, and no setting here: .*\\.$"):
        kind(**{name: 1})
    with pytest.raises(RecipeError, match=f"`--{name}`. It is TRL's, and no setting here: .*\\.$"):
        parse_arguments(kind, argv=[f"--{name}", "1"])


def test_only_a_run_with_an_output_dir_saves(tmp_path):
    chosen = PPOConfig(output_dir=str(tmp_path))
    config = dataclasses.replace(PPOConfig())
    assert (config.should_save, chosen.should_save) == (False, True)
    config.save_to(str(tmp_path / "run"))
    chosen.save_to("elsewhere")
    assert (config.should_save, config.output_dir) == (True, str(tmp_path / "run"))
    assert chosen.output_dir == str(tmp_path)

"""Numbers out of range are refused before anything computes with them."""

import dataclasses

import pytest

from trl_recipes import GRPOConfig, PPOConfig, RecipeError
from trl_recipes.arguments import parse_arguments
from trl_recipes.settings import RANGES, check_range, check_trackers
from trl_recipes.training.fit import PretrainConfig
from trl_recipes.training.language_model import BaselineConfig, LanguageModelSizes
from trl_recipes.training.reward_model import ClassifierSizes


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("learning_rate", -1e-9, "0 or more"),
        ("learning_rate", float("nan"), "0 or more"),
        ("weight_decay", float("inf"), "0 or more"),
        ("seed", 2**32, "from 0 to"),
        ("gamma", 1.01, "from 0 to 1"),
        ("vocab_size", 256, "257 or more"),
        ("dropout", 1.0, "from 0 to 1"),
        ("missing_eos_penalty", float("nan"), "0 or more"),
        ("target_kl", -1, "greater than 0"),
    ],
)
def test_a_number_out_of_range_is_refused(name, value, allowed):
    with pytest.raises(RecipeError, match=f"`{name}` is .*{allowed}"):
        check_range(name, value)


def test_what_lies_within_or_is_not_given_passes_and_so_does_every_default():
    for name, value in (("learning_rate", 0), ("gamma", 1), ("seed", None), ("other", -5)):
        check_range(name, value)
    sizes = (LanguageModelSizes, ClassifierSizes, BaselineConfig)
    for settings in (PPOConfig, PretrainConfig, *sizes):
        fields = [field for field in dataclasses.fields(settings) if field.name in RANGES]
        assert fields
        for field in fields:
            check_range(field.name, field.default)


@pytest.mark.parametrize(
    ("settings", "flag", "value"),
    [
        (LanguageModelSizes, "n_head", "0"),  # its __post_init__ would divide by it
        (ClassifierSizes, "num_heads", "0"),
        (BaselineConfig, "n_head", "0"),
        (PretrainConfig, "per_device_train_batch_size", "0"),
        (PPOConfig, "log_samples", "-1"),
    ],
)
def test_a_flag_is_held_to_its_range_before_its_dataclass_computes(settings, flag, value):
    with pytest.raises(RecipeError, match=f"`{flag}` is {value}. It must be"):
        parse_arguments(settings, argv=[f"--{flag}", value])


def test_so_are_a_key_of_a_yaml_file_and_a_config_made_in_python(tmp_path):
    (tmp_path / "a.yaml").write_text("n_head: 0\n")
    with pytest.raises(RecipeError, match="`n_head` is 0"):
        parse_arguments(LanguageModelSizes, argv=["--config", str(tmp_path / "a.yaml")])
    with pytest.raises(RecipeError, match="`cliprange` is -1"):
        PPOConfig(cliprange=-1)
    with pytest.raises(RecipeError, match=r"`response_length` is 6\.0\. .* a whole number"):
        PPOConfig(response_length=6.0)
    with pytest.raises(RecipeError, match=r"`learning_rate` is .1e-4.\. It"):
        GRPOConfig(learning_rate="1e-4")


@pytest.mark.parametrize("report_to", ["nope", ["none", "nope"]])
def test_a_tracker_that_is_not_there_is_refused(report_to):
    with pytest.raises(RecipeError, match="tracker 'nope' is unknown or not installed"):
        check_trackers(report_to)
    for none in ("none", "all", ["none"], [], None):
        check_trackers(none)

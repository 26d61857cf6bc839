"""PPOConfig as scripts of TRL 0.11 write it, parse it, inherit from it and read it back."""

import copy
import dataclasses
import pickle
from dataclasses import dataclass

import pytest
from transformers import HfArgumentParser
from trl import TrlParser

from trl_recipes import GRPOConfig, PPOConfig, RecipeError, RLOOConfig
from trl_recipes.arguments import parse_arguments


@dataclass
class ScriptArguments:
    trust_remote_code: bool = False
    use_peft: bool = False
    lora_r: int = 16


@dataclass
class Mine(PPOConfig):
    weight: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        self.doubled = 2 * self.weight


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_the_parsers_of_transformers_and_trl_take_it_beside_a_scripts_own_arguments(parser):
    flags = "--trust_remote_code true --model_name m --steps 9 --batch_size 4 --log_with clearml"
    script, config = parser((ScriptArguments, PPOConfig)).parse_args_into_dataclasses(
        [*flags.split(), "--tracker_kwargs", '{"a": 1}'], look_for_args_file=False
    )
    assert script.trust_remote_code
    assert (config.model_name, config.steps, config.total_ppo_epochs) == ("m", 9, 3)
    assert (config.report_to, config.tracker_kwargs) == (["clearml"], {"a": 1})
    for kind in (GRPOConfig, RLOOConfig):
        assert parser(kind).parse_args_into_dataclasses([], look_for_args_file=False)


def test_what_a_script_wrote_can_be_read_back_and_the_rest_is_as_trl_had_it():
    config = PPOConfig(query_dataset="q", project_kwargs={"logging_dir": "x"}, dataset_num_proc=2)
    assert (config.query_dataset, config.project_kwargs) == ("q", {"logging_dir": "x"})
    assert (config.dataset_num_proc, config.model_name, config.tracker_kwargs) == (2, "gpt2", {})
    assert config.reward_model.split(":") == ["sentiment-analysis", "lvwerra/distilbert-imdb"]
    assert (bool(config.exp_name), config.task_name) == (True, None)
    assert (config.global_backward_batch_size, config.total_ppo_epochs) == (128, 157)


@pytest.mark.parametrize("copied", [copy.deepcopy, dataclasses.replace, lambda mine: mine])
def test_a_dataclass_that_inherits_it_takes_the_classic_names(copied):
    mine = copied(Mine(weight=1.0, model_name="m", steps=9, batch_size=4, optimize_cuda_cache=True))
    assert (mine.weight, mine.doubled, mine.model_name, mine.total_ppo_epochs) == (1, 2, "m", 3)
    assert mine.optimize_device_cache
    assert pickle.loads(pickle.dumps(mine)).steps == 9
    with pytest.raises(RecipeError, match="`world_size` is TRL's"):
        Mine(world_size=2)


def test_a_recipe_has_its_own_name_for_the_reward_model_and_no_flag_that_does_nothing():
    @dataclass
    class Recipe:
        reward_model: str | None = None

    recipe, config = parse_arguments(
        Recipe, PPOConfig, argv=["--reward_model", "r", "--trust_remote_code"]
    )
    assert (recipe.reward_model, config.trust_remote_code) == ("r", True)
    for flag, hint in (("--steps", "max_steps"), ("--model_name", "--model_name_or_path")):
        with pytest.raises(RecipeError, match=f"Unknown flag `{flag}`.*{hint}"):
            parse_arguments(Recipe, PPOConfig, argv=[flag, "1"])

"""An adapter's target modules are held to those of the model."""

import pytest
from trl import ModelConfig, get_peft_config

from trl_recipes import PPOConfig, PPOTrainer, RecipeError


def lora(*names):
    return get_peft_config(ModelConfig(use_peft=True, lora_target_modules=list(names)))


def test_one_module_by_name_is_found(tiny_gpt2):
    """TRL turns a list of one name into a text, which peft reads as a pattern of the whole path."""
    args = PPOConfig(batch_size=2)
    trainer = PPOTrainer(args=args, model=str(tiny_gpt2), peft_config=lora("c_attn"))
    trained = [n for n, p in trainer.model.named_parameters() if p.requires_grad and "lora" in n]
    assert trained
    assert all("c_attn" in name for name in trained)


@pytest.mark.parametrize("names", [("nope",), ("nope", "neither")])
def test_modules_that_are_not_there_are_named_with_those_that_are(tiny_gpt2, names):
    with pytest.raises(RecipeError, match=r"no module named .*nope\. Choose among: c_attn, c_fc"):
        PPOTrainer(args=PPOConfig(batch_size=2), model=str(tiny_gpt2), peft_config=lora(*names))

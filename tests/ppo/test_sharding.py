"""Ways of launching that cannot be trained are refused, before a model is loaded."""

import pytest

from trl_recipes import PPOConfig, PPOTrainer, RecipeError

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "does not train under DeepSpeed.*fsdp2.yaml"),
        (FSDP | {"FSDP_VERSION": "1"}, "FSDP version 2, not 1.*fsdp2.yaml"),
        (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "would leave reward models.*fsdp2"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(environment, message, monkeypatch):
    config = PPOConfig(report_to="none")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        PPOTrainer(config, "no/such-model")

"""Models with a value head and the reference beside them, as TRL's classes of these names."""

import pytest
import torch
from architectures import gpt2, ppo_trainer
from tiny_grpo import build as build_grpo
from tiny_grpo import variety

from trl_recipes import AutoModelForCausalLMWithValueHead, RecipeError, create_reference_model


def with_value_head(**given):
    return AutoModelForCausalLMWithValueHead.from_pretrained(gpt2(), **given)


def test_the_arguments_of_trls_value_head_are_honored():
    model = with_value_head(
        v_head_init_strategy="normal", v_head_initializer_range=0.5, summary_dropout_prob=0.3
    )
    assert model.v_head.dropout.p == 0.3
    assert 0.3 < model.v_head.summary.weight.std() < 0.7
    assert not model.v_head.summary.bias.any()
    assert with_value_head().v_head.dropout.p == 0.1
    assert not with_value_head().v_head.summary.weight.any()
    assert with_value_head(v_head_init_strategy=None).v_head.summary.weight.any()  # torch's own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"v_head_init_strategy": "zeros"}, "`v_head_init_strategy` is 'zeros': use 'normal'"),
        ({"v_head_initializer_range": 0.1}, "is None: use 'normal', which alone"),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        with_value_head(**given)


def test_forward_gives_logits_loss_values_and_on_request_the_cache():
    model, ids = with_value_head().eval(), torch.tensor([[5, 6, 7]])
    logits, loss, values = model(ids, labels=ids)
    assert (logits.shape[:2], values.shape, loss.shape) == ((1, 3), (1, 3), ())
    *_, cache = model(ids, use_cache=True, return_past_key_values=True)
    assert cache.get_seq_length() == 3


def test_a_fresh_value_head_starts_from_zero_and_says_so(tmp_path, caplog):
    gpt2().save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="trl_recipes"):
        loaded = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    assert not loaded.v_head.summary.weight.any()
    assert "has no value head" in caplog.text


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_kl_of_a_policy_from_grpo_or_rloo_rises_from_0(kind):
    """TRL >= 1.15 patches `forward` of what it trains; a copy of the patch runs the original."""
    grpo = build_grpo(kind, max_steps=1)
    grpo.train()
    model = grpo.accelerator.unwrap_model(grpo.model)
    settings = {"batch_size": 8, "max_steps": 3, "learning_rate": 1e-2}
    trainer = ppo_trainer(model, variety, [[5, 6], [7]] * 4, **settings)
    assert "forward" not in vars(trainer.ref_model)
    trainer.train()
    kl = [row["objective/kl"] for row in trainer.all_stats]
    assert kl[0] == pytest.approx(0, abs=1e-5)
    assert max(map(abs, kl[1:])) > 0.01


def test_layers_that_are_shared_are_frozen_in_both():
    model = gpt2()
    reference = create_reference_model(model, num_shared_layers=1)
    shared = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert any(".h.0." in name for name in shared)
    assert not any(".h.1." in name for name in shared)
    for name in shared:
        assert model.get_parameter(name).data_ptr() == reference.get_parameter(name).data_ptr()
    with pytest.raises(RecipeError, match="Give `pattern`"):
        create_reference_model(model, num_shared_layers=1, pattern="nowhere.{layer}")
    with pytest.raises(RecipeError, match="is 20, and the layer behind these was not"):
        create_reference_model(model, num_shared_layers=20)

"""PPOTrainer: right where padding, batching, dropout, architecture and adapters could spoil it."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, OTHERS, VOCAB, Words, gpt2
from tiny_grpo import same

from trl_recipes import LengthSampler, PPOConfig, PPOTrainer, RecipeError
from trl_recipes.models.forward import unpack


def build(name="gpt2", seed=0, **config):
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]() if isinstance(name, str) else name
    settings = {"batch_size": 4, "learning_rate": 1e-3, "ppo_epochs": 2} | config
    return PPOTrainer(PPOConfig(**settings), model, None, Words())


def rollout_of(trainer, lengths=((3, 5), (1, 2), (6, 4), (2, 7)), seed=1):
    """Queries, responses (with a decoder's start token where there is one) and scores."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, VOCAB, (n,), generator=generator)  # noqa: E731
    queries, responses = zip(*((draw(q), draw(r)) for q, r in lengths), strict=True)
    if trainer.is_encoder_decoder:
        start = trainer.model.config.decoder_start_token_id
        responses = [torch.cat([torch.tensor([start]), r]) for r in responses]
    return list(queries), list(responses), list(torch.randn(len(lengths), generator=generator))


def weights(trainer):
    return {k: v.detach().clone() for k, v in trainer.model.named_parameters()}


@torch.no_grad()
def assert_same_function(first, second, atol=1e-5):
    """Both compute the same logits and values.

    Not the same weights: a key's bias has no influence, its gradient is rounding, and Adam makes a
    full step of that.
    """
    rollout = first._collate(*rollout_of(first, seed=9)[:2])
    for ours, theirs in zip(first.model(*rollout[:4]), second.model(*rollout[:4]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ARCHITECTURES | OTHERS)
def test_each_architecture_generates_and_trains(name):
    torch.manual_seed(0)
    trainer = build((ARCHITECTURES | OTHERS)[name]())
    queries = rollout_of(trainer)[0]
    responses = trainer.generate(queries, LengthSampler(2, 6), return_prompt=False)
    before = weights(trainer)
    stats = trainer.step(queries, responses, [torch.tensor(s) for s in (1.0, -1.0, 0.5, 2.0)])
    assert stats["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert stats["ppo/skipped_minibatches"] == 0
    changed = [k for k, v in weights(trainer).items() if not torch.equal(v, before[k])]
    assert "value_head.summary.weight" in changed
    assert len(changed) > len(before) / 2
    if name == "gpt2":  # tied embeddings stay tied
        assert trainer.policy_model.lm_head.weight is trainer.policy_model.transformer.wte.weight


def test_the_tokenizers_padding_side_changes_nothing():
    losses = set()
    for side in ("left", "right"):
        trainer = build()
        trainer.tokenizer.padding_side = side
        losses.add(trainer.step(*rollout_of(trainer))["ppo/loss/total"])
    assert len(losses) == 1


def test_the_end_token_is_in_the_loss_although_it_pads():
    trainer = build()
    queries, responses, _ = rollout_of(trainer)
    responses = [torch.cat([r, torch.tensor([trainer.tokenizer.pad_token_id])]) for r in responses]
    rollout = trainer._collate(queries, responses)
    assert rollout.loss_mask.sum(1).tolist() == [len(r) for r in responses]
    *_, logits = trainer.model(*rollout[:4], with_logits=True)
    logprobs = logits.log_softmax(1).gather(1, torch.cat(responses)[:, None])[:, 0]
    logprobs = unpack(logprobs, rollout.response_mask) * rollout.loss_mask
    (gradient,) = torch.autograd.grad(logprobs.sum(), logits)
    last = np.cumsum([len(r) for r in responses]) - 1
    assert all(gradient[row].abs().sum() > 0.1 for row in last)


@pytest.mark.parametrize(("mini", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_any_split_and_order_of_the_rows_gives_the_same_update(mini, accumulation):
    lengths = ((3, 9), (1, 2), (6, 4), (2, 7), (4, 1), (2, 2), (1, 8), (5, 3))
    order = [2, 0, 7, 3, 1, 6, 5, 4]
    whole = build(batch_size=8)
    pieces = build(batch_size=8, mini_batch_size=mini, gradient_accumulation_steps=accumulation)
    for _ in range(2):  # the first KL is 0
        first = whole.step(*rollout_of(whole, lengths))
        second = pieces.step(*([rows[i] for i in order] for rows in rollout_of(pieces, lengths)))
    for key in ("ppo/loss/total", "ppo/policy/clipfrac", "ppo/val/error", "ppo/policy/entropy"):
        assert first[key] == pytest.approx(second[key], abs=1e-5), key
    kls = first["objective/kl_dist"][order], second["objective/kl_dist"]
    np.testing.assert_allclose(*kls, atol=1e-5)
    assert np.std(kls[0]) > 1e-3
    assert_same_function(whole, pieces)


def test_optimizer_steps_an_epoch_follow_from_the_sizes():
    trainer = build(batch_size=4, mini_batch_size=1, gradient_accumulation_steps=2, ppo_epochs=3)
    taken, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda *args: taken.append(1) or step(*args)
    trainer.step(*rollout_of(trainer))
    assert len(taken) == 3 * 4 // 2


def test_activation_checkpointing_changes_no_figure():
    plain, saving = build(), build(activation_checkpointing=True)
    assert saving.policy_model.transformer.gradient_checkpointing
    first, second = plain.step(*rollout_of(plain)), saving.step(*rollout_of(saving))
    assert first["ppo/loss/total"] == pytest.approx(second["ppo/loss/total"], abs=1e-6)
    assert_same_function(plain, saving)


def test_dropout_that_comes_back_stops_the_run_before_the_first_update():
    trainer = build()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    before = weights(trainer)
    trainer.ref_model.load_state_dict(trainer.policy_model.state_dict())
    with pytest.raises(RecipeError, match="Dropout is on in"):
        trainer.step(*rollout_of(trainer))
    assert same(weights(trainer), before)


def test_a_half_precision_model_is_trained_in_float32_beside_a_reference_as_it_came():
    assert {p.dtype for p in build(gpt2().half()).model.parameters()} == {torch.float32}
    trainer = build(gpt2().to(torch.bfloat16))
    stats = trainer.step(*rollout_of(trainer))  # whose first KL is rounding, and no mistake
    assert np.isfinite(stats["ppo/loss/total"])
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {p.dtype for p in trainer.ref_model.parameters()} == {torch.bfloat16}


def test_bf16_autocast_trains_float32_weights():
    trainer = build(bf16=True)
    stats = trainer.step(*rollout_of(trainer))
    full = build().step(*rollout_of(build()))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert stats["ppo/loss/total"] == pytest.approx(full["ppo/loss/total"], abs=0.1)
    assert stats["ppo/loss/total"] != full["ppo/loss/total"]


@pytest.mark.parametrize(("trainable", "part"), [("attention", ".attn."), ("lora", "lora_")])
def test_a_part_alone_is_trained_beside_the_value_head(trainable, part):
    trainer = build(trainable=trainable)
    before = weights(trainer)
    for _ in range(2):
        trainer.step(*rollout_of(trainer))
    changed = {k for k, v in weights(trainer).items() if not torch.equal(v, before[k])}
    assert all(part in key or "value_head" in key for key in changed)
    assert len(changed) > 4
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert (trainer.ref_model is None) == (trainable == "lora")

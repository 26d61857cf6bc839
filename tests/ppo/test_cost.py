"""What a step computes, counted: a regression shows on a slow machine as on a fast one."""

from collections import Counter

import pytest
import torch
from architectures import ARCHITECTURES, UNUSUAL, VOCAB, ppo_trainer

from trl_recipes.models import sampling
from trl_recipes.models.sampling import can_sample

BATCH, QUERY, LONGEST, EPOCHS = 8, 3, 6, 2
SCORES = [torch.tensor(float(i % 3)) for i in range(BATCH)]


def trainer_of(name, **settings):
    torch.manual_seed(0)
    queries = torch.randint(2, VOCAB, (4 * BATCH, QUERY)).tolist()
    chosen = {"batch_size": BATCH, "ppo_epochs": EPOCHS, "response_length": LONGEST}
    chosen |= {"min_response_length": None, "stop_token": None, "max_steps": 2}
    reward = lambda completions, **_: [float(len(text) % 5) for text in completions]  # noqa: E731
    return ppo_trainer((ARCHITECTURES | UNUSUAL)[name](), reward, queries, **chosen | settings)


def counted(trainer):
    """Calls, tokens through the trunk and rows through the head of one step, by model and mode."""
    counts = Counter()

    def watch(model, name):
        def calls(_, args, kwargs):
            mode = "update" if torch.is_grad_enabled() else "no_grad"
            ids = kwargs.get("decoder_input_ids", kwargs.get("input_ids"))
            counts[f"{name} {mode} calls"] += 1
            counts[f"{name} {mode} tokens"] += ids.numel()

        def logits(_, args):
            mode = "update" if torch.is_grad_enabled() else "no_grad"
            counts[f"{name} {mode} logits"] += args[0].shape[:-1].numel()

        model.register_forward_pre_hook(calls, with_kwargs=True)
        # last of the head's hooks, so that it sees what the head computes
        model.get_output_embeddings().register_forward_hook(lambda m, args, _: logits(m, args))

    watch(trainer._policy(), "policy")
    if trainer.ref_model is not None:
        watch(trainer.ref_model, "reference")
    return counts


def one_step(trainer):
    # the first is checked by a pass of its own
    trainer._train_on(*trainer._collect(trainer._next_batch()))
    counts = counted(trainer)
    trainer._train_on(*trainer._collect(trainer._next_batch()))
    return counts


@pytest.mark.parametrize("name", [*ARCHITECTURES, "opt", "bloom", "gemma2"])
def test_a_step_computes_nothing_twice(name):
    trainer = trainer_of(name)
    counts = one_step(trainer)
    # nobody asks what comes after the last token, so it never goes in
    sequence = LONGEST if trainer.is_encoder_decoder else QUERY + LONGEST - 1
    assert counts == {
        # sampling: each token once, each row's last logits alone
        "policy no_grad calls": LONGEST,
        "policy no_grad tokens": BATCH * sequence,
        "policy no_grad logits": BATCH * LONGEST,
        # one pass of the reference, none of the policy
        "reference no_grad calls": 1,
        "reference no_grad tokens": BATCH * sequence,
        "reference no_grad logits": BATCH * LONGEST,
        # one pass an epoch, and logits of response tokens alone
        "policy update calls": EPOCHS,
        "policy update tokens": EPOCHS * BATCH * sequence,
        "policy update logits": EPOCHS * BATCH * LONGEST,
    }


def test_a_model_without_keys_and_values_costs_one_more_pass_and_a_reference_of_its_own_none():
    for counts in (one_step(trainer_of("mamba")), one_step(trainer_of("gpt2", trainable="lora"))):
        assert counts["policy no_grad calls"] == LONGEST + 1
        assert counts["policy update calls"] == EPOCHS
    assert not any(key.startswith("reference") for key in counts)


@pytest.mark.parametrize("cache", ["cache", "past_key_values"])
def test_both_names_of_the_cache_take_the_fast_path(cache, monkeypatch):
    """transformers 5.24 renamed it."""
    monkeypatch.setattr(sampling, "_row_is_as_alone", lambda *_, **__: True)
    model = ARCHITECTURES["gpt2"]()
    model.forward = {
        "cache": lambda input_ids, cache=None: None,
        "past_key_values": lambda input_ids, past_key_values=None: None,
    }[cache]
    assert can_sample(model)


def test_logits_do_not_grow_with_the_prompt():
    found = []
    for length in (2, 12):
        counts = counted(trainer := trainer_of("gpt2"))
        given = [torch.arange(2, 2 + length)] * BATCH, [torch.arange(2, 2 + LONGEST)] * BATCH
        trainer.step(*given, SCORES)
        found.append({key: count for key, count in counts.items() if key.endswith("logits")})
    assert found[0] == found[1]
    assert len(found[0]) == 3  # of the policy before and in the update, and of the reference


@pytest.mark.parametrize("pack", [True, False])
def test_short_responses_do_not_pay_for_long_ones(pack):
    trainer = trainer_of("gpt2", batch_size=16, response_length=40)
    assert trainer._actor_critic().pack
    trainer._actor_critic().pack = pack
    trainer._pass_cost = 20  # what it is for a model of some size
    lengths = torch.linspace(4, 40, 16).round().int().tolist()
    queries = [torch.arange(2, 5)] * 16
    responses = [torch.arange(2, 2 + length) for length in lengths]
    counts = counted(trainer)
    trainer.step(queries, responses, SCORES * 2)
    tokens = sum(lengths) + 2 * 16
    assert tokens <= counts["policy update tokens"] / EPOCHS <= 1.25 * tokens  # padded whole: 1.7
    assert counts["policy update logits"] == EPOCHS * sum(lengths)
    if pack:
        assert counts["policy update calls"] == EPOCHS


@pytest.mark.parametrize(("name", "pack"), [("gpt2", False), ("gpt2", True), ("t5", False)])
def test_splitting_and_sharing_lines_make_the_update_of_one_padded_pass(name, pack):
    trainers = [trainer_of(name, response_length=12, learning_rate=1e-3) for _ in range(2)]
    trainers[0]._pass_cost, trainers[1]._pass_cost = 0, 10_000
    trainers[0]._actor_critic().pack = pack
    trainers[1]._actor_critic().pack = False
    lengths = (1, 12, 5, 2, 9, 9, 3, 1)
    queries = [torch.arange(2, 4 + row % 3) for row in range(BATCH)]
    responses = [torch.arange(2, 2 + length) for length in lengths]
    if trainers[0].is_encoder_decoder:
        responses = [torch.cat([torch.zeros(1, dtype=torch.long), row]) for row in responses]
    counts = [counted(trainer) for trainer in trainers]
    split, whole = (trainer.step(queries, responses, SCORES) for trainer in trainers)
    if pack:
        assert counts[0]["policy update tokens"] < counts[1]["policy update tokens"]
    else:
        assert counts[0]["policy update calls"] > counts[1]["policy update calls"] == EPOCHS
    for key in ("ppo/loss/total", "objective/kl", "ppo/val/error", "ppo/policy/entropy"):
        assert split[key] == pytest.approx(whole[key], abs=1e-5), key

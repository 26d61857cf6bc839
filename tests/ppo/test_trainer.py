"""PPOTrainer: right where padding, batching, dropout, architecture and adapters could spoil it."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, OTHERS, VOCAB, Words, gpt2
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    RecipeError,
    create_reference_model,
)
from trl_recipes.models.packing import unpack
from trl_recipes.ppo.rollout import collate


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


# Every architecture, one code path


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


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_row_alone_has_the_figures_it_has_in_a_batch(name):
    trainer = build(name)
    queries, responses, _ = rollout_of(trainer)
    trainer.value_head_model.v_head.summary.weight.data.normal_()

    def figures(rows):
        rollout = trainer._collate([queries[i] for i in rows], [responses[i] for i in rows])
        logprobs, values, ref_logprobs, _ = trainer._evaluate(rollout)
        return logprobs, values, ref_logprobs, rollout.response_mask

    together = figures(range(4))
    for row in range(4):
        for all_rows, own in zip(together[:3], figures([row])[:3], strict=True):
            length = own.shape[1]
            torch.testing.assert_close(all_rows[row : row + 1, :length], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_changes_nothing(side):
    figures = []
    for padding_side in ("left", side):
        trainer = build()
        trainer.tokenizer.padding_side = padding_side
        figures.append(trainer.step(*rollout_of(trainer))["ppo/loss/total"])
    assert figures[0] == figures[1]


def test_the_order_of_rows_changes_nothing_but_the_order():
    trainer, other = build(ppo_epochs=1), build(ppo_epochs=1)
    queries, responses, scores = rollout_of(trainer)
    order = [2, 0, 3, 1]
    stats = trainer.step(queries, responses, scores)
    shuffled = other.step(*([rows[i] for i in order] for rows in (queries, responses, scores)))
    np.testing.assert_allclose(
        stats["objective/kl_dist"][order], shuffled["objective/kl_dist"], atol=1e-5
    )
    assert_same_function(trainer, other)


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
def test_any_micro_batch_size_gives_the_same_update(mini, accumulation):
    lengths = ((3, 9), (1, 2), (6, 4), (2, 7), (4, 1), (2, 2), (1, 8), (5, 3))
    whole = build(batch_size=8)
    pieces = build(batch_size=8, mini_batch_size=mini, gradient_accumulation_steps=accumulation)
    first = whole.step(*rollout_of(whole, lengths))
    second = pieces.step(*rollout_of(pieces, lengths))
    for key in ("ppo/loss/total", "ppo/policy/clipfrac", "ppo/val/error", "ppo/policy/entropy"):
        assert first[key] == pytest.approx(second[key], abs=1e-5), key
    assert_same_function(whole, pieces)


def test_optimizer_steps_an_epoch_follow_from_the_sizes():
    trainer = build(batch_size=4, mini_batch_size=1, gradient_accumulation_steps=2, ppo_epochs=3)
    taken = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *args: taken.append(1) or step(*args)
    trainer.step(*rollout_of(trainer))
    assert len(taken) == 3 * 4 // 2


# Dropout, precision, the first batch


@pytest.mark.parametrize("name", ["gpt2", "bart", "t5"])
def test_dropout_is_off_and_train_mode_on(name):
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    trainer = build(model)
    trainer.step(*rollout_of(trainer))  # the first-batch check holds the ratio to 1
    assert trainer.model.training
    rollout = trainer._collate(*rollout_of(trainer)[:2])
    assert torch.equal(trainer.model(*rollout[:4])[0], trainer.model(*rollout[:4])[0])


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
    assert all(torch.equal(v, before[k]) for k, v in weights(trainer).items())


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


# What is trained


def test_attention_only_trains_attention_and_value_head():
    trainer = build(trainable="attention")
    before = weights(trainer)
    trainer.step(*rollout_of(trainer))
    changed = {k for k, v in weights(trainer).items() if not torch.equal(v, before[k])}
    assert changed
    assert all(".attn." in key or "value_head" in key for key in changed)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert optimized == trained


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_lora_takes_the_base_model_as_its_reference(name):
    trainer = build(name, trainable="lora")
    assert trainer.ref_model is None
    first = trainer.step(*rollout_of(trainer))
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    second = trainer.step(*rollout_of(trainer))
    assert abs(second["objective/kl"]) > 1e-4
    state = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    assert all("lora_" in names[id(p)] or "value_head" in names[id(p)] for p in state)


def test_a_policy_that_arrives_with_an_adapter_is_its_own_reference():
    torch.manual_seed(0)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        gpt2(), peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])
    )
    for name, parameter in model.pretrained_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    trainer = build(model)
    queries, responses, scores = rollout_of(trainer)
    assert trainer.step(queries, responses, scores)["objective/kl"] == pytest.approx(0, abs=1e-5)
    with trainer.policy_model.disable_adapter():
        base = trainer._evaluate(trainer._collate(queries, responses))[0]
    adapted = trainer._evaluate(trainer._collate(queries, responses))[2]
    assert (base - adapted).abs().max() > 0.1  # the base model would have been a wrong reference
    assert list(trainer.policy_model.peft_config) == ["default"]


def test_tied_embeddings_stay_tied():
    trainer = build("gpt2")
    trainer.step(*rollout_of(trainer))
    model = trainer.policy_model
    assert model.lm_head.weight is model.transformer.wte.weight


# Saving and loading


@pytest.mark.parametrize("saves", ["trainer", "model"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_policy_and_value_head_come_back_bit_for_bit(name, saves, tmp_path):
    """Whether the trainer saves them, or the user's own model object."""
    trainer = build(name)
    trainer.step(*rollout_of(trainer))
    with_head = trainer.value_head_model
    (trainer if saves == "trainer" else with_head).save_pretrained(str(tmp_path))
    loaded = type(with_head).from_pretrained(str(tmp_path)).state_dict()
    for key, value in with_head.state_dict().items():
        assert torch.equal(value, loaded[key]), key
    assert loaded["v_head.summary.weight"].abs().sum() > 0


def test_the_saved_folder_is_a_plain_model_with_the_logits_of_training(tmp_path, caplog):
    trainer = build()
    trainer.step(*rollout_of(trainer))
    trainer.save_model(str(tmp_path))
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = trainer.policy_model.eval()(ids).logits
        caplog.clear()
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        # training fuses GPT-2's GELU, which rounds otherwise in the last place
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=2e-6)
    state = trainer.policy_model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_merged_adapter_is_a_plain_model_with_the_adapters_logits(tmp_path):
    trainer = build(trainable="lora", merge_adapter=True)
    trainer.step(*rollout_of(trainer))
    trainer.step(*rollout_of(trainer))
    trainer.save_model(str(tmp_path))
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = trainer.policy_model.eval()(ids).logits
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-5)
        with trainer.policy_model.disable_adapter():
            assert (trainer.policy_model(ids).logits - expected).abs().max() > 1e-4


# Generation


def test_generation_ignores_the_models_own_settings_and_restores_them():
    trainer = build(seed=3)
    own = trainer.policy_model.generation_config
    own.top_k, own.repetition_penalty, own.min_new_tokens = 1, 5.0, 10
    query = torch.tensor([5, 6])
    samples = trainer.generate([query] * 400, return_prompt=False, max_new_tokens=1)
    first = torch.cat(samples)
    with torch.no_grad():
        expected = trainer.policy_model(query[None]).logits[0, -1].softmax(-1)
    seen = torch.bincount(first, minlength=VOCAB) / 400
    assert (seen - expected).abs().max() < 4 * 0.5 / 400**0.5
    assert trainer.policy_model.generation_config is own


def test_each_response_ends_at_its_own_length():
    trainer = build(stop_token=None)
    lengths = iter([1, 5, 3, 2])
    queries = rollout_of(trainer)[0]
    responses = trainer.generate(queries, lambda: next(lengths), return_prompt=False)
    assert [len(r) for r in responses] == [1, 5, 3, 2]


def test_one_query_and_the_prompt_as_in_the_classic_loop():
    trainer = build()
    kwargs = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 0}
    query = torch.tensor([4, 5, 6])
    response = trainer.generate(query, max_new_tokens=4, eos_token_id=-1, **kwargs)
    assert response.shape == (1, 7)
    assert response[0, :3].tolist() == [4, 5, 6]
    both = trainer.generate([query, query], max_new_tokens=4, generate_ref_response=True, **kwargs)
    assert [len(x) for x in both] == [2, 2]


def test_batched_greedy_generation_equals_one_by_one():
    trainer = build()
    queries = rollout_of(trainer)[0]
    greedy = {"do_sample": False, "max_new_tokens": 6, "return_prompt": False}
    together = trainer.generate(queries, **greedy)
    alone = [trainer.generate([q], **greedy)[0] for q in queries]
    assert [r.tolist() for r in together] == [r.tolist() for r in alone]


# Skipped updates, early stop, scores


def test_an_update_with_a_wild_ratio_is_skipped_and_counted():
    trainer = build(ratio_threshold=1.0000001, learning_rate=0.05, ppo_epochs=3)
    stats = trainer.step(*rollout_of(trainer))
    assert stats["ppo/skipped_minibatches"] >= 1


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(max_grad_norm):
    trainer = build(ppo_epochs=1, max_grad_norm=max_grad_norm, trl_0_11_quirks=False)
    poisoned = trainer.value_head_model.v_head.summary.weight
    poisoned.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(trainer)
    stats = trainer.step(*rollout_of(trainer))
    assert stats["ppo/skipped_minibatches"] == 1
    assert all(torch.equal(v, before[k]) for k, v in weights(trainer).items())


def test_early_stopping_leaves_after_the_epoch_in_which_the_policy_moved_too_far():
    ratios = build(ppo_epochs=6).step(*rollout_of(build(), seed=4))["ppo/policy/ratio"]
    moved = -np.log(ratios.reshape(6, -1)).mean(1)  # mean log ratio of old to new, each epoch
    limit = moved[2] - 1e-6
    assert (moved[:2] < limit).all()
    stopping = build(ppo_epochs=6, early_stopping=True, target_kl=limit / 1.5)
    stats = stopping.step(*rollout_of(stopping, seed=4))
    assert len(stats["ppo/policy/ratio"]) == 3 * len(ratios) // 6


def test_scores_are_scaled_by_all_scores_seen():
    trainer = build(use_score_scaling=True, use_score_norm=True)
    batches = torch.tensor([[1.0, 2.0, 3.0, 4.0], [8.0, 8.0, 0.0, 2.0]])
    for number, scores in enumerate(batches, start=1):
        shaped = trainer.scaling(scores, torch.ones(4).bool())
        seen = batches[:number].flatten()
        torch.testing.assert_close(shaped, (scores - seen.mean()) / seen.std())


# The modern way in


def test_train_moves_the_policy_towards_the_reward(tokenizer, tiny_gpt2, tmp_path):
    def vowels(prompts, completions, **columns):
        return [10 * sum(c in "aeiou" for c in t) / max(len(t), 1) for t in completions]

    ids = [tokenizer(t)["input_ids"] for t in ("The acting", "A dull", "I liked", "Nothing") * 8]
    config = PPOConfig(
        batch_size=16,
        max_steps=25,
        learning_rate=3e-3,
        response_length=8,
        output_dir=str(tmp_path),
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        model=str(tiny_gpt2),
        reward_funcs=vowels,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=tokenizer,
    )
    trainer.train()
    scores = [row["env/reward_mean"] for row in trainer.all_stats]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 2
    assert scores == [row["rewards/vowels/mean"] for row in trainer.all_stats]


def test_a_classic_loop_with_its_own_optimizer_and_reference():
    torch.manual_seed(0)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(gpt2())
    ref_model = create_reference_model(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    dataset = Dataset.from_dict({"input_ids": [[3, 4], [5, 6, 7]] * 4, "query": ["a", "b"] * 4})
    dataset.set_format("torch")
    trainer = PPOTrainer(
        PPOConfig(batch_size=4, model_name="tiny"),
        model,
        ref_model,
        Words(),
        dataset,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        data_collator=lambda rows: {key: [row[key] for row in rows] for key in rows[0]},
    )
    rates = []
    for batch in trainer.dataloader:
        responses = trainer.generate(batch["input_ids"], return_prompt=False, max_new_tokens=3)
        stats = trainer.step(batch["input_ids"], responses, [torch.tensor(1.0)] * 4)
        batch["response"] = ["x"] * 4
        trainer.log_stats(stats, batch, [torch.tensor(1.0)] * 4)
        rates.append(stats["ppo/learning_rate"])
    assert rates == [1e-3, 5e-4]
    assert [row["step"] for row in trainer.all_stats] == [1, 2]
    assert stats["env/reward_mean"] == 1.0


def test_collate_puts_queries_and_responses_at_the_left():
    rollout = collate(
        [torch.tensor([1, 2]), torch.tensor([3])],
        [torch.tensor([4]), torch.tensor([5, 6])],
        [torch.tensor([1]), torch.tensor([0, 1])],
        pad_token_id=9,
    )
    assert rollout.queries.tolist() == [[1, 2], [3, 9]]
    assert rollout.query_mask.tolist() == [[1, 1], [1, 0]]
    assert rollout.lengths().tolist() == [3, 3]
    assert rollout.responses.tolist() == [[4, 9], [5, 6]]
    assert rollout.response_mask.tolist() == [[1, 0], [1, 1]]
    assert rollout.loss_mask.tolist() == [[1, 0], [0, 1]]
    alone = rollout.rows(torch.tensor([1]))
    assert alone.queries.tolist() == [[3]]
    assert alone.responses.tolist() == [[5, 6]]

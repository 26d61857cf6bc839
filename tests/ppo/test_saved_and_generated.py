"""What PPOTrainer saves, generates, skips, and how it is called."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, VOCAB, Words, gpt2, ppo_trainer
from datasets import Dataset
from test_trainer import build, rollout_of
from tiny_grpo import same
from transformers import AutoModelForCausalLM

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from trl_recipes.ppo.objective import local
from trl_recipes.ppo.rollout import collate
from trl_recipes.ppo.statistics import score_stats


@pytest.mark.parametrize("saves", ["trainer", "model"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_policy_and_value_head_come_back_bit_for_bit(name, saves, tmp_path):
    """Whether the trainer saves them, or the user's own model object."""
    trainer = build(name)
    trainer.step(*rollout_of(trainer))
    with_head = trainer.value_head_model
    (trainer if saves == "trainer" else with_head).save_pretrained(str(tmp_path))
    loaded = type(with_head).from_pretrained(str(tmp_path)).state_dict()
    assert same(with_head.state_dict(), loaded)
    assert loaded["v_head.summary.weight"].any()


@pytest.mark.parametrize(
    ("settings", "atol"),
    [({}, 2e-6), ({"trainable": "lora", "merge_adapter": True}, 1e-5)],
    ids=["all weights", "merged adapter"],
)
def test_the_saved_folder_is_a_plain_model_with_the_logits_of_training(
    settings, atol, tmp_path, caplog
):
    trainer, ids = build(**settings), torch.arange(2, 12)[None]
    start = trainer.policy_model(ids).logits
    for _ in range(2):
        trainer.step(*rollout_of(trainer))
    trainer.save_model(str(tmp_path))
    expected = trainer.policy_model.eval()(ids).logits
    caplog.clear()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    # training fuses GPT-2's GELU, which rounds otherwise in the last place
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=atol)
    assert (start - expected).abs().max() > 1e-4
    if not settings:
        assert same(model.state_dict(), trainer.policy_model.state_dict())
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


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


def test_each_response_ends_at_its_own_length_and_a_classic_call_gives_the_prompt_too():
    trainer = build(stop_token=None)
    lengths = iter([1, 5, 3, 2])
    responses = trainer.generate(rollout_of(trainer)[0], lambda: next(lengths), return_prompt=False)
    assert [len(response) for response in responses] == [1, 5, 3, 2]
    classic = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 0}
    query = torch.tensor([4, 5, 6])
    response = trainer.generate(query, max_new_tokens=4, eos_token_id=-1, **classic)
    assert response.shape == (1, 7)
    assert response[0, :3].equal(query)


def test_an_update_with_a_wild_ratio_is_skipped_and_counted():
    trainer = build(ratio_threshold=1.0000001, learning_rate=0.05, ppo_epochs=3)
    stats = trainer.step(*rollout_of(trainer))
    assert stats["ppo/skipped_minibatches"] >= 1


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
        shaped, _ = trainer.scaling(scores, torch.ones(4).bool())
        seen = batches[:number].flatten()
        torch.testing.assert_close(shaped, (scores - seen.mean()) / seen.std())


@pytest.mark.parametrize(
    ("name", "settings", "unit"),
    [
        ("gpt2", {"score_clip": 1.0}, lambda totals: 1 / totals),
        ("gpt2", {"use_score_scaling": True}, lambda totals: 1 / totals.std().expand_as(totals)),
        ("t5", {"trl_0_11_quirks": True}, torch.ones_like),
    ],
)
def test_rewards_of_tokens_are_scaled_as_their_sum_and_none_is_lost(name, settings, unit):
    ones = lambda completion_ids, **_: [[1.0] * len(ids) for ids in completion_ids]  # noqa: E731
    settings |= {"reward_norm": "none", "init_kl_coef": 0.0, "stop_token": None, "max_steps": 1}
    trainer = ppo_trainer(ARCHITECTURES[name](), ones, [[5, 6]] * 16, batch_size=16, **settings)
    estimate, seen = trainer.compute_advantages, []
    trainer.compute_advantages = lambda *given: seen.append(given) or estimate(*given)
    trainer.train()
    ((_, rewards, mask),) = seen
    totals = mask.sum(1) + 2.0 * (name == "t5")  # with the start token, and the one behind it
    places, rewards = mask.cumsum(1) * mask, rewards * mask
    torch.testing.assert_close(rewards.sum(1), unit(totals) * totals)
    before_last = (places > 0) & (places < places.amax(1, keepdim=True))
    expected = unit(totals)[:, None].expand_as(rewards)
    torch.testing.assert_close(rewards[before_last], expected[before_last])


def test_a_function_that_left_all_samples_out_has_no_statistics():
    gave = {"nothing": [None, None], "once": [None, 2.0], "metric": [None, None]}
    found = score_stats([1.0, 3.0], gave, "cpu", local, ["metric"])
    assert found.pop("env/reward_std") == pytest.approx(2**0.5)
    assert found == {"env/reward_mean": 2.0, "rewards/once/mean": 2.0, "rewards/once/std": 0.0}


def test_train_moves_the_policy_towards_the_reward(tokenizer, tiny_gpt2, tmp_path):
    def vowels(prompts, completions, **columns):
        return [10 * sum(c in "aeiou" for c in t) / max(len(t), 1) for t in completions]

    ids = [tokenizer(t)["input_ids"] for t in ("The acting", "A dull", "I liked", "Nothing") * 8]
    settings = {"batch_size": 16, "max_steps": 25, "learning_rate": 3e-3, "response_length": 8}
    trainer = ppo_trainer(tiny_gpt2, vowels, ids, tmp_path, tokenizer, **settings)
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
        *(PPOConfig(batch_size=4, model_name="tiny"), model, ref_model, Words(), dataset),
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
    given = ([[1, 2], [3]], [[4], [5, 6]], [[1], [0, 1]])
    rollout = collate(*(list(map(torch.tensor, rows)) for rows in given), pad_token_id=9)
    found = {
        "queries": [[1, 2], [3, 9]],
        "query_mask": [[1, 1], [1, 0]],
        "responses": [[4, 9], [5, 6]],
        "response_mask": [[1, 0], [1, 1]],
        "loss_mask": [[1, 0], [0, 1]],
    }
    assert {name: getattr(rollout, name).tolist() for name in found} == found
    assert rollout.lengths().tolist() == [3, 3]
    alone = rollout.rows(torch.tensor([1]))
    assert [alone.queries.tolist(), alone.responses.tolist()] == [[[3]], [[5, 6]]]

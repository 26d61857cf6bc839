"""Padded passes, which a GPU captures and replays, against those that leave padding out."""

import pytest
import torch
from architectures import ARCHITECTURES
from ppo.test_trainer import assert_same_function, build, rollout_of
from transformers import set_seed

from trl_recipes.ppo import captured_passes
from trl_recipes.ppo.captured_passes import CapturedPasses

SETTINGS = {"mini_batch_size": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
UNEVEN = ((3, 9), (1, 2), (6, 4), (2, 7)), ((2, 3), (9, 1), (1, 8), (4, 4)), ((3, 9),) * 4


def captures(trainer, most_tokens=10_000):
    trainer.captured_passes = CapturedPasses(trainer._pass, trainer.model, most_tokens)
    return trainer


def both_step(plain, padded, lengths, seed):
    def step(trainer):
        set_seed(seed)  # rows in the same order
        return trainer.step(*rollout_of(trainer, lengths, seed=seed))

    return step(plain), step(padded)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_passes_train_as_those_without_padding(name):
    plain, padded = build(name, **SETTINGS), captures(build(name, **SETTINGS))
    for step in range(4):
        one, other = both_step(plain, padded, UNEVEN[step % 3], step)
        for key, value in one.items():
            if not key.startswith("time/") and torch.as_tensor(value).dim() == 0:
                assert other[key] == pytest.approx(value, rel=1e-4, abs=2e-5), (step, key)
    assert_same_function(plain, padded)
    shapes = {(4, 1, 8, 16), (4, 1, 16, 8)}  # the first step is checked, and padded nowhere
    assert set(padded.captured_passes.passes) == shapes


@pytest.mark.parametrize("works", [True, False])
def test_the_second_pass_of_a_shape_is_captured_where_it_can_be_and_every_later_one_replayed(
    works, monkeypatch
):
    said = []

    def capture(step, device, what):
        said.append("captured")
        return (lambda: said.append("replayed") or step()) if works else None

    monkeypatch.setattr(captured_passes, "captured", capture)
    monkeypatch.setattr(captured_passes, "_on_gpu", lambda tensor: True)
    plain, padded = build(**SETTINGS), captures(build(**SETTINGS))
    for step in range(3):
        both_step(plain, padded, UNEVEN[2], step)
    # two steps of two epochs of four, less one
    assert said == ["captured"] + ["replayed"] * 15 * works
    assert all(found.refused is not works for found in padded.captured_passes.passes.values())
    assert_same_function(plain, padded)


def test_large_passes_run_as_they_are():
    trainer = captures(build(**SETTINGS), most_tokens=23)
    for step in range(2):
        trainer.step(*rollout_of(trainer, UNEVEN[0], seed=step))
    assert not trainer.captured_passes.passes  # 8 and 16 tokens make 24


def replace_a_weight(trainer):
    parameter = next(trainer.model.parameters())
    parameter.data = parameter.data.clone()


def freeze_a_weight(trainer):
    next(trainer.model.parameters()).requires_grad_(False)


def anneal_the_clip_range(trainer):
    trainer.config.cliprange = 0.1


@pytest.mark.parametrize("change", [replace_a_weight, freeze_a_weight, anneal_the_clip_range])
def test_what_a_graph_has_written_in_it_starts_a_new_one(change):
    plain, padded = build(**SETTINGS), captures(build(**SETTINGS))
    seen = []
    for step in range(4):
        if step == 3:
            change(plain), change(padded)
        both_step(plain, padded, UNEVEN[2], step)
        seen.append([*padded.captured_passes.passes.values()])
    assert seen[1] == seen[2] != seen[3]
    assert_same_function(plain, padded)

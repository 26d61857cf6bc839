"""One function, the same numbers under our PPOTrainer and TRL's GRPOTrainer."""

import asyncio
import math
from statistics import fmean, pstdev

import pytest
import tiny_grpo
import torch
from architectures import ppo_trainer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_repetition_penalty_reward

from trl_recipes import RecipeError, load_stats
from trl_recipes.rewards import (
    KeywordReward,
    LengthPenalty,
    PerplexityReward,
    RepetitionPenalty,
    Rewards,
    SimilarityReward,
    UppercaseReward,
)

TEXTS = ["The acting", "A dull", "I liked", "Nothing here", "What a", "They filmed", "The", "A"]


def data(tokenizer):
    columns = {"prompt": TEXTS, "query": TEXTS, "wanted": ["beautiful film"] * 4 + ["slow"] * 4}
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return Dataset.from_dict({**columns, "input_ids": ids})


def functions(*loaded):
    async def of_a_column(completions, wanted, trainer_state, **kwargs):
        await asyncio.sleep(0)
        done = trainer_state.global_step / trainer_state.max_steps
        return [
            None if len(text) % 3 == 0 else float(len(word) + done)
            for text, word in zip(completions, wanted, strict=True)
        ]

    own = [LengthPenalty(5), RepetitionPenalty(2), KeywordReward(["a", "film"]), UppercaseReward()]
    own += [PerplexityReward(*loaded), SimilarityReward(None, *loaded, column="wanted")]
    return [*own, get_repetition_penalty_reward(2), of_a_column]


def ppo(folder, tokenizer, rewards, **settings):
    more = settings.pop("given", {})
    settings = {"batch_size": 8, "max_steps": 1, "response_length": 6} | settings
    given = (folder, rewards, data(tokenizer))
    return ppo_trainer(*given, tokenizer=tokenizer, more=more, **settings)


@pytest.fixture(scope="module")
def parts(tiny_gpt2):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval(), tokenizer


def test_one_function_gives_the_same_numbers_under_ppo_and_grpo(
    tiny_gpt2, parts, tmp_path, monkeypatch
):
    seen, score = [], Rewards.__call__

    def watched(self, *given, **extras):
        seen.append((*given, *score(self, *given, **extras)))
        return seen[-1][-2:]

    monkeypatch.setattr(Rewards, "__call__", watched)
    trainer = ppo(tiny_gpt2, parts[1], functions(*parts), reward_norm="none")
    trainer.train()
    prompts, completions, ids, columns, totals, raw = seen[-1]
    assert len(prompts) == 8

    settings = {"per_device_train_batch_size": 8, "num_generations": 2, "max_completion_length": 6}
    settings |= {"report_to": [], "use_cpu": True, "bf16": False}
    arguments = GRPOConfig(output_dir=str(tmp_path), **settings)
    grpo = GRPOTrainer(str(tiny_gpt2), functions(*parts), arguments, data(parts[1]))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    grpo.state.max_steps = 1  # as `train` sets it
    theirs = grpo._calculate_rewards(rows, prompts, completions, ids)
    ours = [[math.nan if v is None else v for v in raw[name]] for name in grpo.reward_func_names]
    ours = torch.tensor(ours).T
    torch.testing.assert_close(ours, theirs, equal_nan=True, atol=1e-6, rtol=1e-6)
    assert grpo.reward_func_names == trainer.rewards.names
    sums = (theirs * torch.tensor(trainer.rewards.weights)).nansum(1)
    torch.testing.assert_close(sums, torch.tensor(totals), atol=1e-4, rtol=0)


def test_a_resumed_run_normalizes_as_it_began_and_metrics_stand_in_every_row(
    tiny_gpt2, parts, tmp_path
):
    functions, given = [UppercaseReward(), LengthPenalty(3)], {"metrics": KeywordReward("film")}
    for steps, more in ((1, {}), (2, {"seed": 5, "resume_from_checkpoint": "true"})):
        more |= {"reward_norm": "reference", "score_clip": 5.0, "metrics": ["UppercaseReward"]}
        more |= {"output_dir": str(tmp_path), "given": given, "save_steps": 1}
        trainer = ppo(tiny_gpt2, parts[1], functions, max_steps=steps, **more)
        trainer.train()
    rows = load_stats(tmp_path)
    assert len(rows) == 2
    for row in rows:
        normalized = raw = 0
        assert {"metrics/keywords/mean", "metrics/uppercase_2/std"} <= row.keys()
        for name, weight in (("uppercase", 1), ("length", -1)):
            mean, *norm = (row[f"rewards/{name}/{part}"] for part in ("mean", "shift", "scale"))
            assert tuple(norm) == trainer.rewards.normalization[name]
            raw, normalized = raw + weight * mean, normalized + weight * (mean - norm[0]) / norm[1]
        assert row["rewards/length/mean"] >= 0
        assert row["env/reward_mean"] == pytest.approx(raw, abs=1e-6)
        assert row["ppo/mean_scores"] == pytest.approx(normalized, abs=1e-4)
        assert raw != pytest.approx(normalized, abs=1e-3)


def test_functions_of_the_configuration_stand_in_place_of_those_passed(tiny_gpt2, parts, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(completions, **_):\n    return [1.0] * len(completions)\n"
    )
    named = [f"{tmp_path / 'mine.py'}:mine", {"LengthPenalty": {"max_length": 2}}]
    passed = {"given": {"reward_weights": [5.0]}}
    trainer = ppo(tiny_gpt2, parts[1], [LengthPenalty(3)], reward_funcs=named, **passed)
    assert trainer.rewards.names == ["mine", "length"]
    assert trainer.rewards.weights == [1.0, -1.0]
    weighed = ppo(tiny_gpt2, parts[1], [LengthPenalty(3)], reward_weights=[-7.0])
    assert weighed.rewards.weights == [-7.0]


def test_a_missing_column_shows_before_training(tiny_gpt2, parts):
    def of_a_column(completions, label):
        return label

    with pytest.raises(RecipeError, match="`of_a_column` wants `label`"):
        ppo(tiny_gpt2, parts[1], of_a_column).describe()


@pytest.mark.parametrize("kind", ["ppo", "rloo", "grpo"])
def test_a_reward_is_weighed_in_its_standard_deviation_on_the_start_model(kind, tiny_gpt2, parts):
    seen = []

    def hundreds(completions, **_):
        values = [100.0 * len(set(text)) for text in completions]
        seen.append(values)
        return values

    if kind == "ppo":
        trainer = ppo(tiny_gpt2, parts[1], hundreds, learning_rate=1e-2)
    else:
        data = tiny_grpo.prompts(40)
        trainer = tiny_grpo.build(kind, rewards=hundreds, data=data, reward_norm="auto")
    described = trainer.describe()
    values = seen[1]  # the first call tried the function on two made-up samples
    assert f"mean {fmean(values):.4g}, standard deviation {pstdev(values):.3g}, from" in described
    trainer.train()
    row = trainer.all_stats[0]
    first = next(values for values in seen[2:] if len(values) == 8)
    assert row["env/reward_mean"] == pytest.approx(fmean(first), rel=1e-5)  # in its own unit
    if kind == "ppo":
        normalized = [(value - fmean(values)) / pstdev(values) for value in first]
        assert row["ppo/mean_scores"] == pytest.approx(fmean(normalized), abs=1e-4)
    else:
        scale = pstdev(values) if kind == "rloo" else 1.0
        assert trainer.reward_weights.tolist() == pytest.approx([1 / scale])


def test_a_reward_stands_where_its_token_stands(tiny_gpt2, parts):
    def weights(reward):
        settings = {"reward_norm": "none", "lam": 0.5, "learning_rate": 1e-2, "max_steps": 2}
        trainer = ppo(tiny_gpt2, parts[1], reward, **settings)
        trainer.train()
        return torch.cat([p.flatten() for p in trainer.policy_model.parameters()])

    def at(place):
        def reward(completion_ids, **_):
            rows = [[0.0] * len(ids) for ids in completion_ids]
            for row, ids in zip(rows, completion_ids, strict=True):
                row[place] = float(ids[0] % 7)
            return rows

        return reward

    whole = weights(lambda completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids])
    assert torch.equal(weights(at(-1)), whole)
    assert not torch.allclose(weights(at(0)), whole, atol=1e-4)

"""What ends a response: any end token of tokenizer or model, a stop token, or nothing."""

import json

import pytest
import torch
from architectures import VOCAB, gpt2, ppo_trainer

from trl_recipes import RecipeError

TURN = 7  # ends a turn, beside 0, which ends a text
QUERIES = [[5, 6], [8], [9, 10, 11], [12]] * 8


def build(**config):
    torch.manual_seed(0)
    model = gpt2()
    model.generation_config.eos_token_id = [0, TURN]
    weight = model.lm_head.weight.data
    weight[0] += 0.3  # make the end token likely
    weight[TURN] = weight[0]
    chosen = {"batch_size": 32, "response_length": 12, "min_response_length": None, "max_steps": 1}
    same = lambda completions, **_: [1.0] * len(completions)  # noqa: E731
    return ppo_trainer(model, same, QUERIES, **chosen | config)


def responses_of(trainer):
    """As `train` draws them, and as the classic loop does."""
    queries = [torch.tensor(ids) for ids in QUERIES]
    yield trainer._rollout(QUERIES).response_rows()
    yield trainer.generate(queries, return_prompt=False)


@pytest.mark.parametrize(
    ("config", "stops"),
    [({}, {0, TURN}), ({"stop_token": None}, set()), ({"stop_token_id": 9}, {9})],
)
def test_the_tokens_that_end_a_response(config, stops):
    for responses in responses_of(build(**config)):
        last = set()
        for row in map(torch.Tensor.tolist, responses):
            assert not stops & set(row[:-1])
            assert len(row) == 12 or row[-1] in stops
            last |= {row[-1]} if len(row) < 12 else set()
        assert last == stops


@pytest.mark.parametrize("config", [{}, {"stop_token": None}, {"stop_token_id": 9}])
def test_a_response_without_an_end_token_is_penalized_and_the_model_keeps_its_own(config, tmp_path):
    trainer = build(missing_eos_penalty=1.5, **config)
    ends = config.get("stop_token_id", TURN)
    responses = [[5, ends], [5, 6], [ends, 6, 5], [6]] * 8
    rollout = trainer._collate([torch.tensor([5])] * 32, [torch.tensor(row) for row in responses])
    scores, _ = trainer.scaling(torch.ones(32), trainer._ended(rollout))
    assert scores.tolist() == [1.0, -0.5, 1.0, -0.5] * 8
    trainer.train()
    row = trainer.all_stats[0]
    assert row["env/reward_mean"] == 1.0  # of the raw scores
    assert row["ppo/mean_scores"] < 1.0
    trainer.save_model(str(tmp_path))
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [0, TURN]


def test_a_stop_token_outside_the_vocabulary_is_refused():
    with pytest.raises(RecipeError, match=f"`stop_token_id` is {VOCAB}, outside the model's voc"):
        build(stop_token_id=VOCAB)

"""What scripts and subclasses of TRL 0.11's PPOTrainer call, override and are told."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, VOCAB, Words, ppo_trainer
from datasets import Dataset
from huggingface_hub import HfApi
from torch.utils.data import TensorDataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from trl_recipes import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, RecipeError
from trl_recipes.stats import load_stats, read_rows

SCORES = [torch.tensor(score) for score in (1.0, -1.0, 0.5, 2.0)]


def build(name="gpt2", kind=PPOTrainer, dataset=None, seed=0, **config):
    torch.manual_seed(seed)
    settings = {"batch_size": 4, "learning_rate": 1e-3, "ppo_epochs": 2} | config
    return kind(PPOConfig(**settings), ARCHITECTURES[name](), None, Words(), dataset)


def rows(trainer, lengths=((3, 5), (1, 2), (6, 4), (2, 7))):
    """Queries, and responses that begin with the start token of a decoder."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(2, VOCAB, (n,), generator=generator)  # noqa: E731
    queries, responses = zip(*((draw(q), draw(r)) for q, r in lengths), strict=True)
    if trainer.is_encoder_decoder:
        responses = trainer._with_start_token(list(responses))
    return list(queries), list(responses)


def step(trainer, queries, responses):
    np.random.seed(0)
    return trainer.step(queries, responses, SCORES)


def same(first, second, atol=1e-5):
    for key in first.keys() & second.keys():
        if not key.startswith("time/"):
            np.testing.assert_allclose(first[key], second[key], rtol=0, atol=atol, err_msg=key)


def overriding(name, method):
    return type("Mine", (PPOTrainer,), {name: method})


def two_nats(self, logprob, ref_logprob):
    return torch.full_like(logprob, 2.0)


@pytest.mark.parametrize(
    ("name", "method", "key", "expected"),
    [  # the first beside a value head of zeros
        ("compute_rewards", lambda self, *given: [0 * given[1]] * 3, "ppo/returns/mean", 0),
        ("compute_advantages", lambda self, v, r, m: (v, r, 3.0 * m), "ppo/returns/mean", 3),
        ("_kl_penalty", two_nats, "objective/kl", 2 * 18 / 4),  # of 18 tokens in 4 responses
    ],
)
def test_step_calls_what_a_subclass_overrides(name, method, key, expected):
    trainer = build(kind=overriding(name, method))
    assert trainer.step(*rows(trainer), SCORES)[key] == pytest.approx(expected, abs=1e-6)


def test_overriding_what_step_does_not_call_is_refused():
    with pytest.raises(RecipeError, match="Mine overrides `batched_forward_pass`, which"):
        build(kind=overriding("batched_forward_pass", lambda self: None))
    with pytest.raises(RecipeError, match="Mine overrides how the KL becomes rewards"):
        build(kind=overriding("_kl_penalty", two_nats), kl_penalty="full")


def scaled_loss(scale):
    """A trainer whose loss is the usual one times a number."""

    def loss(self, *args):
        policy, value, stats = PPOTrainer.loss(self, *args)
        return scale * policy, scale * value, stats | {"policy/mine": torch.tensor(7.0)}

    return overriding("loss", loss)


@pytest.mark.parametrize("mini_batch_size", [4, 1])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_loss_that_is_overridden_is_the_one_that_trains(name, mini_batch_size):
    sizes = {"mini_batch_size": mini_batch_size}
    sizes |= {"gradient_accumulation_steps": 4 // mini_batch_size}
    ours, theirs = build(name, **sizes), build(name, scaled_loss(1), **sizes)
    for _ in range(2):
        first, second = (step(t, *rows(t)) for t in (ours, theirs))
        same(first, second, atol=1e-4)
    assert second["ppo/policy/mine"] == pytest.approx(7)

    still = build(name, scaled_loss(0), learning_rate=1.0)
    before = [p.detach().clone() for p in still.model.parameters()]
    assert still.step(*rows(still), SCORES)["ppo/loss/total"] == 0
    assert all(map(torch.equal, before, still.model.parameters()))


@pytest.mark.parametrize("name", ["gpt2", "t5", "llama"])
def test_a_batched_forward_pass_knows_what_step_knows(name):
    trainer = build(name, mini_batch_size=2)
    queries, responses = rows(trainer)
    inputs = trainer.prepare_model_inputs(queries, responses)
    logprobs, logits, values, mask = trainer.batched_forward_pass(
        trainer.model, queries, responses, inputs, return_logits=True
    )
    first = 2 if trainer.is_encoder_decoder else 0  # the start token, and one that TRL left out
    lengths = [len(r) - first for r in responses]
    assert mask.sum(1).tolist() == lengths
    assert logits.shape[:2] == values.shape == mask.shape
    stats = trainer.step(queries, responses, SCORES)
    known = zip(stats["objective/logprobs"][:, max(first - 1, 0) :], lengths, strict=True)
    known = np.concatenate([row[:length] for row, length in known])
    np.testing.assert_allclose(logprobs[mask.bool()].detach(), known, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_step_takes_from_generate_what_it_knew(name):
    def steps(forget):
        trainer, passes = build(name, ppo_epochs=1, stop_token=None), []
        trainer.model.register_forward_pre_hook(lambda *_: passes.append(1))
        queries, stats = rows(trainer)[0], []
        for _ in range(3):
            torch.manual_seed(5)
            responses = [trainer.generate(q, max_new_tokens=6).squeeze() for q in queries]
            if not trainer.is_encoder_decoder:
                responses = [r[-6:] for r in responses]
            if forget:
                trainer._drawn.clear()
            stats.append(step(trainer, queries, responses))
        return stats, len(passes)

    (known, fewer), (computed, passes) = steps(False), steps(True)
    assert passes == fewer + 2  # not in the first batch, which shows that sampling can be trusted
    for first, second in zip(known, computed, strict=True):
        same(first, second, atol=1e-4)


def test_what_generate_knew_is_forgotten_when_a_weight_changes():
    trainer = build()
    queries = rows(trainer)[0]
    for change in (False, True):
        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=4)
        if change:
            with torch.no_grad():
                trainer.policy_model.lm_head.weight.mul_(1.5)
        rollout = trainer._recall(trainer._collate(queries, responses))
        assert (rollout.logprobs is None) is change


def test_a_start_token_that_a_slice_cut_off_is_put_back():
    whole, cut = build("t5"), build("t5")
    queries, responses = rows(whole)
    sliced = [responses[0], *(response[1:] for response in responses[1:])]
    same(step(whole, queries, responses), step(cut, queries, sliced), 1e-6)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_trainers_model_answers_as_the_users_own(name, tmp_path):
    trainer = build(name)
    model, own = trainer.accelerator.unwrap_model(trainer.model), trainer.value_head_model
    assert model.v_head is own.v_head
    assert model.pretrained_model is own.pretrained_model
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    if trainer.is_encoder_decoder:
        ids["decoder_input_ids"] = torch.tensor([[0, 8]])
    for first, second in zip(model(**ids), own(**ids), strict=True):
        assert first is second is None or torch.equal(first, second)
    assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[0] == 1
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    assert saved.keys() == own.state_dict().keys()
    trainer.step(*rows(trainer), SCORES)
    model.load_state_dict(saved)
    assert all(torch.equal(value, saved[key]) for key, value in own.state_dict().items())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "value_head.safetensors").exists()


def test_a_model_that_is_loaded_keeps_its_dtype(caplog):
    gpt2 = ARCHITECTURES["gpt2"]()
    model = AutoModelForCausalLMWithValueHead.from_pretrained(gpt2, torch_dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    assert "`dtype` is for a model loaded by name" in caplog.text


def test_rows_may_be_tuples_and_too_few_are_told_when_they_are_gone_through():
    data = TensorDataset(torch.ones(8, 3).long(), torch.full((8, 2), 4))
    trainer = build(dataset=data)
    queries, responses = next(iter(trainer.dataloader))
    assert trainer.step(list(queries), list(responses), SCORES)["tokens/queries_len_mean"] == 3
    trainer = build(dataset=Dataset.from_dict({"input_ids": [[3, 4]] * 3}))
    assert len(trainer.dataloader) == 0
    with pytest.raises(RecipeError, match="has 3 prompts, fewer than one batch of 4"):
        next(iter(trainer.dataloader))


def test_a_collator_of_the_training_pads_and_nothing_else(tokenizer, tiny_gpt2):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    pads = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    given = (PPOConfig(batch_size=2), str(tiny_gpt2), None, tokenizer)
    trainer = PPOTrainer(*given, training_data_collator=pads)
    inputs = trainer.prepare_model_inputs(*[[torch.tensor([5, 6]), torch.tensor([7])]] * 2)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    cuts = lambda batch: {k: v[:, :1] for k, v in pads(batch).items()}  # noqa: E731
    with pytest.raises(RecipeError, match="`training_data_collator` changes the tokens"):
        PPOTrainer(*given, training_data_collator=cuts)


def test_trl_warns_and_so_do_we():
    with pytest.warns(UserWarning, match="No dataset was given"):
        build()
    two = (ARCHITECTURES["gpt2"](), ARCHITECTURES["gpt2"]())
    with pytest.warns(UserWarning, match="`num_shared_layers` means nothing"):
        PPOTrainer(PPOConfig(batch_size=4), *two, Words(), num_shared_layers=1)
    trainer = build()
    with pytest.raises(ValueError, match="must be one number"):
        trainer.step(*rows(trainer), [score.reshape(1, 1) for score in SCORES])


def test_a_loop_by_hand_neither_goes_on_in_a_folder_nor_loses_a_column(tmp_path):
    def loop(**config):
        trainer = build(output_dir=str(tmp_path / "run"), report_to="none", **config)
        stats = trainer.step(*rows(trainer), SCORES)
        batch = {"query": ["q"] * 4, "response": ["r"] * 4, "ref_rewards": SCORES}
        columns = ("query", "response", "ref_rewards")
        with pytest.raises(RecipeError, match="names 'ref_response', which `batch` does not hold"):
            trainer.log_stats(stats, batch, SCORES, (*columns, "ref_response"))
        trainer.log_stats(stats, batch, SCORES, columns)

    loop()
    samples = read_rows(tmp_path / "run" / "samples.jsonl")
    assert [row["ref_rewards"] for row in samples] == [1.0, -1.0, 0.5, 2.0]
    with pytest.raises(RecipeError, match="already holds a run"):
        loop()
    with pytest.raises(RecipeError, match="`resume_from_checkpoint` is for `train`"):
        loop(resume_from_checkpoint="true")
    ones = lambda completions, **_: [1.0] * len(completions)  # noqa: E731
    given = (ARCHITECTURES["gpt2"](), ones, [[3, 4]] * 4, tmp_path / "run")
    with pytest.raises(RecipeError, match="already holds a run"):
        ppo_trainer(*given, batch_size=4, max_steps=1).train()
    loop(overwrite_output_dir=True)
    assert len(load_stats(tmp_path / "run")) == 1


def test_what_is_saved_is_what_goes_to_the_hub(tmp_path, monkeypatch, tokenizer, tiny_gpt2):
    sent = []

    def upload(self, repo_id, folder_path, commit_message="", revision=""):
        AutoModelForCausalLM.from_pretrained(folder_path)
        PreTrainedTokenizerFast.from_pretrained(folder_path)
        sent.append(repo_id)
        card = (Path(folder_path) / "README.md").read_text()
        return f"{self.token} {repo_id} {revision} {commit_message} {'datasets: [imdb]' in card}"

    repo = lambda self, name, **_: SimpleNamespace(repo_id=f"me/{name}")  # noqa: E731
    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
    monkeypatch.setattr(HfApi, "create_repo", repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    config = PPOConfig(batch_size=2, push_to_hub=True, hub_model_id="run")
    trainer = PPOTrainer(config, str(tiny_gpt2), None, tokenizer)
    told = trainer.save_pretrained(
        tmp_path / "mine", push_to_hub=True, token="secret", revision="v1", commit_message="end"
    )
    assert told == "secret me/mine v1 end False"
    assert trainer.push_to_hub(dataset_name="imdb") == "None me/run   True"
    assert sent == ["me/mine", "me/run"]
    with pytest.raises(RecipeError, match="`evaluate` is no method of PPOTrainer"):
        trainer.evaluate()
    assert "AutoModelForCausalLMWithValueHead" in (tmp_path / "mine" / "README.md").read_text()

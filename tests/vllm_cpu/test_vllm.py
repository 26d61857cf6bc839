"""vLLM samples from the policy as it is, and a run that it samples rises, stops and resumes."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl.generation.vllm_generation as generation
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_models import SENTENCES, byte_level_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen2Config
from vllm_run import PROMPTS, SMALL, trainer_of

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.ppo.rollout import sample
from trl_recipes.stats import load_stats

pytest.importorskip("vllm")

OFF = "sampling/sampling_logp_difference/mean"
ENDS = [0, 7, 8, 9]  # tokens
_LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
_LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
_GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64}
MODELS = {
    "tied GPT-2": GPT2Config(**_GPT2),
    "untied GPT-2": GPT2Config(**_GPT2, tie_word_embeddings=False),
    "tied Qwen2": Qwen2Config(**_LLAMA, tie_word_embeddings=True),
    "untied Llama": LlamaConfig(**_LLAMA, tie_word_embeddings=False),
}


def classic(folder, **given):
    config = PPOConfig(batch_size=8, response_length=12, temperature=0.7, use_vllm=True)
    return PPOTrainer(config, str(folder), **given)


def saved(name, folder):
    tokenizer = byte_level_tokenizer(SENTENCES)
    tokenizer.save_pretrained(folder)
    config = MODELS[name]
    config.vocab_size, config.eos_token_id, config.bos_token_id = len(tokenizer), 0, 0
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@torch.no_grad()
def move(trainer):
    """A change of all trained weights that is as large as they are."""
    for parameter in trainer.policy_model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def logprobs_of(model, query, response):
    logits = model(torch.cat([query, response])[None]).logits[0, len(query) - 1 : -1] / 0.7
    return logits.log_softmax(-1).gather(1, response[:, None])[:, 0]


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("name", MODELS)
def test_vllm_samples_from_the_policy_as_it_is_now(name, lora, tmp_path, monkeypatch):
    whole = functools.partial(generation.LLM, dtype="float32", **SMALL)  # as the policy
    monkeypatch.setattr(generation, "LLM", whole)
    saved(name, tmp_path)
    peft = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    trainer = classic(tmp_path, peft_config=peft)
    policy, start = trainer.policy_model, AutoModelForCausalLM.from_pretrained(tmp_path)
    frozen = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    queries = [torch.randint(10, 250, (n,)) for n in range(1, 9)]
    limits = [3, 12, 5, 12, 12, 7, 1, 12]
    tokens = {"pad_token_id": 0, "eos_token_id": ENDS, "temperature": 0.7}
    for _ in range(2):
        move(trainer)
        rollout = sample(
            trainer._policy(), queries, trainer.vllm_generation, max_new_tokens=limits, **tokens
        )
        moved = []
        for row, response in enumerate(rollout.response_rows()):
            known = rollout.sampling_logprobs[row, : len(response)]
            assert (known - logprobs_of(policy, queries[row], response)).abs().max() < 1e-4
            moved.append((known - logprobs_of(start, queries[row], response)).abs().mean())
            ends = [token in ENDS for token in response.tolist()]
            assert not any(ends[:-1])
            assert ends[-1] or len(response) == limits[row]
        assert torch.stack(moved).mean() > 0.1
    after = dict(policy.named_parameters())
    assert all(torch.equal(value, after[n]) for n, value in frozen.items())


def test_weights_that_do_not_reach_vllm_are_told():
    randomness = []
    for _ in range(2):
        trainer = trainer_of("ppo", max_steps=1, use_vllm=not randomness)
        randomness.append(torch.get_rng_state())
    assert torch.equal(*randomness)  # vLLM's start leaves it alone
    trainer = trainer_of("ppo", max_steps=1)
    trainer.vllm_generation.sync_weights = lambda: None
    move(trainer)
    trainer.train()
    assert trainer.all_stats[0][OFF] > 0.5
    assert "do not reach vLLM" in trainer.alarms.said["vLLM"]


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_the_score_of_a_run_rises(kind):
    trainer = trainer_of(kind, max_steps=15, batch_size=64, learning_rate=2e-3)
    trainer.train()
    rows = trainer.all_stats
    scores = [row["env/reward_mean"] for row in rows]
    print(kind, scores, [row.get(OFF) for row in rows])
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.5
    assert all(row[OFF] < 0.05 for row in rows if kind != "rloo")  # TRL's RLOO measures none


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_conversations_reach_vllm_through_the_template(kind, tmp_path):
    saved("untied Llama", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}>"
    tokenizer.save_pretrained(tmp_path)
    seen = []

    def reward(prompts, completions, completion_ids, **_):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    trainer = trainer_of(kind, None, reward, str(tmp_path), asked, max_steps=2, response_length=8)
    trainer.train()
    assert all(row[OFF] < 0.05 for row in trainer.all_stats)
    assert all(prompt in asked for prompt, _, _ in seen)
    for _, (answer,), ids in seen[-2 * 32 :]:  # of the two steps
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert answer == {"role": "assistant", "content": text}


def run(*words):
    script = Path(__file__).with_name("vllm_run.py")
    command = [sys.executable, script, *map(str, words)]
    ours = {"MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"}  # set by vLLM in here
    own = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(command, env=own, check=False).returncode


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_run_that_is_stopped_and_killed_ends_as_one_left_alone(kind, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(kind, whole) == 0
    assert run(kind, broken, 2, int(signal.SIGTERM)) == 128 + signal.SIGTERM  # step 3 is saved
    assert (broken / "checkpoints" / "checkpoint-3").exists()
    assert run(kind, broken, 5, int(signal.SIGKILL), "resume") == -signal.SIGKILL
    assert run(kind, broken, "resume") == 0
    rows = [load_stats(path / "all_stats.jsonl") for path in (whole, broken)]
    timed = ("time/", "step_time")
    plain = [[{k: v for k, v in r.items() if not k.startswith(timed)} for r in x] for x in rows]
    assert plain[0] == plain[1]
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (whole, broken))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

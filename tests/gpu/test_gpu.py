"""What only a GPU can show: figures of TRL 0.11.4, captured sampling, resume, memory, recipes."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny_grpo
import torch
import torture
from architectures import ARCHITECTURES, VOCAB, Words
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo.test_golden import CASES, GOLDEN, probe, run_case
from safetensors.torch import load_file
from transformers import set_seed

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.benchmark import models
from trl_recipes.benchmark.models import Workload
from trl_recipes.models import sampling
from trl_recipes.models.forward import pad_rows, response_logits, unwrap_adapter
from trl_recipes.models.sampling import can_sample_static, sample_growing, sample_responses
from trl_recipes.ppo.objective import logprobs_from_logits

if not torch.cuda.is_available():
    pytest.skip("no GPU here, or hidden: run `python -m pytest tests/gpu`", allow_module_level=True)

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda", 0)
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def queries(lengths=(3, 1, 6, 2), vocabulary=VOCAB):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(2, vocabulary, (n,), generator=generator).to(CUDA) for n in lengths]


def sample(model, sampler=sample_responses, lengths=(20, 3, 18, 20), eos=None, ids=None):
    torch.manual_seed(3)
    settings = {"pad_token_id": 0, "eos_token_id": eos, "max_new_tokens": list(lengths)}
    return sampler(model, ids or queries(), temperature=0.7, **settings)


@torch.no_grad()
def off_a_forward_pass(model, samples, ids):
    """How much log-probabilities of sampling differ from those of one pass; the largest logit."""
    batch = (*pad_rows(ids, 0, "right"), samples.responses, samples.mask)
    logits = response_logits(model.eval(), *batch)[0]
    flags = samples.mask.bool()
    off = logprobs_from_logits(logits, samples.responses[flags], 0.7) - samples.logprobs[flags]
    return off.abs(), logits.abs().max()


def model_of(name):
    torch.manual_seed(0)
    return ARCHITECTURES[name]().to(CUDA).eval()


# Figures of TRL 0.11.4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_three_steps_give_the_figures_of_trl_0_11_4(kind, case, hold):
    rows, recorded, calls, trainer = run_case(kind, case, bf16=False)
    assert trainer.current_device.type == "cuda"
    off = [
        (torch.as_tensor(row[key]).double() - torch.as_tensor(value).double()).abs()
        / torch.as_tensor(value).double().abs().clamp(min=1)
        for row, expected in zip(rows, recorded, strict=True)
        for key, value in expected.items()
    ]
    hold(f"golden {kind} {case}: statistics", max(x.max() for x in off), 1e-3)
    expected = load_file(GOLDEN / kind / "probe.safetensors")
    trainer.value_head_model.cpu()
    off = [
        (found - expected[f"{case}.{row}.{what}"]).abs().max()
        for row, *both in probe(trainer, kind, calls[0])
        for what, found in zip(("logits", "values"), both, strict=True)
    ]
    hold(f"golden {kind} {case}: model", max(off), 1e-3)


# Sampling


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_sampling_keeps_what_a_forward_pass_gives(name, hold, monkeypatch):
    model = model_of(name)
    assert can_sample_static(model, CUDA)
    samples = sample(model)
    assert samples.mask.sum(1).tolist() == [20, 3, 18, 20]
    hold(f"sampling {name}, float32", off_a_forward_pass(model, samples, queries())[0].max(), 1e-4)
    assert model not in sampling._refused
    # CUDA draws other numbers in one call than in many
    numbers = lambda *shape, device: torch.rand(shape, dtype=torch.float64).to(device)  # noqa: E731
    monkeypatch.setattr(sampling, "uniform", numbers)
    growing = sample(model, sample_growing, lengths=[20] * 4)
    assert sample(model, lengths=[20] * 4).responses.equal(growing.responses)


def test_a_captured_graph_draws_what_every_token_by_itself_draws(monkeypatch):
    model, captured = model_of("gpt2"), []
    capture = sampling.captured
    monkeypatch.setattr(sampling, "captured", lambda *args: captured.append(1) or capture(*args))
    replayed = sample(model, eos=[7, 11], lengths=[40] * 4)
    monkeypatch.setattr(sampling, "captured", lambda step, *_: step)
    alone = sample(model, eos=[7, 11], lengths=[40] * 4)
    assert captured == [1]
    assert replayed.responses.equal(alone.responses)
    assert replayed.mask.equal(alone.mask)


def test_sampling_in_bfloat16_follows_the_weights_and_leaves_no_memory_behind(hold):
    work = Workload("mini", batch=16, query=8, response=32)
    model = models.language_model(work).to(CUDA)
    ids, lengths = queries([8] * 16, 8000), [32] * 16
    reserved = 0.0
    for turn in range(8):
        with torch.autocast("cuda", torch.bfloat16):
            samples = sample(model, lengths=lengths, ids=ids)
            off, largest = off_a_forward_pass(model, samples, ids)
        # each of the two rounds its logits by up to half a step, 2^-9 of them, and before these
        # the states of each layer, with errors of either sign: a few such roundings at the most
        hold(f"sampling GPT-2, bfloat16, turn {turn}, mean", off.mean(), 2 * largest * 2**-9)
        hold(f"sampling GPT-2, bfloat16, turn {turn}, most", off.max(), largest * 2**-9 * 8)
        reserved = reserved if turn > 2 else torch.cuda.memory_reserved()
        for parameter in model.parameters():
            parameter.data.add_(0.002 * torch.randn_like(parameter))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    hold("reserved after five more", torch.cuda.memory_reserved() / reserved, 1.01)


# Training


def trainer_of(model, folder=None, steps=3, **settings):
    torch.manual_seed(0)
    ids = torch.randint(2, VOCAB, (16, 4)).tolist()
    config = {"batch_size": 8, "ppo_epochs": 2, "learning_rate": 1e-3, "response_length": 20}
    config |= {"max_steps": steps, "disable_tqdm": True, "report_to": "none"} | settings
    return PPOTrainer(
        args=PPOConfig(output_dir=folder and str(folder), **config),
        model=model,
        reward_funcs=tiny_grpo.variety,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=Words(),
    )


def policy_of(name):
    if name != "lora":
        return model_of(name)
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    return get_peft_model(model_of("gpt2"), adapter)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "t5", "bart", "lora"])
def test_ppo_trains_and_its_first_batch_is_checked(name, bf16, hold):
    model = policy_of(name)
    trainer = trainer_of(model, bf16=bf16)
    trainer.train()
    assert unwrap_adapter(model) not in sampling._refused
    first = trainer.all_stats[0]
    assert trainer.first_batch.updated
    assert trainer.first_batch.trust_sampling is True or bf16
    precision = "bfloat16" if bf16 else "float32"
    hold(f"first KL, {name}, {precision}", abs(first["objective/kl"]), 0.5 if bf16 else 1e-3)
    assert all(row["ppo/skipped_minibatches"] == 0 for row in trainer.all_stats)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "t5", "bart", "lora"])
def test_captured_passes_train_as_eager_ones(name, bf16, hold):
    rows = []
    for captured in (False, True):
        trainer = trainer_of(policy_of(name), bf16=bf16, mini_batch_size=4)
        if not captured:
            trainer.captured_passes = None
        for seed in range(4):
            set_seed(seed)
            given, responses = queries(range(1, 9)), queries([9, 2, 5, 14, 3, 7, 7, 1])
            rows.append(trainer.step(given, responses, list(torch.randn(8))))
    (passes,) = trainer.captured_passes.passes.values()
    assert passes.replay
    off = [
        abs(row[key] - other[key]) / max(1, abs(row[key]))
        for row, other in zip(rows[:4], rows[4:], strict=True)
        for key in ("objective/kl", "ppo/loss/total", "ppo/val/error", "ppo/policy/entropy")
    ]
    precision = "bfloat16" if bf16 else "float32"
    hold(f"captured and eager, {name}, {precision}", max(off), 0.1 if bf16 else 1e-3)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_epochs_wait_once_at_their_end(name, hold):
    trainer = trainer_of(model_of(name), mini_batch_size=4, steps=2)
    optimize, waits = trainer._optimize, []

    def watched(*args):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return optimize(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits.append([w for w in said if "synchronizing" in str(w.message)])

    trainer._optimize = watched
    trainer.train()
    ours = [f"{w.filename}:{w.lineno}" for w in waits[1] if "trl_recipes" in w.filename]
    assert len(ours) <= 1, ours
    hold(f"waits of transformers in two epochs of two passes, {name}", len(waits[1]) - 1, 12)


def test_an_update_that_would_do_harm_is_skipped_on_the_device():
    trainer = trainer_of(model_of("gpt2"), ratio_threshold=0.5, steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.all_stats[0]["ppo/skipped_minibatches"] == 2
    assert all(value.equal(before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", tiny_grpo.KINDS)
def test_groups_train(kind, hold):
    trainer = tiny_grpo.build(kind, bf16=False)
    before = tiny_grpo.weights(trainer)
    trainer.train()
    assert len(trainer.all_stats) >= 3
    assert not tiny_grpo.same(before, tiny_grpo.weights(trainer))
    assert next(trainer.model.parameters()).is_cuda


def test_a_run_goes_on_after_a_kill_as_one_left_alone(tmp_path, hold):
    flags = [*torture.make_models(tmp_path), "--max_steps", "20", "--bf16", "false"]
    calm = torture.start(flags, tmp_path / "calm")
    torture.torture(flags, tmp_path / "killed", kills=1)
    torture.finish(calm)
    (rows, _, weights), (others, _, other_weights) = (
        torture.result(tmp_path / name) for name in ("calm", "killed")
    )
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    off = [
        abs(row[key] - other[key]) / max(1, abs(row[key]))
        for row, other in zip(rows, others, strict=True)
        for key in ("objective/kl", "ppo/mean_scores", "ppo/loss/total", "objective/entropy")
    ]
    hold("kill and resume: statistics", max(off), 1e-3)
    assert weights.keys() == other_weights.keys()


def test_the_run_takes_the_memory_that_its_check_said(hold):
    work = Workload("mini", batch=16, query=8, response=32)
    trainer = trainer_of(models.language_model(work), bf16=True, steps=6, batch_size=16)
    torch.cuda.reset_peak_memory_stats()
    trainer.check()
    said = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    took = torch.cuda.max_memory_allocated()
    hold("memory of the run over that of --check", took / said, 1.1)
    hold("memory of --check over that of the run", said / took, 1.1)


def test_the_sentiment_recipe_runs(tmp_path, hold):
    folder = tmp_path / "run"
    command = [sys.executable, "recipes/ppo_sentiment.py", "--max_steps", "10"]
    command += ["--eval_prompts", "32", "--disable_tqdm", "true", "--output_dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    rows = [json.loads(line) for line in (folder / "all_stats.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert "cuda" in done.stdout
    hold("sentiment: seconds a step", sorted(row["time/ppo/total"] for row in rows)[5], 5)


# Last: here a capture fails


def asks_the_host(*_):
    torch.ones(1, device=CUDA).item()


def test_a_model_that_asks_the_host_is_sampled_without_a_graph():
    model, other = model_of("gpt2"), model_of("gpt2")
    model.transformer.h[1].register_forward_hook(asks_the_host)
    samples = sample(model)
    assert samples.mask.sum(1).tolist() == [20, 3, 18, 20]
    assert off_a_forward_pass(model, samples, queries())[0].max() < 1e-4
    assert model in sampling._refused
    assert sample(other).mask.sum(1).tolist() == [20, 3, 18, 20]  # the next is captured again
    assert other not in sampling._refused

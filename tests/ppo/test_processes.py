"""Two processes give the answer of one: real processes, under Accelerate and gloo."""

import json
import os
import shutil
import sys
from pathlib import Path

import cpu_as_gpu  # noqa: F401  first, in a process that is started
import pytest
import torch
from architectures import ARCHITECTURES, VOCAB, Words, ppo_trainer
from launching import launch
from safetensors.torch import load_file, save_file
from tiny_grpo import same, variety, without_times
from transformers import AutoModelForCausalLM

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.models.forward import pad_rows
from trl_recipes.models.sharding import full_tensors, is_sharded

GLOBAL_BATCH = 8
RANK, PROCESSES = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
SHARDED = "ACCELERATE_USE_FSDP" in os.environ
# Batches in parts: two processes take two of these a step, one takes four.
PARTS = {"mini_batch_size": 2, "gradient_accumulation_steps": 2}
EVERY_SUM = PARTS | {"lr_scheduler_type": "linear", "use_score_scaling": True}
EVERY_SUM |= {"use_score_norm": True, "whiten_rewards": True, "max_grad_norm": 1.0}
CASES = {
    "gpt2": ("gpt2", 3, {}),
    "every sum": ("gpt2", 3, EVERY_SUM),
    "t5": ("t5", 3, PARTS),
    "lora": ("gpt2", 2, {"trainable": "lora"}),
    "ten steps": ("gpt2", 10, {"mini_batch_size": 2, "learning_rate": 3e-3}),
}

# What each process does


def rollouts(step):
    """Queries, responses and scores of one step over all processes, of uneven lengths."""
    generator = torch.Generator().manual_seed(step)

    def rows(lengths):
        return [torch.randint(2, VOCAB, (length,), generator=generator) for length in lengths]

    lengths = torch.randint(1, 13, (GLOBAL_BATCH,), generator=generator).tolist()
    lengths[:2] = [12, 11]  # the first process has most of the tokens
    scores = torch.randn(GLOBAL_BATCH, generator=generator) * 2 + 1
    return rows([3, 1, 4, 2, 2, 5, 1, 3]), rows(lengths), list(scores)


def run_case(name, steps, settings):
    """Statistics of each step, and what the model is afterwards."""
    size = GLOBAL_BATCH // PROCESSES
    torch.manual_seed(0)
    chosen = {"batch_size": size, "ppo_epochs": 2, "max_steps": steps, "report_to": "none"}
    chosen |= {"disable_tqdm": True, "learning_rate": 1e-3, "trl_0_11_quirks": False} | settings
    trainer = PPOTrainer(PPOConfig(**chosen), ARCHITECTURES[name](), tokenizer=Words())
    assert trainer.accelerator.num_processes == PROCESSES
    assert is_sharded(trainer.model) == SHARDED
    rows = []
    for step in range(steps):
        mine = slice(RANK * size, (RANK + 1) * size)
        queries, responses, scores = (part[mine] for part in rollouts(step))
        if trainer.is_encoder_decoder:
            responses = [torch.cat([torch.zeros(1, dtype=torch.long), row]) for row in responses]
        stats = trainer.step(queries, responses, scores)
        rows.append({key: value for key, value in stats.items() if isinstance(value, int | float)})
    queries, responses, _ = rollouts(0)
    inputs = (*pad_rows(queries, 0, "right"), *pad_rows(responses, 0, "right"))
    with torch.no_grad():
        _, _, values, logits = trainer.model(*inputs, with_logits=True)
    weights = full_tensors(dict(trainer._actor_critic().named_parameters()), keep=True)
    found = {"logits": logits, "values": values, **weights}
    return without_times(rows), {key: value.detach().clone() for key, value in found.items()}


def trainer_of(folder, steps=4, **settings):
    torch.manual_seed(0)
    model, queries = ARCHITECTURES["gpt2"](), torch.randint(2, VOCAB, (9, 3)).tolist()
    chosen = {"batch_size": 8 // PROCESSES, "gradient_accumulation_steps": 4 // PROCESSES}
    chosen |= {"mini_batch_size": 2, "ppo_epochs": 2, "learning_rate": 1e-3, "save_steps": 2}
    chosen |= {"response_length": 6, "min_response_length": 2, "max_steps": steps}
    return ppo_trainer(model, variety, queries, folder, **chosen | settings)


def train(folder, text, **settings):
    """Train four steps, and write down how they ended, by a name."""
    trainer = trainer_of(folder, **settings)
    trainer.train()
    trainer.save_model()
    weights = full_tensors(dict(trainer.model.named_parameters()), keep=True)
    if RANK == 0:
        responses = (folder / "samples.jsonl").read_text().splitlines()
        told = [without_times(trainer.all_stats), responses]
        (folder / f"{text}.json").write_text(json.dumps(told))
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{text}.safetensors")
    trainer.accelerator.wait_for_everyone()
    return trainer.accelerator


def train_in_parts(folder):
    """Train, and again from a checkpoint on the way; save an adapter that does nothing, merged."""
    accelerator = train(folder, "whole run")
    if RANK == 0:
        shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    accelerator.wait_for_everyone()
    train(folder, "resumed at step 2", resume_from_checkpoint="true")
    adapted = trainer_of(folder, trainable="lora", merge_adapter=True)
    adapted.check()  # steps that leave no trace
    adapted.save_model(str(folder / "merged"))
    accelerator.wait_for_everyone()


def main(output):
    for number, case in enumerate(CASES.values()):
        rows, found = run_case(*case)
        save_file(found, output / f"{number}-{RANK}.safetensors")
        (output / f"{number}-{RANK}.json").write_text(json.dumps(rows))
    if SHARDED:
        train_in_parts(output / "run")
    os._exit(0)  # torch 2.13 can wait for itself for ever when it takes gloo down


# What came of it


@pytest.fixture(scope="module")
def launched(request, tmp_path_factory):
    """What two processes, sharded or not, have written, and said."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, launch(__file__, folder, way=request.param, ACCELERATE_USE_CPU="true")


@pytest.mark.parametrize("launched", ["whole", "sharded"], indirect=True)
def test_two_processes_make_the_update_of_one(launched):
    for number, (case, (name, steps, settings)) in enumerate(CASES.items()):
        paths = [launched[0] / f"{number}-{rank}" for rank in (0, 1)]
        (ours, theirs) = (load_file(path.with_suffix(".safetensors")) for path in paths)
        assert same(ours, theirs), case  # to the bit, also after ten steps
        assert all(torch.isfinite(value).all() for value in ours.values()), case
        if case == "ten steps":
            continue
        parts = {"gradient_accumulation_steps": 4} if "mini_batch_size" in settings else {}
        alone, found = run_case(name, steps, settings | parts)
        first, second = (json.loads(path.with_suffix(".json").read_text()) for path in paths)
        assert first == second  # logged is what all did
        assert len(alone) == steps
        for row, together in zip(alone, first, strict=True):
            assert {"ppo/loss/total", "objective/kl", "ppo/returns/var"} <= row.keys()
            assert together == pytest.approx(row, rel=1e-5, abs=1e-5), case
        for key in ("logits", "values"):
            torch.testing.assert_close(ours[key], found[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("launched", ["sharded"], indirect=True)
def test_a_sharded_run_leaves_one_plain_model_and_goes_on_with_any_number(launched):
    folder, said = launched[0] / "run", launched[1]
    assert "draws other responses" not in said
    texts = ["whole run", "resumed at step 2"]
    runs = [json.loads((folder / f"{text}.json").read_text()) for text in texts]
    assert runs[0] == runs[1]  # statistics of steps 3 and 4 but for the times, and responses
    assert same(*(load_file(folder / f"{text}.safetensors") for text in texts))

    saved = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    checkpoint = load_file(folder / "checkpoints" / "checkpoint-4" / "model.safetensors")
    of_policy = {k.removeprefix("policy."): v for k, v in checkpoint.items() if "policy" in k}
    assert len(of_policy) == len(list(ARCHITECTURES["gpt2"]().parameters()))
    assert same(of_policy, saved)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
    torch.manual_seed(0)
    start = ARCHITECTURES["gpt2"]().state_dict()  # `check` left no trace, the adapter does nothing
    assert same(merged, start)

    alone = trainer_of(folder, 5, resume_from_checkpoint="true")
    alone.train()
    assert alone.state.global_step == 5
    assert len(alone.all_stats) == 5


if __name__ == "__main__":
    main(Path(sys.argv[1]))

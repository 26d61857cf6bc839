"""What one process of test_processes.py runs: steps on its part of given rollouts, and a training.

accelerate launch --num_processes N tests/ppo/in_two_processes.py FOLDER CASES
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import cpu_as_gpu  # noqa: F401
from architectures import ARCHITECTURES, VOCAB, Words, ppo_trainer
from safetensors.torch import save_file
from tiny_grpo import variety, without_times

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.models.forward import pad_rows
from trl_recipes.models.sharding import full_tensors, is_sharded

GLOBAL_BATCH = 8
RANK, PROCESSES = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
SHARDED = "ACCELERATE_USE_FSDP" in os.environ


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


def main(output, cases):
    for number, case in enumerate(cases):
        rows, found = run_case(*case)
        save_file(found, output / f"{number}-{RANK}.safetensors")
        (output / f"{number}-{RANK}.json").write_text(json.dumps(rows))
    if SHARDED:
        train_in_parts(output / "run")
    os._exit(0)  # torch 2.13 can wait for itself for ever when it takes gloo down


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

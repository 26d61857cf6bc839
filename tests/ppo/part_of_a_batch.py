"""What one process of test_processes.py runs: some steps on its part of given rollouts.

accelerate launch --num_processes N tests/ppo/part_of_a_batch.py FOLDER CASES
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import cpu_as_gpu  # noqa: F401
from architectures import ARCHITECTURES, VOCAB, Words
from safetensors.torch import save_file

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.models.forward import pad_rows
from trl_recipes.models.sharding import full_tensors, is_sharded

GLOBAL_BATCH = 8
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
    rank, processes = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    size = GLOBAL_BATCH // processes
    mine = slice(rank * size, (rank + 1) * size)
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    chosen = {"batch_size": size, "ppo_epochs": 2, "max_steps": steps, "report_to": "none"}
    chosen |= {"disable_tqdm": True, "learning_rate": 1e-3, "trl_0_11_quirks": False} | settings
    trainer = PPOTrainer(PPOConfig(**chosen), model, tokenizer=Words())
    assert trainer.accelerator.num_processes == processes
    assert is_sharded(trainer.model) == SHARDED
    rows = []
    for step in range(steps):
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
    return rows, {key: value.detach().clone() for key, value in found.items()}


def main(output, cases):
    for number, case in enumerate(cases):
        rows, found = run_case(*case)
        name = f"{number}-{os.environ['RANK']}"
        save_file(found, Path(output) / f"{name}.safetensors")
        (Path(output) / f"{name}.json").write_text(json.dumps(rows))
    os._exit(0)  # torch 2.13 can wait for itself for ever when it takes gloo down


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

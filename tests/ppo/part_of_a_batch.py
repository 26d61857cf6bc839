"""What one process of test_processes.py runs: some steps on its part of given rollouts.

accelerate launch --num_processes N tests/ppo/part_of_a_batch.py FOLDER MODEL STEPS SETTINGS
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from architectures import ARCHITECTURES, VOCAB, Words
from safetensors.torch import save_file

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.lost_peer import end_one_of_several
from trl_recipes.padding import pad_rows

GLOBAL_BATCH = 8


def rollouts(step):
    """Queries, responses and scores of one step over all processes, of uneven lengths."""
    generator = torch.Generator().manual_seed(step)

    def rows(lengths):
        return [torch.randint(2, VOCAB, (length,), generator=generator) for length in lengths]

    lengths = torch.randint(1, 13, (GLOBAL_BATCH,), generator=generator).tolist()
    lengths[:2] = [12, 11]  # the first process has most of the tokens
    scores = torch.randn(GLOBAL_BATCH, generator=generator) * 2 + 1
    return rows([3, 1, 4, 2, 2, 5, 1, 3]), rows(lengths), list(scores)


def main(output, name, steps, settings):
    rank, processes = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    size = GLOBAL_BATCH // processes
    mine = slice(rank * size, (rank + 1) * size)
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    config = PPOConfig(
        batch_size=size,
        ppo_epochs=2,
        max_steps=steps,
        report_to="none",
        disable_tqdm=True,
        **{"learning_rate": 1e-3} | settings,
    )
    trainer = PPOTrainer(config, model, tokenizer=Words())
    assert trainer.accelerator.num_processes == processes
    rows = []
    for step in range(steps):
        queries, responses, scores = (part[mine] for part in rollouts(step))
        if trainer.is_encoder_decoder:
            responses = [torch.cat([torch.zeros(1, dtype=torch.long), row]) for row in responses]
        stats = trainer.step(queries, responses, scores)
        rows.append({key: value for key, value in stats.items() if isinstance(value, int | float)})
    model = trainer._actor_critic()
    queries, responses, _ = rollouts(0)
    inputs = (*pad_rows(queries, 0, "right"), *pad_rows(responses, 0, "right"))
    with torch.no_grad():
        logits, values = model(*inputs)
    found = {"logits": logits, "values": values, **dict(model.named_parameters())}
    found = {key: value.detach().clone() for key, value in found.items()}
    save_file(found, Path(output) / f"found-{rank}.safetensors")
    (Path(output) / f"stats-{rank}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    end_one_of_several()

"""What one process of test_processes.py runs: `train`, and again from a checkpoint on the way.

accelerate launch --num_processes 2 tests/ppo/train_in_parts.py FOLDER
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import cpu_as_gpu  # noqa: F401
from architectures import ARCHITECTURES, VOCAB, ppo_trainer
from safetensors.torch import save_file
from tiny_grpo import variety

from trl_recipes.models.sharding import full_tensors


def trainer_of(folder, name, steps, settings):
    processes = int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    queries = torch.randint(2, VOCAB, (9, 3)).tolist()
    chosen = {"batch_size": 8 // processes, "gradient_accumulation_steps": 4 // processes}
    chosen |= {"mini_batch_size": 2, "ppo_epochs": 2, "learning_rate": 1e-3, "save_steps": 2}
    chosen |= {"response_length": 6, "min_response_length": 2, "max_steps": steps}
    return ppo_trainer(model, variety, queries, folder, **chosen | settings)


def train(folder, text, settings):
    """Train four steps, and write down how they ended, by a name."""
    trainer = trainer_of(folder, "gpt2", 4, settings)
    trainer.train()
    trainer.save_model()
    weights = full_tensors(dict(trainer.model.named_parameters()), keep=True)
    if trainer.accelerator.is_main_process:
        rows = [{k: v for k, v in row.items() if "time/" not in k} for row in trainer.all_stats]
        responses = (folder / "samples.jsonl").read_text().splitlines()
        (folder / f"{text}.json").write_text(json.dumps([rows, responses]))
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{text}.safetensors")
    trainer.accelerator.wait_for_everyone()
    return trainer.accelerator


def main(folder):
    accelerator = train(folder, "whole run", {})
    if accelerator.is_main_process:
        shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    accelerator.wait_for_everyone()
    train(folder, "resumed at step 2", {"resume_from_checkpoint": "true"})
    adapted = trainer_of(folder, "gpt2", 4, {"trainable": "lora", "merge_adapter": True})
    adapted.check()  # steps that leave no trace
    adapted.save_model(str(folder / "merged"))
    accelerator.wait_for_everyone()
    os._exit(0)  # torch 2.13 can wait for itself for ever when it takes gloo down


if __name__ == "__main__":
    main(Path(sys.argv[1]))

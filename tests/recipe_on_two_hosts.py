"""What each machine of test_two_hosts.py runs: a recipe that trains a tiny model for some steps.

accelerate launch --num_machines 2 ... tests/recipe_on_two_hosts.py --output_dir FOLDER ...
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from architectures import ARCHITECTURES, VOCAB, Words
from datasets import Dataset

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.arguments import run_recipe
from trl_recipes.report import write_report
from trl_recipes.run_folder import start_run


@dataclass
class Arguments:
    """How long a step takes."""

    pause: float = field(default=0.0, metadata={"help": "Seconds that scoring takes."})


def main(args: Arguments, config: PPOConfig) -> None:
    def evenness(completion_ids, **columns):
        time.sleep(args.pause)
        return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]

    torch.manual_seed(0)
    trainer = PPOTrainer(
        args=config,
        model=ARCHITECTURES["gpt2"](),
        reward_funcs=evenness,
        train_dataset=Dataset.from_dict({"input_ids": [[2 + i % (VOCAB - 2)] for i in range(64)]}),
        processing_class=Words(),
    )
    with start_run(config, (args, config), write_report):
        trainer.train()
        trainer.save_model()


if __name__ == "__main__":
    run_recipe(main, Arguments, PPOConfig)

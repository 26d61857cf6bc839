"""Two processes of which one ends in the middle of what both do; test_bad_ends.py starts them."""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from trl_recipes import RecipeError
from trl_recipes.arguments import run_recipe
from trl_recipes.callbacks import StopSignals


@dataclass
class Ending(TrainingArguments):
    """How the second process ends, and what the first does meanwhile."""

    how: str = field(default="killed")
    meanwhile: str = field(default="waits")
    output_dir: str = field(default="unused")


def main(config: Ending) -> None:
    numbers = torch.ones(1)
    with StopSignals():
        for step in range(3):
            if step == 2 and config.process_index == 1:
                Path(config.output_dir, "when").write_text(str(time.time()))
                end(config.how)
            if step == 2 and config.meanwhile == "is busy":
                time.sleep(60)
            torch.distributed.all_reduce(numbers)


def end(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "a bad row":
        raise RecipeError("row 7 of reviews.jsonl holds no text. Mend the row.")
    if how == "out of memory":
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")
    raise AssertionError(how)


if __name__ == "__main__":
    run_recipe(main, Ending, argv=sys.argv[1:])

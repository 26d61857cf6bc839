"""What ends one process ends all of them within seconds, with its message in the last lines."""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from launching import LAUNCH, run_warm
from transformers import TrainingArguments

from trl_recipes import RecipeError
from trl_recipes.arguments import run_recipe
from trl_recipes.callbacks import StopSignals

SLOW = pytest.mark.slow
MEMORY = "OutOfMemoryError: tried to allocate 20 GiB"
WORD = "error: The connection to another process was lost"


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
                if config.how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if config.how == "a bad row":
                    raise RecipeError("row 7 of reviews.jsonl holds no text. Mend the row.")
                raise torch.OutOfMemoryError("tried to allocate 20 GiB")
            if step == 2 and config.meanwhile == "is busy":
                time.sleep(60)
            torch.distributed.all_reduce(numbers)


@pytest.mark.parametrize(
    ("how", "meanwhile", "message", "told"),
    [
        ("killed", "waits", WORD, "exitcode  : -9"),
        ("a bad row", "waits", "error: row 7 of reviews.jsonl holds no text", "exitcode  : 2"),
        pytest.param("killed", "is busy", "Signal 9 (SIGKILL)", "exitcode  : -9", marks=SLOW),
        pytest.param("out of memory", "is busy", MEMORY, "Traceback", marks=SLOW),
    ],
)
def test_the_end_of_one_is_the_end_of_all(how, meanwhile, message, told, tmp_path):
    flags = ["--how", how, "--meanwhile", meanwhile, "--output_dir", tmp_path]
    done = run_warm(*LAUNCH, Path(__file__), *flags)
    took = time.time() - float((tmp_path / "when").read_text())
    assert done.returncode != 0
    assert took < 10
    assert told in done.stderr
    assert message in "\n".join(done.stderr.splitlines()[-12:])
    assert "gloo" not in done.stderr  # what the end looks like from the other process


if __name__ == "__main__":
    run_recipe(main, Ending, argv=sys.argv[1:])

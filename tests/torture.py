"""Kill a run with SIGKILL at random moments, resume it, and hold what comes out to a calm run.

    python tests/torture.py --kills 50

Half of the kills wait for a checkpoint that is being written. tests/test_resume.py does a few.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_grpo import without_times
from tiny_models import save_sentiment_models

from trl_recipes.stats import load_stats

RESUME = ["--resume_from_checkpoint", "true"]
RECIPE = Path(__file__).parents[1] / "recipes" / "ppo_sentiment.py"


def make_models(folder):
    flags = save_sentiment_models(folder).items()
    return [
        *(word for name, path in flags for word in (f"--{name}", str(path))),
        *("--batch_size", "8", "--eval_prompts", "8", "--response_length", "6"),
        *("--learning_rate", "1e-3", "--disable_tqdm", "true", "--use_score_scaling", "true"),
        *("--lr_scheduler_type", "linear", "--save_steps", "2", "--ppo_epochs", "2"),
    ]


def start(flags, output_dir):
    words = [sys.executable, str(RECIPE), *flags, "--output_dir", str(output_dir)]
    given = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **given)


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def rows_in(output_dir):
    path = output_dir / "all_stats.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def halt_while_writing(process, checkpoints):
    """Halt a run at a moment at which a checkpoint is half written, however busy the machine is."""
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        if any(checkpoints.glob(".unfinished/*")):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.002)
            if any(checkpoints.glob(".unfinished/*")):
                return
            process.send_signal(signal.SIGCONT)


def torture(flags, output_dir, kills, seed=0):
    """Run to the end through this many kills; how many of them struck a half-written checkpoint."""
    chance, struck, done = random.Random(seed), 0, 0
    checkpoints = output_dir / "checkpoints"
    while done < kills:
        process = start([*flags, *(RESUME if done else [])], output_dir)
        before = rows_in(output_dir) if done else 0
        while process.poll() is None and rows_in(output_dir) in (0, before):
            time.sleep(0.002)  # until it trains
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, 0.5))
        else:
            halt_while_writing(process, checkpoints)
        if process.poll() is not None:
            raise AssertionError(f"the run ended before kill {done + 1}: {process.stdout.read()}")
        process.kill()
        process.communicate()
        done += 1
        struck += bool(list(checkpoints.glob(".unfinished/*")))
    finish(start([*flags, *RESUME], output_dir))
    return struck


def result(output_dir):
    """Weights and statistics, times aside."""
    rows = without_times(load_stats(output_dir))
    model, head = (f"{output_dir}/model/{name}.safetensors" for name in ("model", "value_head"))
    return rows, (output_dir / "samples.jsonl").read_text(), load_file(model) | load_file(head)


def assert_same(calm, tortured):
    rows, samples, weights = result(calm)
    other_rows, other_samples, other_weights = result(tortured)
    assert rows == other_rows
    assert samples == other_samples
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        flags = [*make_models(folder), "--max_steps", str(20 * args.kills)]
        finish(start(flags, folder / "calm"))
        began = time.monotonic()
        struck = torture(flags, folder / "tortured", args.kills, args.seed)
        assert_same(folder / "calm", folder / "tortured")
    print(
        f"{args.kills} kills survived, {struck} of them in the middle of writing a checkpoint, in "
        f"{time.monotonic() - began:.0f} s: {20 * args.kills} steps, every weight and statistic "
        "as in a run without kills."
    )


if __name__ == "__main__":
    main()

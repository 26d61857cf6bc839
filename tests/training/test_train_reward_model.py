"""recipes/train_reward_model.py as users run it, and that other recipes take what it leaves."""

import json
import random
import subprocess
import sys
from pathlib import Path

from trl_recipes.rewards import Rewards
from trl_recipes.rewards.loading import load_reward_funcs

RECIPE = Path(__file__).parents[2] / "recipes" / "train_reward_model.py"


def test_preference_pairs_become_a_reward_that_other_recipes_take_by_name(tmp_path):
    draw = random.Random(0)
    words = (("good", "fine", "great"), ("bad", "dull", "poor"))
    rows = [
        {"prompt": "The film is", "chosen": f" {draw.choice(words[0])}, I think, {i}."}
        | {"rejected": f" {draw.choice(words[1])}, I think, {i}."}
        | {"split": "test" if i < 40 else "train"}
        for i in range(240)
    ]
    rows.append({"prompt": "x", "chosen": "y", "rejected": "y", "split": "train"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "--num_layers 1 --hidden_size 32 --num_heads 2 --vocab_size 300 --context_length 32"
    words += " --per_device_train_batch_size 8 --learning_rate 3e-3 --disable_tqdm true --dropout 0"
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--dataset_name", "pairs.jsonl", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 201 pairs of pairs.jsonl (train) have chosen equal to rejected" in done.stderr
    assert "held-out accuracy 1.000" in done.stdout
    run = tmp_path / "runs" / "reward"
    assert (run / "plots" / "reliability.png").stat().st_size > 10_000
    assert "1.000" in (run / "model" / "README.md").read_text()
    assert "kind" not in (run / "config.yaml").read_text()  # it was found, not given
    rewards = Rewards(load_reward_funcs([str(run)]))
    scores, _ = rewards(["The film is"] * 2, [" great, I think.", " poor, I think."], [[0], [0]])
    assert scores[0] > scores[1] + 1

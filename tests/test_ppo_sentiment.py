"""recipes/ppo_sentiment.py as users run it; its mistakes stand in bad_inputs.py."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import save_tiny_classifier
from launching import ACCELERATE, RECIPES, run_warm
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPE = RECIPES / "ppo_sentiment.py"
LAUNCH = [ACCELERATE, "launch", "--num_processes", "1"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TEXTS = ["The acting was wonderful and the plot kept me awake.", "A dull film, sadly."] * 30


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_gpt2):
    """Folders in the hub's format, as the classic set-up: GPT-2, RoBERTa, text and label."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    save_tiny_classifier(tokenizer, folder / "classifier")
    data = folder / "data"
    data.mkdir()
    for split in ("train", "test"):
        rows = [{"text": f"{t} {i}", "label": i % 2} for i, t in enumerate(TEXTS)]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "--model_name_or_path": str(tiny_gpt2),
        "--reward_model": str(folder / "classifier"),
        "--dataset_name": str(data),
    }


def flags(models, output_dir, **changes):
    settings = models | {"--output_dir": str(output_dir), "--max_steps": "3"}
    settings |= {"--batch_size": "8", "--eval_prompts": "16", "--response_length": "6"}
    settings |= {"--disable_tqdm": "true", "--learning_rate": "1e-3"}
    settings |= {f"--{name}": value for name, value in changes.items()}
    return [word for pair in settings.items() if pair[1] is not None for word in pair]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "good"
    command = [*LAUNCH, RECIPE, *flags(models, folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def rows_of(folder):
    return [json.loads(line) for line in (folder / "all_stats.jsonl").read_text().splitlines()]


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_the_run_folder_holds_what_it_promises(finished):
    folder, done = finished
    assert len(rows_of(folder)) == 3
    assert (folder / "plots" / "training.png").stat().st_size > 10_000
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 12
    assert "3 steps, each of 8 responses gone over 4 times" in done.stdout
    assert "P(POSITIVE)" in done.stdout
    assert str(folder / "model") in done.stdout


def test_the_saved_model_loads_without_us(finished):
    model, info = AutoModelForCausalLM.from_pretrained(
        finished[0] / "model", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (finished[0] / "model" / "value_head.safetensors").is_file()
    assert len(AutoTokenizer.from_pretrained(finished[0] / "model")) <= model.config.vocab_size


def test_its_config_runs_it_again_and_another_seed_differs(finished, tmp_path):
    config = ["--config", finished[0] / "config.yaml"]
    for name, seed in (("again", []), ("other", ["--seed", "1"])):
        done = run_warm(RECIPE.name, *config, "--output_dir", tmp_path / name, *seed)
        assert done.returncode == 0, done.stderr[-2000:]
    folders = (tmp_path / "again", tmp_path / "other", finished[0])
    again, other, first = (without_times(rows_of(folder)) for folder in folders)
    assert again == first
    assert other != first


def test_the_default_clips(tmp_path):
    words = ["--max_steps", "2", "--batch_size", "64", "--mini_batch_size", "16"]
    words += ["--eval_prompts", "8", "--output_dir", tmp_path / "run", "--disable_tqdm", "true"]
    done = run_warm(RECIPE.name, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(0.01 < row["ppo/policy/clipfrac"] < 0.5 for row in rows_of(tmp_path / "run"))


def test_an_ablation_runs_each_variant_once(models, tmp_path):
    few = {"mini_batch_size": "4", "min_response_length": "4", "learning_rate": "0.001"}
    words = iter(flags(models, tmp_path, ppo_epochs="1", **few))
    once = {name[2:]: yaml.safe_load(value) for name, value in zip(words, words, strict=True)}
    variants = {"once": once, "no score clip": once | {"score_clip": None, "ppo_epochs": 2}}
    (tmp_path / "few.yaml").write_text(json.dumps({"variants": variants}))
    command = ["ppo_ablation.py", "--config", tmp_path / "few.yaml", "--seeds", "3"]
    command += ["--output_dir", tmp_path / "runs"]
    first, again = (run_warm(*command) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr[-2000:]
    assert first.stdout.count("seed3") == 2
    assert again.stdout in first.stdout  # the table alone: nothing is run twice
    for name, epochs in (("once", 1), ("no-score-clip", 2)):
        run = tmp_path / "runs" / f"{name}-seed3"
        comparison = json.loads((run / "comparison.json").read_text())
        mean = comparison["models"][run.name]["P(POSITIVE)"]["mean"]
        assert f"| {name.replace('-', ' ')} | {mean:.3f} |" in first.stdout
        config = (run / "config.yaml").read_text()
        assert f"ppo_epochs: {epochs}" in config
        assert ("score_clip: null" in config) is (epochs == 2)


def test_lora_trains_and_loads(models, tmp_path):
    peft = ["--use_peft", "true", "--merge_adapter", "true"]
    done = run_warm(RECIPE.name, *flags(models, tmp_path / "lora"), *peft)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "lora" / "model" / "model.safetensors").is_file()


def test_the_default_opens_no_network_socket(tmp_path):
    """Every connect of the whole process is refused and noted; the run must not notice."""
    watcher = tmp_path / "sitecustomize.py"
    watcher.write_text(
        "import socket\n"
        "def refuse(self, address):\n"
        f"    open({str(tmp_path / 'reached')!r}, 'a').write(repr(address))\n"
        "    raise OSError('refused')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
    )
    words = ["--max_steps", "1", "--batch_size", "8", "--mini_batch_size", "8"]
    words += ["--eval_prompts", "8", "--output_dir", tmp_path / "run", "--disable_tqdm", "true"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, RECIPE, *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "reached").exists()

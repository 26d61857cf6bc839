"""recipes/ppo_sentiment.py as users run it: through accelerate launch, and with every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_tiny_classifier
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "recipes" / "ppo_sentiment.py")
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1"]
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


def run(words, launcher=(sys.executable,)):
    return subprocess.run(
        [*launcher, RECIPE, *words], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "good"
    done = run(flags(models, folder), launcher=LAUNCH)
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


def test_one_seed_gives_one_run_and_another_seed_another(finished, models, tmp_path):
    again, other = run(flags(models, tmp_path / "a")), run(flags(models, tmp_path / "b", seed="1"))
    assert (again.returncode, other.returncode) == (0, 0), again.stderr[-2000:]
    assert without_times(rows_of(tmp_path / "a")) == without_times(rows_of(finished[0]))
    assert without_times(rows_of(tmp_path / "b")) != without_times(rows_of(finished[0]))


def test_its_config_runs_it_again(finished, tmp_path):
    config = str(finished[0] / "config.yaml")
    done = run(["--config", config, "--output_dir", str(tmp_path / "again")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert without_times(rows_of(tmp_path / "again")) == without_times(rows_of(finished[0]))


def test_lora_trains_and_loads(models, tmp_path):
    done = run([*flags(models, tmp_path / "lora"), "--use_peft", "true", "--merge_adapter", "true"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "lora" / "model" / "model.safetensors").is_file()


def mistakes(models, tmp_path):
    """Name, flags and what the message must say."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.csv").write_text('text\n" "\n"  "\n')
    (tmp_path / "typo.yaml").write_text("learning_rat: 1.0e-5\n")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out"
    yield "unknown flag", [*flags(models, out), "--lerning_rate", "1"], "--learning_rate"
    yield (
        "unknown key",
        [*flags(models, out), "--config", str(tmp_path / "typo.yaml")],
        "learning_rat",
    )
    yield "change_score", flags(models, out, change_score="2"), "change_score"
    yield "missing file", flags(models, out, dataset_name=str(tmp_path / "no.csv")), "no.csv"
    yield "empty file", flags(models, out, dataset_name=str(tmp_path / "empty.txt")), "empty.txt"
    yield "column", flags(models, out, text_column="review"), "label, text|text, label"
    yield "empty prompts", flags(models, out, dataset_name=str(tmp_path / "blank.csv")), "blank.csv"
    yield "context", flags(models, out, response_length="60"), "context holds 64"
    yield "label", flags(models, out, label="HAPPY"), "NEGATIVE, POSITIVE"
    yield "batch", flags(models, out, mini_batch_size="3"), "Set batch_size to 6 or 9"
    yield "no model", flags(models, out, model_name_or_path=str(tmp_path / "folder")), "config.json"
    yield "hub", flags(models, out, model_name_or_path="nobody/nothing"), "offline"
    yield "fp16", flags(models, out, fp16="true"), "fp16"
    yield "lengths", flags(models, out, min_response_length="9"), "min_response_length"


def test_each_mistake_is_one_message_and_exit_code_2(models, tmp_path, subtests):
    for name, words, expected in mistakes(models, tmp_path):
        with subtests.test(name):
            before = sorted(tmp_path.rglob("*"))
            done = run(words)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr
            assert any(part in done.stderr for part in expected.split("|")), done.stderr
            assert done.stderr.count("error:") == 1
            assert sorted(tmp_path.rglob("*")) == before  # nothing written


def test_a_tokenizer_larger_than_the_model_is_refused(models, tmp_path, tiny_gpt2):
    from shutil import copytree

    folder = copytree(tiny_gpt2, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(40)])
    tokenizer.save_pretrained(folder)
    done = run(flags(models, tmp_path / "out", model_name_or_path=str(folder)))
    assert done.returncode == 2
    assert "the model only" in done.stderr


def test_a_folder_that_holds_a_run_is_refused_and_kept(finished, models):
    before = {p: p.stat().st_mtime_ns for p in finished[0].rglob("*")}
    done = run(flags(models, finished[0]))
    assert done.returncode == 2
    assert "--overwrite_output_dir" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in finished[0].rglob("*")} == before


def test_a_mistake_elsewhere_does_not_cost_the_run_that_was_to_be_replaced(finished, models):
    before = sorted(finished[0].rglob("*"))
    words = [*flags(models, finished[0], label="HAPPY"), "--overwrite_output_dir", "true"]
    assert run(words).returncode == 2
    assert sorted(finished[0].rglob("*")) == before


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
    import os

    words = ["--max_steps", "1", "--batch_size", "8", "--mini_batch_size", "8"]
    words += [
        "--eval_prompts",
        "8",
        "--output_dir",
        str(tmp_path / "run"),
        "--disable_tqdm",
        "true",
    ]
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

"""Every recipe that trains, in two processes: one whole run each, as one process leaves it."""

import json
import logging
import os
import random
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
import transformers
from launching import LAUNCH, RECIPES, Recipe, launch, run_here
from safetensors.torch import load_file, save_file
from tiny_grpo import weights
from tiny_models import save_sentiment_models

from trl_recipes import distributed as processes
from trl_recipes.stats import load_stats, read_rows

SIZES = "--num_layers 1 --num_heads 2 --hidden_size 16 --vocab_size 300 --max_steps 4"
DATA = "--dataset_name {models}/data"
RL = "--model_name_or_path {models}/gpt2 --max_steps 2 --batch_size 8 --response_length 6"
RL += f" --save_steps 1 {DATA}"
TASK = "--reward_model {models}/classifier --eval_prompts 8"
SEQ2SEQ = "--hidden_size 16 --num_layers 1 --num_heads 2 --pretrain_steps 4 --reward_steps 4"
SEQ2SEQ += " --pretrain_batch_size 8 --reward_batch_size 8 --reward_outputs 40 --max_steps 2"
SEQ2SEQ += " --batch_size 8 --mini_batch_size 8 --ppo_epochs 1 --response_length 8"
SHOUTING = "--text_file {models}/text.txt --prompt_length 8 --response_length 16 --max_steps 2"
SHOUTING += " --eval_prompts 16 --baseline_steps 8 --batch_size 16 --num_generations 8"
SHOUTING += " --n_layer 1 --n_head 2 --n_embd 32 --context_length 24"
# Run folder: recipe and flags.
RUNS = {
    "lm": f"pretrain_lm {DATA} --n_layer 1 --n_head 2 --n_embd 16 --max_steps 4 --vocab_size 300",
    "classifier": f"train_classifier {DATA} {SIZES}",
    "reward": f"train_reward_model {DATA} --kind pairs {SIZES}",
    "ppo": f"ppo_sentiment {RL} {TASK}",
    "custom": f"ppo_custom_reward {RL}",
    "grpo": f"grpo_sentiment {RL} {TASK} --num_generations 4",
    "rloo": f"rloo_sentiment {RL} {TASK} --num_generations 4 --reward_once true",
    "rlhf": f"rlhf {RL} --eval_prompts 8 --reward_epochs 1 --reward_context_length 32",
    "rewrites": f"ppo_seq2seq {SEQ2SEQ} --eval_prompts 8",
    "shouting": f"grpo_shouting {SHOUTING}",
}


def make_models(folder):
    """A GPT-2, a classifier, reviews and a text."""
    save_sentiment_models(folder)
    draw, weather = random.Random(0), ["rain", "snow", "wind", "sun", "moon"]
    lines = (" ".join(draw.choice(weather) for _ in range(4)) + "\n" for _ in range(300))
    (folder / "text.txt").write_text("".join(lines))


def command(folder, name):
    """A recipe and its flags; its run goes into a folder of its own."""
    recipe, *flags = RUNS[name].format(models=folder / "models").split()
    return f"{recipe}.py", *flags, "--disable_tqdm", "true", "--output_dir", folder / name


def train_all(folder):
    """What each of two processes does; what it says and writes goes to files."""
    rank = os.environ["RANK"]
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    written = (folder / f"{rank}.written").open("w")  # for as long as this process is there

    def look(event, arguments):
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.write(f"{arguments[0]}\n")
            written.flush()

    sys.addaudithook(look)
    trainers, init = [], transformers.Trainer.__init__

    def noting(self, *args, **kwargs):
        trainers.append(self)
        init(self, *args, **kwargs)

    transformers.Trainer.__init__ = noting
    for name in RUNS:
        run_here(*command(folder, name))
        models = enumerate(map(weights, trainers))
        found = {f"{number}.{key}": value for number, own in models for key, value in own.items()}
        save_file(found, folder / f"{rank}.{name}.safetensors")
        trainers.clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs of one process, this one, and those of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        make_models(folder / "models")
    launch(Path(__file__), two, timeout=400)
    for name in [name for name in RUNS if name != "rloo"]:
        run_here(*command(one, name))
    return one, two


def files(folder):
    """Paths in a run folder, without the numbers of processes and of steps."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"(rng_state|sampled_batch|checkpoint)[_-]\d+", r"\1", path) for path in paths}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_leave_the_run_that_one_leaves(name, folders):
    one, two = folders[0] / ("grpo" if name == "rloo" else name), folders[1] / name
    found = files(two)
    assert found == files(one)
    assert {"config.yaml", "model/model.safetensors"} <= found
    transformers.AutoConfig.from_pretrained(two / "model")
    mine, others = (load_file(folders[1] / f"{rank}.{name}.safetensors") for rank in (0, 1))
    assert mine
    torch.testing.assert_close(mine, others, rtol=0, atol=0)  # each process's own models
    assert all(path.stat().st_size > 5_000 for path in two.rglob("*.png"))
    if name in ("lm", "classifier", "reward"):
        return
    per_process = 16 if name == "shouting" else 8
    steps = [(row["step"], row["episode"]) for row in load_stats(two)]  # each is one row
    assert steps == [(1, 2 * per_process), (2, 4 * per_process)]
    assert {row["step"] for row in read_rows(two / "samples.jsonl")} == {1, 2}


def test_only_the_main_process_speaks_and_writes(folders):
    two = folders[1]
    told, other, errors = ((two / name).read_text() for name in ("0.out", "1.out", "1.err"))
    for line in ("Training a GPT-2 of 1 layers", "Reward model:", "baseline: train loss"):
        assert told.count(line) == 1, line
    assert other == errors == ""
    mine, others = (
        {path for path in (two / f"{rank}.written").read_text().splitlines() if str(two) in path}
        for rank in (0, 1)
    )
    assert len(mine) > 50
    assert {path for path in others if not path.endswith("_1.pt")} == set()


@pytest.mark.parametrize(
    "name", ["compare", "compare_algorithms", "generate", "plot", "benchmark", "train_classifier"]
)
def test_what_trains_nothing_is_done_by_the_main_process_alone(name, monkeypatch, capsys):
    monkeypatch.setattr("trl_recipes.arguments._OTHERS_WAIT_SECONDS", 0)
    monkeypatch.setattr("os._exit", sys.exit)
    settings = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    settings |= {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    for key, value in settings.items():  # the last two would be set, and stay
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as end:
        run_here(f"{name}.py", "--no_such_flag")
    trains = name.startswith("train")
    assert end.value.code == (2 if trains else 0)
    assert ("Unknown flag" in capsys.readouterr().err) is trains
    logging.disable(logging.NOTSET)

    monkeypatch.setenv("RANK", "0")
    if not trains:
        processes.leave_launch()
        assert not processes.launched()
        assert not [key for key in os.environ if key.startswith(("RANK", "LOCAL_", "WORLD_SIZE"))]


@pytest.mark.slow  # that one process which is told ends all, test_several_processes.py holds
def test_the_launcher_told_to_stop_leaves_a_checkpoint_to_go_on_from(tmp_path):
    make_models(tmp_path / "models")
    recipe, *flags = command(tmp_path, "grpo")
    longer = ["--max_steps", 9999, "--save_steps", 9999]
    launcher = Recipe(*LAUNCH, RECIPES / recipe, *flags, *longer)
    rows = tmp_path / "grpo" / "all_stats.jsonl"
    launcher.wait_until(lambda: rows.is_file() and rows.stat().st_size)
    launcher.send_signal(signal.SIGTERM)
    done = launcher.finish()
    assert done.returncode != 0
    assert done.stderr.count("SIGTERM: finishing this step, then saving.") == 1
    assert done.stderr.count("--resume_from_checkpoint true") == 1
    (checkpoint,) = (tmp_path / "grpo" / "checkpoints").iterdir()
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == len(load_stats(rows))
    assert len(list(checkpoint.glob("rng_state_*.pth"))) == 2


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))

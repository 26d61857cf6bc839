"""Every recipe that trains, one after another in each process, with tiny models and few steps.

accelerate launch --config_file FILE tests/recipes_in_turn.py FOLDER
"""

import json
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from launching import run_here
from tiny_models import save_tiny_classifier, save_tiny_gpt2

SMALL = "--disable_tqdm true"
SIZES = "--num_layers 1 --num_heads 2 --hidden_size 16 --vocab_size 300 --max_steps 4"
RL = "--model_name_or_path {models}/gpt2 --dataset_name {models}/reviews.jsonl --max_steps 2"
RL += " --batch_size 8 --response_length 6 --save_steps 1"
TASK = "--reward_model {models}/classifier --eval_prompts 8"
SEQ2SEQ = "--hidden_size 16 --num_layers 1 --num_heads 2 --pretrain_steps 4 --reward_steps 4"
SEQ2SEQ += " --pretrain_batch_size 8 --reward_batch_size 8 --reward_outputs 40 --max_steps 2"
SEQ2SEQ += " --batch_size 8 --mini_batch_size 8 --ppo_epochs 1 --response_length 8"
SHOUTING = "--text_file {models}/text.txt --prompt_length 8 --response_length 16 --max_steps 2"
SHOUTING += " --eval_prompts 16 --baseline_steps 8 --batch_size 16 --num_generations 8"
SHOUTING += " --n_layer 1 --n_head 2 --n_embd 32 --context_length 24"
# Run folder: recipe and flags.
RUNS = {
    "lm": (
        "pretrain_lm",
        "--dataset_name {models}/reviews.jsonl --n_layer 1 --n_head 2 --n_embd 16 --max_steps 4"
        " --vocab_size 300",
    ),
    "classifier": ("train_classifier", "--dataset_name {models}/reviews.jsonl " + SIZES),
    "reward": ("train_reward_model", "--dataset_name {models}/reviews.jsonl --kind pairs " + SIZES),
    "ppo": ("ppo_sentiment", f"{RL} {TASK}"),
    "custom": ("ppo_custom_reward", RL),
    "grpo": ("grpo_sentiment", f"{RL} {TASK} --num_generations 4"),
    "rloo": ("rloo_sentiment", f"{RL} {TASK} --num_generations 4 --reward_once true"),
    "rlhf": ("rlhf", RL + " --eval_prompts 8 --reward_epochs 1 --reward_context_length 32"),
    "rewrites": ("ppo_seq2seq", SEQ2SEQ + " --eval_prompts 8"),
    "shouting": ("grpo_shouting", SHOUTING),
}


def make_models(folder):
    """A GPT-2, a classifier, reviews and a text."""
    save_tiny_classifier(save_tiny_gpt2(folder / "gpt2"), folder / "classifier")
    draw, words = random.Random(0), (("dull", "awful", "poor"), ("wonderful", "lovely", "great"))
    rows = [
        {"text": f"The acting was {draw.choice(words[i % 2])}, I think, {i}.", "label": i % 2}
        | {"split": "test" if i < 20 else "train"}
        for i in range(120)
    ]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weather = ["rain", "snow", "wind", "sun", "moon"]
    lines = (" ".join(draw.choice(weather) for _ in range(4)) + "\n" for _ in range(300))
    (folder / "text.txt").write_text("".join(lines))


def run(folder, *, names=RUNS):
    """Run recipes as their command lines do, each into a folder of its own."""
    for name in names:
        recipe, flags = RUNS[name]
        words = f"{flags} {SMALL} --output_dir {folder}/{name}".format(models=folder / "models")
        run_here(f"{recipe}.py", *words.split())


def main(folder):
    rank = os.environ["RANK"]
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    written = (folder / f"{rank}.written").open("w")  # for as long as this process is there

    def look(event, arguments):
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.write(f"{arguments[0]}\n")
            written.flush()

    sys.addaudithook(look)
    run(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

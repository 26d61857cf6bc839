"""Ways to get a recipe's call, YAML, data, model, folder or run wrong, and what must be said.

`tests/test_bad_inputs.py` runs each through the real command line. Commands are split like a shell
would; `{gpt2}`, `{classifier}` and `{t5}` stand for model folders. A row's files lie in the working
folder: a text, bytes, or a function that makes the file or folder.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Models = dict[str, Path]
Maker = Callable[[Path, Models], None]


class BadInput(NamedTuple):
    """One mistake: what is called, with which files, and words that the message must hold."""

    name: str
    command: str
    says: tuple[str, ...]  # the cause and the remedy
    files: dict[str, str | bytes | Maker] = {}  # noqa: RUF012  never changed


def rows(count: int = 20, **columns) -> str:
    """JSON lines with text, label and split, so that nothing need be held out."""
    made = [
        {
            "text": f"The film number {i} was fine.",
            "label": i % 2,
            "split": "test" if i < 4 else "train",
        }
        | columns
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made)


def model(name: str, *, without: str = "", **files: str | bytes) -> Maker:
    """A copy of a model folder without a file, or with others in their place (`a__b` is a.b)."""

    def make(path: Path, models: Models) -> None:
        shutil.copytree(models[name], path)
        if without:
            (path / without).unlink()
        for file, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (path / file.replace("__", ".")).write_bytes(data)

    return make


def truncated(name: str) -> Maker:
    """A model folder whose weights end in the middle."""

    def make(path: Path, models: Models) -> None:
        shutil.copytree(models[name], path)
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])

    return make


def pickled(name: str) -> Maker:
    """A model folder whose weights are a pickle file."""
    return model(name, without="model.safetensors", pytorch_model__bin=b"\x80\x02N.")


def wordy(path: Path, models: Models) -> None:
    """A GPT-2 whose tokenizer knows more tokens than it."""
    from transformers import AutoTokenizer

    shutil.copytree(models["gpt2"], path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(40)])
    tokenizer.save_pretrained(path)


def foreign_weights(path: Path, models: Models) -> None:
    """A GPT-2 with the weights of the classifier."""
    shutil.copytree(models["gpt2"], path)
    shutil.copy(models["classifier"] / "model.safetensors", path)


def own_code(path: Path, models: Models) -> None:
    """A model of a kind that transformers does not know, with code for it."""
    shutil.copytree(models["gpt2"], path)
    config = json.loads((path / "config.json").read_text()) | {"model_type": "own_kind"}
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text("open('ran', 'w')\n")


def run(more: str = "", **files: str | bytes) -> Maker:
    """A run folder with statistics and a model; more settings, and files as for `model`."""

    def make(path: Path, models: Models) -> None:
        (path / "model").mkdir(parents=True)
        shutil.copytree(models["gpt2"], path / "model", dirs_exist_ok=True)
        settings = {"model_name_or_path": models["gpt2"], "reward_model": models["classifier"]}
        settings |= {"dataset_name": "data.jsonl", "response_length": 4}
        config = "# A run of trl_recipes.\n" + "".join(f"{k}: {v}\n" for k, v in settings.items())
        config += more
        stats = "".join(json.dumps({"step": i, "env/reward_mean": 0.5}) + "\n" for i in (1, 2))
        contents = {"config__yaml": config, "all_stats__jsonl": stats} | files
        for file, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            (path / file.replace("__", ".")).write_bytes(data)

    return make


def folder(path: Path, models: Models) -> None:
    """An empty folder."""
    path.mkdir()


def runs_from_elsewhere(path: Path, models: Models) -> None:
    """A run that started from another model."""
    run(more=f"model_name_or_path: {models['t5']}\n")(path, models)


def begun(path: Path, models: Models) -> None:
    """A stage of a chain that was begun with other settings."""
    path.mkdir(parents=True)
    (path / "stage.json").write_text('{"settings": {"reward_epochs": 9}, "result": null}')


def without_model(path: Path, models: Models) -> None:
    """A run that was killed before it saved its model."""
    run()(path, models)
    shutil.rmtree(path / "model")


PPO = (
    "ppo_sentiment.py --model_name_or_path {gpt2} --reward_model {classifier} --output_dir out "
    "--dataset_name data.jsonl --max_steps 1 --batch_size 4 --eval_prompts 4 --response_length 6 "
)
GENERATE = "generate.py --model {gpt2} --reward_model {classifier} --prompt 'The film' "
COMPARE = "compare.py --runs run --max_prompts 4 --output_dir out "
PLOT = "plot.py --runs run "
LM = "pretrain_lm.py --dataset_name data.jsonl --output_dir out "
CLASSIFIER = "train_classifier.py --dataset_name data.jsonl --output_dir out "
VERSUS = (
    "compare_algorithms.py --model_name_or_path {gpt2} --reward_model {classifier} "
    "--dataset_name data.jsonl --tokens 400 --batch 8 --response_length 6 --eval_prompts 4 "
)
OTHER = '{"algorithm": "ppo", "seed": 0, "task": {"tokens": 9}}'
REWARD_MODEL = "train_reward_model.py --dataset_name data.jsonl --output_dir out "
RLHF = (
    "rlhf.py --model_name_or_path {gpt2} --dataset_name data.jsonl --output_dir out --max_steps 1 "
    "--batch_size 4 --response_length 6 "
)
SHOUT = "grpo_shouting.py --text_file text.txt --output_dir out "
ONE_RUN = {"run": run()}
TEXT = {"text.txt": "A line of text that is long enough.\n" * 20}

FLAGS = [
    BadInput("misspelt flag", PLOT + "--outptu a.png", ("`--outptu`", "`--output`")),
    BadInput("unknown flag", PLOT + "--zzz", ("Unknown flag `--zzz`", "--help")),
    BadInput("flag of another recipe", PLOT + "--seed 1", ("Unknown flag `--seed`", "--help")),
    BadInput(
        "word without flag", PLOT + "--output a.png film", ("`film`", "without a flag", "--help")
    ),
    BadInput("flag without value", PLOT + "--output", ("--output", "expected one", "--help")),
    BadInput("no run named", "plot.py", ("required", "--runs")),
    BadInput("text for a number", GENERATE + "--seed one", ("--seed", "int", "'one'")),
    BadInput("not a choice", PPO + "--change_score 2", ("--change_score", "2", "choose from")),
    BadInput("out of range", PPO + "--temperature 0", ("`temperature`", "greater than 0")),
    BadInput("negative rate", PPO + "--learning_rate -1", ("`learning_rate`", "-1", "0 or more")),
    BadInput("heads of none", LM + "--n_head 0", ("`n_head`", "1 or more")),
    BadInput("no output folder", PPO + "--output_dir ''", ("--output_dir is empty", "Give")),
    BadInput(
        "two names that differ",
        PPO + "--ppo_epochs 2 --num_ppo_epochs 3",
        ("`ppo_epochs` (2)", "`num_ppo_epochs` (3)", "Give one"),
    ),
    BadInput("batch does not divide", PPO + "--mini_batch_size 3", ("`batch_size` (4)", "3 or 6")),
    BadInput(
        "responses longer than the context",
        PPO + "--response_length 60",
        ("context holds 64", "Lower `response_length` to 56"),
    ),
    BadInput(
        "limits crossed", PPO + "--response_length 3", ("`min_response_length` (4)", "between 1")
    ),
    BadInput("prompt lengths crossed", PPO + "--min_prompt_length 9", ("[9, 9)", "Use 0 <=")),
    BadInput("float16", PPO + "--fp16 true", ("`fp16`", "`bf16`")),
    BadInput("unknown tracker", PPO + "--report_to nope", ("report_to", "nope", "Install")),
    BadInput(
        "no such module for LoRA",
        PPO + "--use_peft true --lora_target_modules nope",
        ("lora_target_modules", "nope", "c_attn"),
    ),
    BadInput("empty prompt", GENERATE + "--prompt ''", ("--prompt is empty", "at least one word")),
    BadInput(
        "answer longer than the context",
        GENERATE + "--max_new_tokens 99",
        ("context holds 64", "Short"),
    ),
]

YAML = [
    BadInput("no such YAML", PLOT + "--config no.yaml", ("--config", "no.yaml", "Check the path")),
    BadInput("a folder for YAML", PLOT + "--config .", ("--config", "directory", "file")),
    BadInput("no YAML after --config", PLOT + "--config", ("--config", "YAML file")),
    BadInput("two YAML files", PLOT + "--config a.yaml --config b.yaml", ("2 times", "Give one")),
    BadInput("broken YAML", PLOT + "--config a.yaml", ("line 2", "Fix"), {"a.yaml": "runs: [a\n"}),
    BadInput(
        "a tab", PLOT + "--config a.yaml", ("line 2", "'\\t'", "Fix"), {"a.yaml": "a:\n\tb: 1\n"}
    ),
    BadInput(
        "a list", PLOT + "--config a.yaml", ("a list", "`flag: value`"), {"a.yaml": "- runs\n"}
    ),
    BadInput(
        "a key twice",
        PLOT + "--config a.yaml",
        ("`output`", "twice"),
        {"a.yaml": "output: a\noutput: b\n"},
    ),
    BadInput(
        "bytes that are no text",
        PLOT + "--config a.yaml",
        ("a.yaml", "UTF-8"),
        {"a.yaml": b"\xff\xfe"},
    ),
    BadInput("empty YAML", "plot.py --config a.yaml", ("required", "--runs"), {"a.yaml": ""}),
    BadInput(
        "misspelt key",
        PLOT + "--config a.yaml",
        ("`outpt`", "a.yaml", "`output`"),
        {"a.yaml": "outpt: a.png\n"},
    ),
    BadInput(
        "wrong type in YAML",
        GENERATE + "--config a.yaml",
        ("`seed`", "'one'", "number"),
        {"a.yaml": "seed: one\n"},
    ),
    BadInput(
        "bare no in YAML",
        PLOT + "--config a.yaml",
        ("`output`", "quotes"),
        {"a.yaml": "output: no"},
    ),
    BadInput(
        "keys for a value",
        PLOT + "--config a.yaml",
        ("`output`", "takes one value"),
        {"a.yaml": "output: {a: 1}\n"},
    ),
]

DATA = [
    BadInput("no such data", LM + "--dataset_name no.csv", ("`no.csv`", "Check the path")),
    BadInput("a kind unknown", LM + "--dataset_name a.xlsx", (".csv", "xlsx"), {"a.xlsx": b"PK"}),
    BadInput("empty file", LM, ("`data.jsonl`", "no rows", "at least one"), {"data.jsonl": ""}),
    BadInput(
        "no text column",
        LM,
        ("`text`", "a, split", "Name"),
        {"data.jsonl": '{"a": "b", "split": "train"}\n{"a": "b", "split": "test"}\n'},
    ),
    BadInput("column unknown", PPO + "--text_column review", ("`review`", "text, label", "Name")),
    BadInput(
        "row without text",
        LM,
        ("row", "None", "Fix the row"),
        {"data.jsonl": rows() + rows(9, text=None)},
    ),
    BadInput("broken JSON", LM, ("row 20", "Fix"), {"data.jsonl": rows() + '{"text": "a\n'}),
    BadInput(
        "ragged csv",
        LM + "--dataset_name a.csv",
        ("line 3", "saw 2", "Quote"),
        {"a.csv": "text\na\nb,c\n"},
    ),
    BadInput(
        "not UTF-8",
        LM + "--dataset_name a.txt",
        ("byte 3", "Save it as UTF-8"),
        {"a.txt": b"caf\xe9\n" * 9},
    ),
    BadInput(
        "no parquet",
        LM + "--dataset_name a.parquet",
        ("a.parquet", "write them again"),
        {"a.parquet": b"x" * 99},
    ),
    BadInput(
        "all prompts empty",
        PPO,
        ("empty after cutting", "not empty"),
        {"data.jsonl": rows(text=" ")},
    ),
    BadInput(
        "conversations without a chat template",
        PPO,
        ("`prompt` holds conversations", "no chat template", "Use a chat model"),
        {"data.jsonl": rows(prompt=[{"role": "user", "content": "Hello"}])},
    ),
    BadInput("one row", PPO, ("only 1 row", "more rows"), {"data.jsonl": '{"text": "A film."}\n'}),
    BadInput("fewer prompts than a batch", PPO + "--batch_size 64", ("16 prompts", "Lower `batch")),
    BadInput(
        "prompts longer than the context",
        PPO + "--max_prompt_length 70",
        ("context holds 64", "Cut the prompts to 58"),
        {"data.jsonl": rows(text="A long film. " * 90)},
    ),
    BadInput("no labels", CLASSIFIER + "--label_column mood", ("`mood`", "text, label, split")),
    BadInput(
        "unknown label",
        CLASSIFIER,
        ("'so so' as label", "Name all"),
        {"data.jsonl": rows(label="so so")},
    ),
    BadInput(
        "labels of one class",
        CLASSIFIER,
        ("POSITIVE", "both", "label"),
        {"data.jsonl": rows(label=1)},
    ),
]

MODELS = [
    BadInput("no such model", GENERATE + "--model ./none", ("`./none`", "Check the path")),
    BadInput(
        "model not in the cache", PPO + "--model_name_or_path nobody/none", ("offline", "folder")
    ),
    BadInput(
        "no config.json", GENERATE + "--model m", ("config.json", "save_pretrained"), {"m": folder}
    ),
    BadInput(
        "broken config.json",
        GENERATE + "--model m",
        ("`m`", "again"),
        {"m": model("gpt2", config__json="{")},
    ),
    BadInput(
        "truncated weights",
        PPO + "--model_name_or_path m",
        ("m/model.safetensors", "again"),
        {"m": truncated("gpt2")},
    ),
    BadInput(
        "no weights",
        PPO + "--model_name_or_path m",
        ("no weights", "again"),
        {"m": model("gpt2", without="model.safetensors")},
    ),
    BadInput(
        "pickled weights",
        PPO + "--model_name_or_path m",
        ("pickle", "convert", "GPT2LMHeadModel"),
        {"m": pickled("gpt2")},
    ),
    BadInput(
        "pickled classifier",
        GENERATE + "--reward_model m",
        ("pickle", "convert", "Roberta"),
        {"m": pickled("classifier")},
    ),
    BadInput(
        "pickled base model",
        LM + "--model_name_or_path m",
        ("pickle", "convert"),
        {"m": pickled("gpt2")},
    ),
    BadInput(
        "no tokenizer",
        GENERATE + "--model m",
        ("`m`", "tokenizer", "save_pretrained"),
        {"m": model("gpt2", without="tokenizer.json")},
    ),
    BadInput(
        "weights of another model",
        PPO + "--model_name_or_path m",
        ("`m`", "lacks weights", "again"),
        {"m": foreign_weights},
    ),
    BadInput(
        "broken tokenizer",
        PPO + "--model_name_or_path m",
        ("`m`", "tokenizer", "again"),
        {"m": model("gpt2", tokenizer__json="{")},
    ),
    BadInput(
        "tokenizer knows more than the model",
        PPO + "--model_name_or_path m",
        ("the model only", "own tokenizer"),
        {"m": wordy},
    ),
    BadInput(
        "encoder-decoder for a causal model",
        PPO + "--model_name_or_path {t5}",
        ("encoder-decoder", "causal", "ppo_seq2seq.py"),
    ),
    BadInput(
        "classifier for a language model",
        PPO + "--model_name_or_path {classifier}",
        ("RobertaForSequenceClassification", "language model"),
    ),
    BadInput(
        "language model for a classifier",
        GENERATE + "--reward_model {gpt2}",
        ("GPT2LMHeadModel", "train_classifier.py"),
    ),
    BadInput(
        "label that the classifier lacks", PPO + "--label HAPPY", ("'HAPPY'", "NEGATIVE, POSITIVE")
    ),
    BadInput(
        "code of a model's own",
        GENERATE + "--model m",
        ("own code", "--trust_remote_code"),
        {"m": own_code},
    ),
]

FOLDERS = [
    BadInput(
        "output is a file", PPO + "--output_dir data.jsonl", ("`data.jsonl`", "another folder")
    ),
    BadInput(
        "output below a file", LM + "--output_dir data.jsonl/out", ("data.jsonl", "another folder")
    ),
    BadInput(
        "output holds a run", PPO + "--output_dir run", ("already holds", "--overwrite"), ONE_RUN
    ),
    BadInput(
        "output holds something else",
        CLASSIFIER + "--output_dir a",
        ("no config.yaml of a run", "another folder"),
        {"a": model("gpt2"), "a/model": folder, "a/model/x": "mine"},
    ),
    BadInput(
        "a mistake beside --overwrite",
        LM + "--output_dir run --overwrite_output_dir true --dataset_name no.csv",
        ("`no.csv`", "path"),
        ONE_RUN,
    ),
    BadInput(
        "comparison into a file",
        COMPARE + "--output_dir data.jsonl",
        ("`data.jsonl`", "another folder"),
        ONE_RUN,
    ),
    BadInput("picture without its kind", PLOT + "--output run", ("`run`", ".png"), ONE_RUN),
    BadInput(
        "picture below a file",
        PLOT + "--output data.jsonl/a.png",
        ("data.jsonl/a.png", "another"),
        ONE_RUN,
    ),
    BadInput("picture of no known kind", PLOT + "--output a.xyz", ("a.xyz", ".png"), ONE_RUN),
]

RUNS = [
    BadInput("no run", PLOT, ("No statistics", "folder of a run")),
    BadInput(
        "run without steps",
        PLOT,
        ("no rows yet", "after each step"),
        {"run": run(all_stats__jsonl="")},
    ),
    BadInput(
        "broken statistics",
        PLOT,
        ("line 1", "Fix"),
        {"run": run(all_stats__jsonl="{'step': 1}\n{}\n")},
    ),
    BadInput(
        "statistics that are no numbers",
        PLOT,
        ("row 1", "'one'", "Fix"),
        {"run": run(all_stats__jsonl='{"step": "one"}\n')},
    ),
    BadInput("broken settings", PLOT, ("config.yaml", "Fix"), {"run": run(config__yaml="a: [\n")}),
    BadInput(
        "settings that are no text",
        PLOT,
        ("config.yaml", "UTF-8"),
        {"run": run(config__yaml=b"\xff")},
    ),
    BadInput("one run twice", "plot.py run ./run", ("2 times", "Give it once"), ONE_RUN),
    BadInput("no run to compare", COMPARE, ("holds no run", "Check the folder")),
    BadInput(
        "run without a model",
        COMPARE,
        ("`run`", "no model", "finished run"),
        {"run": without_model},
    ),
    BadInput(
        "runs of several models",
        COMPARE + "--runs run other",
        ("several models", "--reference"),
        ONE_RUN | {"other": runs_from_elsewhere},
    ),
    BadInput(
        "settings of a wrong kind",
        COMPARE,
        ("`response_length`", "'long'", "config.yaml", "Fix"),
        {"run": run(more="response_length: long\n")},
    ),
]


def stopped(**files: str) -> Maker:
    """A run with one checkpoint, of these files."""

    def make(path: Path, models: Models) -> None:
        run()(path, models)
        checkpoint = path / "checkpoints" / "checkpoint-1"
        checkpoint.mkdir(parents=True)
        for file, content in files.items():
            (checkpoint / file.replace("__", ".")).write_text(content)

    return make


RESUMING = [
    BadInput(
        "no run to resume",
        PPO + "--resume_from_checkpoint true",
        ("--resume_from_checkpoint", "holds no run", "--output_dir"),
    ),
    BadInput(
        "both resume and overwrite",
        PPO + "--resume_from_checkpoint true --overwrite_output_dir",
        ("both given", "Choose one"),
        {"out": run()},
    ),
    BadInput(
        "a checkpoint that is none",
        PPO + "--resume_from_checkpoint data.jsonl",
        ("`data.jsonl` is no checkpoint", "Give `true`"),
        {"out": run()},
    ),
    BadInput(
        "a damaged checkpoint",
        PPO + "--resume_from_checkpoint out/checkpoints/checkpoint-1",
        ("is damaged", "`optimizer.pt` is cut short", "Give `true`"),
        {"out": stopped(trainer_state__json="{}", optimizer__pt="PK")},
    ),
    BadInput(
        "every checkpoint damaged",
        PPO + "--resume_from_checkpoint true",
        ("every checkpoint", "`trainer_state.json` is cut short", "--overwrite_output_dir"),
        {"out": stopped(trainer_state__json="[")},
    ),
    BadInput(
        "no run to resume pretraining",
        LM + "--resume_from_checkpoint true",
        ("--resume_from_checkpoint", "holds no run", "--output_dir"),
    ),
]

CUSTOM = PPO.replace("ppo_sentiment.py", "ppo_custom_reward.py")
CUSTOM = CUSTOM.replace("--reward_model {classifier} ", "")
SHORT = "def short(completions, **_):\n    return [0.0 for _ in completions]\n"
PRETRAINING = [
    BadInput(
        "all texts empty",
        LM,
        ("empty", "text"),
        {"data.jsonl": rows(text=" ")},
    ),
    BadInput(
        "an encoder-decoder to train on",
        LM + "--model_name_or_path {t5}",
        ("`", "encoder-decoder", "causal"),
    ),
    BadInput(
        "an encoder-decoder to classify with",
        CLASSIFIER + "--model_name_or_path {t5}",
        ("--model_name_or_path", "encoder-decoder", "such as BERT"),
    ),
    BadInput(
        "a checkpoint that transformers did not finish",
        LM + "--resume_from_checkpoint out/nope",
        ("--resume_from_checkpoint", "is no checkpoint", "Give `true`"),
        {"out": run()},
    ),
]
REWARDS = [
    BadInput(
        "no such file of rewards",
        PPO + "--reward_funcs mine.py:short",
        ("--reward_funcs", "mine.py", "Check"),
    ),
    BadInput(
        "no such function",
        PPO + "--reward_funcs mine.py:shrot",
        ("`shrot`", "short"),
        {"mine.py": SHORT},
    ),
    BadInput(
        "a reward that cannot be called",
        PPO + "--reward_funcs mine.py:limit",
        ("`mine.py:limit`", "cannot be called"),
        {"mine.py": "limit = 3\n"},
    ),
    BadInput(
        "a file of rewards that is not python",
        PPO + "--reward_funcs mine.py:short",
        ("`mine.py`, line 1", "Fix"),
        {"mine.py": "def short(:\n"},
    ),
    BadInput(
        "a reward of nan",
        PPO + "--reward_funcs mine.py:short",
        ("`short`", "nan", "finite number"),
        {"mine.py": SHORT.replace("0.0", "float('nan')")},
    ),
    BadInput(
        "a reward of text",
        PPO + "--reward_funcs mine.py:short",
        ("`short`", "'good'", "finite number"),
        {"mine.py": SHORT.replace("0.0", "'good'")},
    ),
    BadInput(
        "one reward for a batch",
        PPO + "--reward_funcs mine.py:short",
        ("`short`", "must return a list", "one a completion"),
        {"mine.py": "def short(completions, **_):\n    return 1.0\n"},
    ),
    BadInput(
        "a reward that raises",
        PPO + "--reward_funcs mine.py:short",
        ("`short` raised KeyError", "mine.py, line 2", "begins with", "Fix"),
        {"mine.py": "def short(completions, **_):\n    return {}['x']\n"},
    ),
    BadInput(
        "a reward that wants a column",
        PPO + "--reward_funcs mine.py:short",
        ("`answer`", "no such column", "There are"),
        {"mine.py": "def short(completions, answer):\n    return [0.0] * len(answer)\n"},
    ),
    BadInput(
        "weights of another number",
        PPO + "--reward_funcs mine.py:short --reward_weights 1 2",
        ("2 entries", "Give one weight"),
        {"mine.py": SHORT},
    ),
    BadInput(
        "an empty reference text",
        CUSTOM + "--reference_text ''",
        ("`reference_text` is ''", "Give a text"),
    ),
    BadInput(
        "a reference text that is no file",
        CUSTOM + "--reference_text nowhere.txt",
        ("`nowhere.txt`", "could not be read"),
    ),
    BadInput("a negative length", CUSTOM + "--max_length -3", ("max_length is -3", "0 or more")),
    BadInput("an unknown version", CUSTOM + "--version 3", ("--version", "1, 2")),
]

GRPO = PPO.replace("ppo_sentiment.py", "grpo_sentiment.py") + "--num_generations 2 "
RLOO = GRPO.replace("grpo_sentiment.py", "rloo_sentiment.py")

GROUPS = [
    BadInput(
        "groups that do not fill the batch",
        GRPO + "--num_generations 3",
        ("`num_generations` (3)", "the 4 responses", "2 or 4", "3 or 6"),
    ),
    BadInput(
        "groups of one", RLOO + "--num_generations 1", ("`num_generations` is 1", "2 or more")
    ),
    BadInput(
        "groups of an encoder-decoder",
        GRPO + "--model_name_or_path {t5}",
        ("encoder-decoder", "recipes/ppo_seq2seq.py"),
    ),
    BadInput(
        "no room for a group's responses",
        RLOO + "--response_length 70",
        ("holds 64", "Lower `response_length`"),
    ),
    BadInput(
        "fewer prompts than groups",
        GRPO + "--batch_size 64",
        ("16 prompts", "32 of one batch", "Lower `batch_size`"),
    ),
    BadInput("a KL that is rewarded", RLOO + "--beta -1", ("`beta` is -1", "0 or more")),
    BadInput("no such loss weight", GRPO + "--bta 1", ("`--bta`", "`--beta`")),
    BadInput(
        "a reward of nan in groups",
        GRPO + "--reward_funcs mine.py:short",
        ("`short`", "nan", "finite number"),
        {"mine.py": SHORT.replace("0.0", "float('nan')")},
    ),
    BadInput(
        "no group run to go on with",
        GRPO + "--resume_from_checkpoint true",
        ("holds no run to go on with", "--output_dir"),
    ),
]

REWARD_MODELS = [
    BadInput(
        "pairs that are equal",
        REWARD_MODEL,
        ("16 of 16 pairs", "chosen equal to rejected", "no pair is left"),
        {"data.jsonl": rows(chosen="Yes.", rejected="Yes.")},
    ),
    BadInput(
        "a number that is none",
        REWARD_MODEL + "--kind number",
        ("row 1", "nan", "Fix the row"),
        {"data.jsonl": rows(label=float("nan"))},
    ),
    BadInput(
        "an encoder-decoder to score texts",
        REWARD_MODEL + "--model_name_or_path {t5}",
        ("encoder-decoder (t5)", "such as BERT"),
    ),
    BadInput(
        "nothing to generate with",
        RLHF + "--task generate --prompt 'The film'",
        ("no finished reward model", "Train first"),
    ),
    BadInput(
        "a chain of other settings",
        RLHF + "--output_dir run",
        ("holds the reward model of other settings", "reward_epochs was 9", "--overwrite"),
        {"run/reward": begun},
    ),
]

REWRITE = (
    "ppo_seq2seq.py --model_name_or_path {t5} --dataset_name data.jsonl --output_dir out "
    "--pretrain_steps 1 --reward_steps 1 --reward_outputs 20 --max_steps 1 --batch_size 4 "
    "--response_length 6 "
)
PAIRS = {"data.jsonl": rows(source="The film was dull.", target="The film was fine.")}
SEQ2SEQ = [  # more of them, without a process each, in test_ppo_seq2seq.py
    BadInput("pairs without sources", REWRITE, ("`source`", "text, label, split", "Name")),
    BadInput(
        "an empty target",
        REWRITE,
        ("row 17", "`target`", "empty", "Fix"),
        {"data.jsonl": PAIRS["data.jsonl"] + rows(9, source="A film.", target=" ")},
    ),
    BadInput(
        "pairs of different number",
        REWRITE + "--dataset_name a.txt --target_file b.txt",
        ("3 lines", "2", "equal length"),
        {"a.txt": "a\nb\nc\n", "b.txt": "a\nb\n"},
    ),
    BadInput(
        "a source longer than the encoder's context",
        REWRITE + "--too_long error",
        ("source 1", "60", "--too_long cut"),
        {"data.jsonl": rows(source="A long film. " * 40, target="It was fine.")},
    ),
    BadInput(
        "a causal model for an encoder-decoder",
        REWRITE + "--model_name_or_path {gpt2}",
        ("causal model", "encoder-decoder", "ppo_sentiment.py"),
        PAIRS,
    ),
]

BENCHMARK = [
    BadInput("an unknown size", "benchmark.py --size huge", ("--size", "tiny", "small")),
    BadInput("no batch", "benchmark.py --size tiny --batch 0", ("batch", "at least 1")),
    BadInput("an unknown precision", "benchmark.py --precision fp8", ("--precision", "bf16")),
]

ALGORITHMS = [  # more of them, without a process each, in test_sweep.py
    BadInput("no data for the algorithms", VERSUS + "--dataset_name no.csv", ("`no.csv`", "path")),
    BadInput(
        "runs of another comparison",
        VERSUS + "--output_dir versus --seeds 0",
        ("tokens 9, now 400", "another folder"),
        {"versus": folder, "versus/ppo-seed0": folder, "versus/ppo-seed0/settings.json": OTHER},
    ),
]

SHOUTING = [
    BadInput("no text file", SHOUT, ("--text_file", "no file `text.txt`", "Check the path")),
    BadInput("an empty text", SHOUT, ("holds no text", "Give a text file"), {"text.txt": "\n"}),
    BadInput("no text but bytes", SHOUT, ("byte 1 is 0", "UTF-8"), {"text.txt": b"a\0b"}),
    BadInput("a text in Latin-1", SHOUT, ("not UTF-8 at byte 3", "Save"), {"text.txt": b"caf\xe9"}),
    BadInput(
        "a text shorter than its contexts",
        SHOUT,
        ("`text.txt` has 9 characters", "need 192", "--context_length (96)"),
        {"text.txt": "too short"},
    ),
    BadInput(
        "heads that do not divide the width",
        SHOUT + "--n_embd 130",
        ("--n_embd (130)", "--n_head (4)", "Use 128"),
        TEXT,
    ),
    BadInput(
        "a context that holds no completion",
        SHOUT + "--context_length 80",
        ("--context_length (80)", "--prompt_length 40", "88 or more"),
        TEXT,
    ),
    BadInput(
        "a reward to shout for that is none",
        SHOUT + "--reward_funcs LoudReward",
        ("--reward_funcs", "LoudReward", "UppercaseReward"),
        TEXT,
    ),
    BadInput(
        "a group that does not divide the batch of shouts",
        SHOUT + "--num_generations 7",
        ("`num_generations` (7)", "63 or 70"),
        TEXT,
    ),
    BadInput(
        "a stage before its time",
        SHOUT + "--stage grpo",
        ("no finished tokenizer", "--stage tokenizer first"),
        TEXT,
    ),
    BadInput("a stage that is none", SHOUT + "--stage shout", ("--stage", "tokenizer"), TEXT),
]

BAD_INPUTS = [*FLAGS, *YAML, *DATA, *MODELS, *FOLDERS, *RUNS, *RESUMING]
BAD_INPUTS += [*PRETRAINING, *REWARDS, *SEQ2SEQ, *GROUPS, *REWARD_MODELS, *BENCHMARK]
BAD_INPUTS += [*ALGORITHMS, *SHOUTING]

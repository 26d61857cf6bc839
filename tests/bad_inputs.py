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
    says: list[str]  # the cause and the remedy
    files: dict[str, str | bytes | Maker]


def bad(name: str, command: str, says: str, **files: str | bytes | Maker) -> BadInput:
    """A mistake, its words divided by ` | `; the file `a.b` is given as `a__b`."""
    named = {file.replace("__", "."): content for file, content in files.items()}
    return BadInput(name, command, says.split(" | "), named)


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
YAML_FILE = PLOT + "--config a.yaml"
POLICY = PPO + "--model_name_or_path m"
MODEL = GENERATE + "--model m"
REWARDED = PPO + "--reward_funcs mine.py:short"
RESUME = PPO + "--resume_from_checkpoint true"
LM = "pretrain_lm.py --dataset_name data.jsonl --output_dir out "
CLASSIFIER = "train_classifier.py --dataset_name data.jsonl --output_dir out "
VERSUS = (
    "compare_algorithms.py --model_name_or_path {gpt2} --reward_model {classifier} "
    "--dataset_name data.jsonl --tokens 400 --batch 8 --response_length 6 --eval_prompts 4 "
)
OTHER = '{"settings": {"seed": 0, "tokens": 9}, "result": null}'
REWARD_MODEL = "train_reward_model.py --dataset_name data.jsonl --output_dir out "
RLHF = (
    "rlhf.py --model_name_or_path {gpt2} --dataset_name data.jsonl --output_dir out --max_steps 1 "
    "--batch_size 4 --response_length 6 "
)
SHOUT = "grpo_shouting.py --text_file text.txt --output_dir out "
ONE_RUN = {"run": run()}
TEXT = {"text.txt": "A line of text that is long enough.\n" * 20}

YAML = [
    bad("broken YAML", YAML_FILE, "line 2 | fix the file", a__yaml="runs: [a\n"),
    bad("misspelled key", YAML_FILE, "`outpt` | a.yaml | `output`", a__yaml="outpt: a.png\n"),
    bad(
        "wrong type in YAML",
        GENERATE + "--config a.yaml",
        "`seed` | invalid int | 'one'",
        a__yaml="seed: one\n",
    ),
    bad("bare no in YAML", YAML_FILE, "`output` | quotes", a__yaml="output: no"),
]

DATA = [
    bad(
        "no text column",
        LM,
        "`text` | a, split | Name",
        data__jsonl='{"a": "b", "split": "train"}\n{"a": "b", "split": "test"}\n',
    ),
    bad(
        "row without text", LM, "row | None | Fix the row", data__jsonl=rows() + rows(9, text=None)
    ),
    bad("broken JSON", LM, "row 20 | Fix", data__jsonl=rows() + '{"text": "a\n'),
    bad(
        "not UTF-8",
        LM + "--dataset_name a.txt",
        "position 3 | UTF-8",
        a__txt=b"caf\xe9\n" * 9,
    ),
    bad("all prompts empty", PPO, "empty after cutting | not empty", data__jsonl=rows(text=" ")),
    bad(
        "conversations without a chat template",
        PPO,
        "`prompt` holds conversations | no chat template | Use a chat model",
        data__jsonl=rows(prompt=[{"role": "user", "content": "Hello"}]),
    ),
    bad("one row", PPO, "only 1 row | more rows", data__jsonl='{"text": "A film."}\n'),
    bad(
        "prompts longer than the context",
        PPO + "--max_prompt_length 70",
        "context holds 64 | Cut the prompts to 58",
        data__jsonl=rows(text="A long film. " * 90),
    ),
    bad(
        "unknown label", CLASSIFIER, "'so so' as label | Name all", data__jsonl=rows(label="so so")
    ),
    bad("labels of one class", CLASSIFIER, "POSITIVE | both | label", data__jsonl=rows(label=1)),
]

MODELS = [
    bad("no config.json", MODEL, "config.json | save_pretrained", m=folder),
    bad("broken config.json", MODEL, "`m` | again", m=model("gpt2", config__json="{")),
    bad("truncated weights", POLICY, "m/model.safetensors | again", m=truncated("gpt2")),
    bad("no weights", POLICY, "no weights | again", m=model("gpt2", without="model.safetensors")),
    bad("pickled weights", POLICY, "pickle | convert", m=pickled("gpt2")),
    bad(
        "pickled classifier",
        GENERATE + "--reward_model m",
        "pickle | convert",
        m=pickled("classifier"),
    ),
    bad("pickled base model", LM + "--model_name_or_path m", "pickle | convert", m=pickled("gpt2")),
    bad(
        "no tokenizer",
        MODEL,
        "`m` | tokenizer | save_pretrained",
        m=model("gpt2", without="tokenizer.json"),
    ),
    bad("weights of another model", POLICY, "`m` | lacks weights | again", m=foreign_weights),
    bad(
        "broken tokenizer", POLICY, "`m` | tokenizer | again", m=model("gpt2", tokenizer__json="{")
    ),
    bad("tokenizer knows more than the model", POLICY, "the model only | own tokenizer", m=wordy),
    bad("code of a model's own", MODEL, "own code | --trust_remote_code", m=own_code),
]

FOLDERS = [
    bad("output holds a run", PPO + "--output_dir run", "already holds | --overwrite", **ONE_RUN),
    bad("output holds a model", LM + "--output_dir run", "already holds | --overwrite", **ONE_RUN),
    bad(
        "output holds something else",
        CLASSIFIER + "--output_dir a",
        "no config.yaml of a run | another folder",
        a=model("gpt2"),
        **{"a/model": folder, "a/model/x": "mine"},
    ),
    bad(
        "a mistake beside --overwrite",
        LM + "--output_dir run --overwrite_output_dir true --dataset_name no.csv",
        "`no.csv` | path",
        **ONE_RUN,
    ),
    bad(
        "comparison into a file",
        COMPARE + "--output_dir data.jsonl",
        "`data.jsonl` | another folder",
        **ONE_RUN,
    ),
    bad("picture without its kind", PLOT + "--output run", "`run` | .png", **ONE_RUN),
    bad(
        "picture below a file",
        PLOT + "--output data.jsonl/a.png",
        "data.jsonl/a.png | another",
        **ONE_RUN,
    ),
    bad("picture of no known kind", PLOT + "--output a.xyz", "a.xyz | .png", **ONE_RUN),
]

RUNS = [
    bad("run without steps", PLOT, "no rows yet | after each step", run=run(all_stats__jsonl="")),
    bad("broken statistics", PLOT, "line 1 | Fix", run=run(all_stats__jsonl="{'step': 1}\n{}\n")),
    bad("broken settings", PLOT, "config.yaml | Fix", run=run(config__yaml="a: [\n")),
    bad("one run twice", "plot.py run ./run", "2 times | Give it once", **ONE_RUN),
    bad("run without a model", COMPARE, "`run` | not a model | finished run", run=without_model),
    bad(
        "runs of several models",
        COMPARE + "--runs run other",
        "several models | --reference",
        **(ONE_RUN | {"other": runs_from_elsewhere}),
    ),
    bad(
        "settings of a wrong kind",
        COMPARE,
        "`response_length` | 'long' | config.yaml | Fix",
        run=run(more="response_length: long\n"),
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
    bad(
        "both resume and overwrite",
        PPO + "--resume_from_checkpoint true --overwrite_output_dir",
        "both given | Choose one",
        out=run(),
    ),
    bad(
        "a checkpoint that is none",
        PPO + "--resume_from_checkpoint data.jsonl",
        "`data.jsonl` is no whole checkpoint | Give `true`",
        out=run(),
    ),
    bad(
        "a damaged checkpoint",
        PPO + "--resume_from_checkpoint out/checkpoints/checkpoint-1",
        "is no whole checkpoint | `optimizer.pt` is cut short | Give `true`",
        out=stopped(trainer_state__json="{}", optimizer__pt="PK"),
    ),
    bad(
        "every checkpoint damaged",
        RESUME,
        "no whole checkpoint | `trainer_state.json` is cut short | --overwrite_output_dir",
        out=stopped(trainer_state__json="["),
    ),
]

CUSTOM = PPO.replace("ppo_sentiment.py", "ppo_custom_reward.py")
CUSTOM = CUSTOM.replace("--reward_model {classifier} ", "")
SHORT = "def short(completions, **_):\n    return [0.0 for _ in completions]\n"
PRETRAINING = [
    bad("all texts empty", LM, "empty | text", data__jsonl=rows(text=" ")),
]
REWARDS = [
    bad(
        "a file of rewards that is not python",
        REWARDED,
        "`mine.py`, line 1 | Fix",
        mine__py="def short(:\n",
    ),
    bad(
        "a reward of nan",
        REWARDED,
        "`short` | nan | finite number",
        mine__py=SHORT.replace("0.0", "float('nan')"),
    ),
    bad(
        "a reward that raises",
        REWARDED,
        "`short` raised KeyError | mine.py, line 2 | begins with | Fix",
        mine__py="def short(completions, **_):\n    return {}['x']\n",
    ),
    bad(
        "a reward that wants a column",
        REWARDED,
        "`answer` | no such column | There are",
        mine__py="def short(completions, answer):\n    return [0.0] * len(answer)\n",
    ),
]

GRPO = PPO.replace("ppo_sentiment.py", "grpo_sentiment.py") + "--num_generations 2 "
RLOO = GRPO.replace("grpo_sentiment.py", "rloo_sentiment.py")

GROUPS = [
    bad(
        "a reward of nan in groups",
        GRPO + "--reward_funcs mine.py:short",
        "`short` | nan | finite number",
        mine__py=SHORT.replace("0.0", "float('nan')"),
    ),
]

REWARD_MODELS = [
    bad(
        "pairs that are equal",
        REWARD_MODEL,
        "16 of 16 pairs | chosen equal to rejected | no pair is left",
        data__jsonl=rows(chosen="Yes.", rejected="Yes."),
    ),
    bad(
        "a number that is none",
        REWARD_MODEL + "--kind number",
        "row 1 | nan | Fix the row",
        data__jsonl=rows(label=float("nan")),
    ),
    bad(
        "a chain of other settings",
        RLHF + "--output_dir run",
        "holds the reward model of other settings | reward_epochs was 9 | --overwrite",
        **{"run/reward": begun},
    ),
]

REWRITE = (
    "ppo_seq2seq.py --model_name_or_path {t5} --dataset_name data.jsonl --output_dir out "
    "--pretrain_steps 1 --reward_steps 1 --reward_outputs 20 --max_steps 1 --batch_size 4 "
    "--response_length 6 "
)
PAIRS = {"data.jsonl": rows(source="The film was dull.", target="The film was fine.")}
SEQ2SEQ = [
    bad(
        "an empty target",
        REWRITE,
        "row 17 | `target` | empty | Fix",
        data__jsonl=PAIRS["data.jsonl"] + rows(9, source="A film.", target=" "),
    ),
    bad(
        "a causal model for an encoder-decoder",
        REWRITE + "--model_name_or_path {gpt2}",
        "causal model | encoder-decoder | ppo_sentiment.py",
        **PAIRS,
    ),
]

ALGORITHMS = [
    bad(
        "runs of another comparison",
        VERSUS + "--output_dir versus --seeds 0",
        "tokens was 9 and is 400 | another folder",
        versus=folder,
        **{"versus/ppo-seed0": folder, "versus/ppo-seed0/stage.json": OTHER},
    ),
]

SHOUTING = [
    bad("a text in Latin-1", SHOUT, "position 3 | Give a UTF-8", text__txt=b"caf\xe9"),
    bad(
        "a text shorter than its contexts",
        SHOUT,
        "`text.txt` has 9 characters | need 192 | --context_length (96)",
        text__txt="too short",
    ),
    bad(
        "heads that do not divide the width",
        SHOUT + "--n_embd 130",
        "--n_embd (130) | --n_head (4) | Use 128",
        **TEXT,
    ),
    bad(
        "a context that holds no completion",
        SHOUT + "--context_length 80",
        "--context_length (80) | --prompt_length 40 | 88 or more",
        **TEXT,
    ),
    bad(
        "a stage before its time",
        SHOUT + "--stage grpo",
        "no finished tokenizer | --stage tokenizer first",
        **TEXT,
    ),
]

PLAIN = """
ppo.py --reward_funcs nowhere.py:f => --reward_funcs | no file `nowhere.py` | Check the path
grpo.py --reward_funcs nowhere.py:f => --reward_funcs | no file `nowhere.py` | Check the path
rloo.py --reward_funcs nowhere.py:f => --reward_funcs | no file `nowhere.py` | Check the path
PLOT --outptu a.png => `--outptu` | `--output`
PLOT --seed 1 => Unknown flag `--seed` | --help
plot.py => required | --runs
PPO --change_score 2 => --change_score | 2 | choose from
PPO --temperature 0 => `temperature` | greater than 0
PPO --output_dir '' => --output_dir is empty | Give
PPO --mini_batch_size 3 => `batch_size` (4) | 3 or 6
PPO --response_length 60 => context holds 64 | Lower `response_length` to 56
PPO --min_prompt_length 9 => [9, 9) | Use 0 <=
PPO --report_to nope => report_to | nope | Install
PPO --use_peft true --lora_target_modules nope => lora_target_modules | nope | c_attn
GENERATE --prompt '' => --prompt is empty | at least one word
GENERATE --temperature 0 => `temperature` is 0.0 | greater than 0
GENERATE --max_new_tokens 99 => context holds 64 | Lower --max_new_tokens to
PLOT --config no.yaml => --config | no.yaml | Check the path
LM --dataset_name no.csv => `no.csv` | Check the path
PPO --text_column review => `review` | text, label | Name
PPO --batch_size 64 => 16 prompts | Lower `batch
CLASSIFIER --label_column mood => `mood` | text, label, split
GENERATE --model ./none => `./none` | Check the path
PPO --model_name_or_path nobody/none => offline | folder
PPO --model_name_or_path {t5} => encoder-decoder | causal | ppo_seq2seq.py
PPO --model_name_or_path {classifier} => RobertaForSequenceClassification | language model
GENERATE --reward_model {gpt2} => GPT2LMHeadModel | train_classifier.py
PPO --label HAPPY => 'HAPPY' | NEGATIVE, POSITIVE
PPO --output_dir data.jsonl => `data.jsonl` | another folder
LM --output_dir data.jsonl/out => data.jsonl | another folder
PLOT => No statistics | folder of a run
COMPARE => holds no run | Check the folder
RESUME => --resume_from_checkpoint | holds no run | --output_dir
LM --model_name_or_path {t5} => ` | encoder-decoder | causal
CLASSIFIER --model_name_or_path {t5} => --model_name_or_path | encoder-decoder | such as BERT
REWARDED => --reward_funcs | mine.py | Check
CUSTOM --reference_text '' => `reference_text` is '' | Give a text
CUSTOM --reference_text nowhere.txt => `nowhere.txt` | could not be read
CUSTOM --version 3 => --version | 1, 2
GRPO --num_generations 3 => `batch_size` (4) | `num_generations` (3) | 3 or 6 | 1, 2, 4
RLOO --num_generations 1 => `num_generations` is 1 | 2 or more
GRPO --model_name_or_path {t5} => encoder-decoder | recipes/ppo_seq2seq.py
RLOO --response_length 70 => holds 64 | Lower `response_length`
GRPO --batch_size 64 => 16 prompts | 32 of one batch | Lower `batch_size`
REWARD_MODEL --model_name_or_path {t5} => encoder-decoder (t5) | such as BERT
RLHF --task generate --prompt 'The film' => no finished reward model | Train first
REWRITE => `source` | text, label, split | Name
benchmark.py --size huge => --size | tiny | small
ppo_ablation.py --only x => no `x` | Choose of: the default
VERSUS --dataset_name no.csv => `no.csv` | path
SHOUT => --text_file | `text.txt` | No such file | Give
"""
COMMANDS = {name: text for name, text in list(globals().items()) if isinstance(text, str)}


def plain(line: str) -> BadInput:
    """A mistake that needs no file: a command above and further flags => what is said of it."""
    command, says = line.split(" => ")
    first, _, more = command.partition(" ")
    return bad(command, f"{COMMANDS.get(first, first)} {more}", says)


BAD_INPUTS = [*map(plain, PLAIN.strip().splitlines())]
BAD_INPUTS += [*YAML, *DATA, *MODELS, *FOLDERS, *RUNS, *RESUMING]
BAD_INPUTS += [*PRETRAINING, *REWARDS, *SEQ2SEQ, *GROUPS, *REWARD_MODELS]
BAD_INPUTS += [*ALGORITHMS, *SHOUTING]

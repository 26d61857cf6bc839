"""Ways to get a recipe's call, YAML, data, model, folder or run wrong, and what must be said.

`tests/test_bad_inputs.py` runs each through the real command line. Commands are split like a shell
would; `{gpt2}`, `{classifier}` and `{t5}` stand for model folders. A row's files lie in the working
folder: a text, bytes, or a function that makes the file or folder.
"""

import json
import shutil
from typing import NamedTuple


class BadInput(NamedTuple):
    """One mistake: what is called, with which files, and words that the message must hold."""

    command: str
    says: list[str]  # the cause and the remedy
    files: dict  # of texts, bytes, and functions that make a file or folder

    @property
    def name(self):
        return f"{self.command.split('.py')[0]}: {', '.join(self.says)}"


def bad(command, says, **files):
    """A mistake, its words divided by ` | `; the file `a.b` is given as `a__b`."""
    return BadInput(command, says.split(" | "), named(files))


def named(files):
    return {file.replace("__", "."): content for file, content in files.items()}


def write(folder, files):
    for file, content in named(files).items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def rows(count=20, **columns):
    """JSON lines with text, label and split, so that nothing need be held out."""
    made = [
        {"text": f"The film number {i} was fine.", "label": i % 2}
        | {"split": "test" if i < 4 else "train"}
        | columns
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made)


def model(name, *, without="", **files):
    """A copy of a model folder without a file, or with others in their place (`a__b` is a.b)."""

    def make(path, models):
        shutil.copytree(models[name], path)
        if without:
            (path / without).unlink()
        write(path, files)

    return make


def truncated(path, models):
    """A GPT-2 whose weights end in the middle."""
    shutil.copytree(models["gpt2"], path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def run(more="", **files):
    """A run folder with statistics and a model; more settings, and files as for `model`."""

    def make(path, models):
        shutil.copytree(models["gpt2"], path / "model")
        settings = {"model_name_or_path": models["gpt2"], "reward_model": models["classifier"]}
        settings |= {"dataset_name": "data.jsonl", "response_length": 4}
        config = "# A run of trl_recipes.\n" + "".join(f"{k}: {v}\n" for k, v in settings.items())
        stats = "".join(json.dumps({"step": i, "env/reward_mean": 0.5}) + "\n" for i in (1, 2))
        write(path, {"config.yaml": config + more, "all_stats.jsonl": stats} | named(files))

    return make


def folder(path, models):
    """An empty folder."""
    path.mkdir()


def runs_from_elsewhere(path, models):
    """A run that started from another model."""
    run(more=f"model_name_or_path: {models['t5']}\n")(path, models)


def without_model(path, models):
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


REWARD_MODEL = "train_reward_model.py --dataset_name data.jsonl --output_dir out "
RLHF = (
    "rlhf.py --model_name_or_path {gpt2} --dataset_name data.jsonl --output_dir out --max_steps 1 "
    "--batch_size 4 --response_length 6 "
)
SHOUT = "grpo_shouting.py --text_file text.txt --output_dir out "
TEXT = {"text.txt": "A line of text that is long enough.\n" * 20}


WEIGHTS = "model.safetensors"
NAN = "def short(completions, **_):\n    return [float('nan') for _ in completions]\n"

DATA = [
    bad(PLOT + "--config a.yaml", "line 2 | fix the file", a__yaml="runs: [a\n"),
    bad(LM, "empty | text", data__jsonl=rows(text=" ")),
    bad(
        LM,
        "`text` | a, split | Name",
        data__jsonl='{"a": "b", "split": "train"}\n{"a": "b", "split": "test"}\n',
    ),
    bad(LM, "row | None | Fix the row", data__jsonl=rows() + rows(9, text=None)),
    bad(LM, "row 20 | Fix", data__jsonl=rows() + '{"text": "a\n'),
    bad(
        PPO + "--max_prompt_length 70",
        "context holds 64 | Cut the prompts to 58",
        data__jsonl=rows(text="A long film. " * 90),
    ),
    bad(CLASSIFIER, "'so so' as label | Name all", data__jsonl=rows(label="so so")),
    bad(CLASSIFIER, "POSITIVE | both | label", data__jsonl=rows(label=1)),
]

MODELS = [
    bad(MODEL, "config.json | save_pretrained", m=folder),
    bad(MODEL, "`m` | again", m=model("gpt2", config__json="{")),
    bad(POLICY, "m/model.safetensors | again", m=truncated),
    bad(POLICY, "no weights | again", m=model("gpt2", without=WEIGHTS)),
    bad(
        POLICY,
        "pickle | convert",
        m=model("gpt2", without=WEIGHTS, pytorch_model__bin=b"\x80\x02N."),
    ),
    bad(MODEL, "`m` | tokenizer | save_pretrained", m=model("gpt2", without="tokenizer.json")),
    bad(POLICY, "`m` | tokenizer | again", m=model("gpt2", tokenizer__json="{")),
]

FOLDERS = [
    bad(
        CLASSIFIER + "--output_dir a",
        "no config.yaml of a run | another folder",
        a=model("gpt2"),
        **{"a/model": folder, "a/model/x": "mine"},
    )
]

RUNS = [
    bad(PLOT, "no rows yet | after each step", run=run(all_stats__jsonl="")),
    bad(PLOT, "line 1 | Fix", run=run(all_stats__jsonl="{'step': 1}\n{}\n")),
    bad(PLOT, "config.yaml | Fix", run=run(config__yaml="a: [\n")),
    bad(COMPARE, "`run` | not a model | finished run", run=without_model),
    bad(
        COMPARE,
        "`response_length` | 'long' | config.yaml | Fix",
        run=run(more="response_length: long\n"),
    ),
]


CUSTOM = PPO.replace("ppo_sentiment.py", "ppo_custom_reward.py")
CUSTOM = CUSTOM.replace("--reward_model {classifier} ", "")
GRPO = PPO.replace("ppo_sentiment.py", "grpo_sentiment.py") + "--num_generations 2 "
RLOO = GRPO.replace("grpo_sentiment.py", "rloo_sentiment.py")
GROUPS = GRPO + "--reward_funcs mine.py:short"
REWARDS = [
    bad(REWARDED, "`mine.py`, line 1 | Fix", mine__py="def short(:\n"),
    bad(REWARDED, "`short` | nan | finite number", mine__py=NAN),
    bad(GROUPS, "`short` | nan | finite number", mine__py=NAN),
]


REWRITE = (
    "ppo_seq2seq.py --model_name_or_path {t5} --dataset_name data.jsonl --output_dir out "
    "--pretrain_steps 1 --reward_steps 1 --reward_outputs 20 --max_steps 1 --batch_size 4 "
    "--response_length 6 "
)
PAIRS = {"data.jsonl": rows(source="The film was dull.", target="The film was fine.")}
SEQ2SEQ = [
    bad(
        REWRITE,
        "row 17 | `target` | empty | Fix",
        data__jsonl=PAIRS["data.jsonl"] + rows(9, source="A film.", target=" "),
    )
]


SHOUTING = [
    bad(SHOUT, "position 3 | Give a UTF-8", text__txt=b"caf\xe9"),
    bad(
        SHOUT,
        "`text.txt` has 9 characters | need 192 | --context_length (96)",
        text__txt="too short",
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
BESIDE_A_RUN = """
PPO --output_dir run => already holds | --overwrite
LM --output_dir run => already holds | --overwrite
LM --output_dir run --overwrite_output_dir true --dataset_name no.csv => `no.csv` | path
COMPARE --output_dir data.jsonl => `data.jsonl` | another folder
COMPARE --runs run other => several models | --reference
plot.py run ./run => 2 times | Give it once
PLOT --output run => `run` | .png
PLOT --output data.jsonl/a.png => data.jsonl/a.png | another
PLOT --output a.xyz => a.xyz | .png
PPO --output_dir run --resume_from_checkpoint true --overwrite_output_dir => both given | Choose one
PPO --output_dir run --resume_from_checkpoint data.jsonl => no whole checkpoint | Give `true`
"""
OTHERS = """
SHOUT --n_embd 130 => --n_embd (130) | --n_head (4) | Use 128
SHOUT --context_length 80 => --context_length (80) | --prompt_length 40 | 88 or more
SHOUT --stage grpo => no finished tokenizer | --stage tokenizer first
REWRITE --model_name_or_path {gpt2} => causal model | encoder-decoder | ppo_sentiment.py
"""
COMMANDS = {name: text for name, text in list(globals().items()) if isinstance(text, str)}


def plain(lines, **files):
    """A mistake a line, beside some files: a command above and more flags => what is said of it."""
    for command, says in (line.split(" => ") for line in lines.strip().splitlines()):
        first, _, more = command.partition(" ")
        yield bad(f"{COMMANDS.get(first, first)} {more}", says, **files)


BAD_INPUTS = [*plain(PLAIN), *plain(BESIDE_A_RUN, run=run(), other=runs_from_elsewhere)]
BAD_INPUTS += [*plain(OTHERS, **TEXT, **PAIRS), *DATA, *MODELS, *FOLDERS, *RUNS]
BAD_INPUTS += [*REWARDS, *SEQ2SEQ, *SHOUTING]

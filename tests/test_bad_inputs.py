"""Ways to get a recipe's call, YAML, data, model, folder or run wrong: each is told, at no cost.

Each goes through the recipe's own script, in a child of one interpreter that has imported all.
"""

import json
import re
import shlex
import shutil

import pytest
from launching import RECIPES, run_warm
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

# What else may stand on stderr: transformers' progress bars, its remarks on a model's files, and
# its table of weights that do not fit.
HARMLESS = re.compile(
    r"|Loading weights: .*|\[transformers\] .*|Notes:|- (MISSING|UNEXPECTED|MISMATCH):.*"
    r"|Key .*\|.*|-+\+[-+]*|.*\| (MISSING|UNEXPECTED|MISMATCH) .*"
)


def rows(count=20, **columns):
    """JSON lines with text, label and split, so that nothing need be held out."""
    made = [
        {"text": f"The film number {i} was fine.", "label": i % 2}
        | {"split": "test" if i < 4 else "train"}
        | columns
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made)


# A file is a text, bytes, or a function of its path and the folders of the models; `a__b` is a.b.


def write(folder, files, models):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if callable(content):
            content(path, models)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def model(name, **files):
    """A copy of a model folder with other files in the place of its own."""

    def make(path, models):
        write(shutil.copytree(models[name], path), files, models)

    return make


def run(more="", trained=True, **files):
    """A run folder with statistics and a model; more settings, and files."""

    def make(path, models):
        shutil.copytree(models["gpt2"], path / "model" if trained else path / "checkpoints")
        settings = {"model_name_or_path": models["gpt2"], "reward_model": models["classifier"]}
        settings |= {"dataset_name": "data.jsonl", "response_length": 4}
        lines = ["# A run of trl_recipes.", *(f"{k}: {v}" for k, v in settings.items()), more]
        stats = "".join(json.dumps({"step": i, "env/reward_mean": 0.5}) + "\n" for i in (1, 2))
        made = {"config__yaml": "\n".join(lines).format(**models), "all_stats__jsonl": stats}
        write(path, made | files, models)

    return make


def folder(path, models):
    path.mkdir()


def gone(path, models):
    path.unlink()


def cut(path, models):
    path.write_bytes(path.read_bytes()[:-1000])


# Commands are split as a shell does; `{gpt2}`, `{classifier}` and `{t5}` stand for model folders.
RL = "--dataset_name data.jsonl --output_dir out --max_steps 1 --batch_size 4 --response_length 6 "
SENTIMENT = "--model_name_or_path {gpt2} --reward_model {classifier} --eval_prompts 4 " + RL
PPO = "ppo_sentiment.py " + SENTIMENT
GRPO = "grpo_sentiment.py --num_generations 2 " + SENTIMENT
RLOO = "rloo_sentiment.py --num_generations 2 " + SENTIMENT
CUSTOM = "ppo_custom_reward.py --model_name_or_path {gpt2} --eval_prompts 4 " + RL
GENERATE = "generate.py --model {gpt2} --reward_model {classifier} --prompt 'The film' "
COMPARE = "compare.py --runs run --max_prompts 4 --output_dir out "
PLOT = "plot.py --runs run "
POLICY = PPO + "--model_name_or_path m"
MODEL = GENERATE + "--model m"
REWARDED = PPO + "--reward_funcs mine.py:short"
GROUPS = GRPO + "--reward_funcs mine.py:short"
RESUME = PPO + "--resume_from_checkpoint true"
LM = "pretrain_lm.py --dataset_name data.jsonl --output_dir out "
CLASSIFIER = "train_classifier.py --dataset_name data.jsonl --output_dir out "
REWARD_MODEL = "train_reward_model.py --dataset_name data.jsonl --output_dir out "
RLHF = "rlhf.py --model_name_or_path {gpt2} " + RL
SHOUT = "grpo_shouting.py --text_file text.txt --output_dir out "
REWRITE = "ppo_seq2seq.py --model_name_or_path {t5} --pretrain_steps 1 --reward_steps 1 "
REWRITE += "--reward_outputs 20 " + RL
VERSUS = (
    "compare_algorithms.py --model_name_or_path {gpt2} --reward_model {classifier} "
    "--dataset_name data.jsonl --tokens 400 --batch 8 --response_length 6 --eval_prompts 4 "
)
COMMANDS = {name: text for name, text in list(globals().items()) if isinstance(text, str)}

# A command above and more flags => what is said of it, the cause and the remedy.
PLAIN = """
ppo.py --reward_funcs nowhere.py:f => --reward_funcs | no file `nowhere.py` | Check the path
grpo.py --reward_funcs nowhere.py:f => --reward_funcs | no file `nowhere.py` | Check the path
rloo.py --reward_funcs nowhere.py:f => --reward_funcs | no file `nowhere.py` | Check the path
PLOT --outptu a.png => `--outptu` | `--output`
plot.py => required | --runs
PPO --change_score 2 => --change_score | 2 | choose from
PPO --temperature 0 => `temperature` | greater than 0
PPO --output_dir '' => --output_dir is empty | Give
PPO --mini_batch_size 3 => `batch_size` (4) | 3 or 6
PPO --response_length 60 => context holds 64 | Lower `response_length` to 56
PPO --min_prompt_length 9 => [9, 9) | Use 0 <=
PPO --report_to nope => report_to | nope | Install
LM --eval_strategy epoch => `eval_strategy` | when training has ended
PPO --use_peft true --lora_target_modules nope => lora_target_modules | nope | c_attn
GENERATE --prompt '' => --prompt is empty | at least one word
GENERATE --temperature 0 => `temperature` is 0.0 | greater than 0
GENERATE --max_new_tokens 99 => context holds 64 | Lower --max_new_tokens to
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
REWRITE --target_column new => `new` | Name one of them
REWRITE --stages train => 'train' is no stage | pretrain, reward, ppo
ppo_seq2seq.py --output_dir out --stages ppo => no finished pretrain stage | --model_name_or_path
REWRITE --reward_outputs 3 => `reward_outputs` is 3 | 20 or more
REWRITE --pretrain_steps 0 => `pretrain_steps` is 0 | 1 or more
REWRITE --pretrain_learning_rate -1 => `pretrain_learning_rate` is -1.0 | 0 or more
REWRITE --hidden_size 15 --num_heads 2 => multiple of --num_heads | Use 14
ppo_seq2seq.py --output_dir out --vocab_size 257 => --vocab_size is 257 | 258 or more
REWRITE --comparisons data.jsonl => rows of the columns text | source, output and score
REWRITE --score_function mine.py:f => --score_function | `mine.py`
REWRITE --reward_model ./none => --reward_model | `./none`
"""
NAN = "def short(completions, **_):\n    return [float('nan') for _ in completions]\n"
TEXT = "A line of text that is long enough.\n" * 20
PAIRS = rows(source="The film was dull.", target="The film was fine.")
WITH_FILES = [
    ("LM => empty | text", {"data.jsonl": rows(text=" ")}),
    (
        "LM => `text` | a, split | Name",
        {"data.jsonl": "".join(f'{{"a": "b", "split": "{name}"}}\n' for name in ("train", "test"))},
    ),
    ("LM => row | None | Fix the row", {"data.jsonl": rows() + rows(9, text=None)}),
    ("LM => row 20 | Fix", {"data.jsonl": rows() + '{"text": "a\n'}),
    (
        "PPO --max_prompt_length 70 => context holds 64 | Cut the prompts to 58",
        {"data.jsonl": rows(text="A long film. " * 90)},
    ),
    ("CLASSIFIER => 'so so' as label | Name all", {"data.jsonl": rows(label="so so")}),
    ("CLASSIFIER => POSITIVE | both | label", {"data.jsonl": rows(label=1)}),
    (
        "REWRITE => row 17 | `target` | empty | Fix",
        {"data.jsonl": PAIRS + rows(9, source="A film.", target=" ")},
    ),
    (
        "REWRITE --comparisons s.jsonl => row 1 | 'good' | Give a number",
        {"data.jsonl": PAIRS, "s.jsonl": rows(source="a", output="b", score="good")},
    ),
    ("SHOUT => position 3 | Give a UTF-8", {"text.txt": b"caf\xe9"}),
    (
        "SHOUT => `text.txt` has 9 characters | need 192 | --context_length (96)",
        {"text.txt": "too short"},
    ),
    ("MODEL => config.json | save_pretrained", {"m": folder}),
    ("MODEL => `m` | again", {"m": model("gpt2", config__json="{")}),
    ("MODEL => `m` | tokenizer | save_pretrained", {"m": model("gpt2", tokenizer__json=gone)}),
    ("POLICY => `m` | tokenizer | again", {"m": model("gpt2", tokenizer__json="{")}),
    ("POLICY => m/model.safetensors | again", {"m": model("gpt2", model__safetensors=cut)}),
    ("POLICY => no weights | again", {"m": model("gpt2", model__safetensors=gone)}),
    (
        "POLICY => pickle | convert",
        {"m": model("gpt2", model__safetensors=gone, pytorch_model__bin=b"\x80\x02N.")},
    ),
    (
        "CLASSIFIER --output_dir a => no config.yaml of a run | another folder",
        {"a": model("gpt2", model=folder, **{"model/x": "mine"})},
    ),
    ("PLOT => no rows yet | after each step", {"run": run(all_stats__jsonl="")}),
    ("PLOT => line 1 | Fix", {"run": run(all_stats__jsonl="{'step': 1}\n{}\n")}),
    ("PLOT => config.yaml | Fix", {"run": run(config__yaml="a: [\n")}),
    ("COMPARE => `run` | not a model | finished run", {"run": run(trained=False)}),
    (
        "COMPARE => `response_length` | 'long' | config.yaml | Fix",
        {"run": run(more="response_length: long")},
    ),
    ("REWARDED => `mine.py`, line 1 | Fix", {"mine.py": "def short(:\n"}),
    ("REWARDED => `short` | nan | finite number", {"mine.py": NAN}),
    ("GROUPS => `short` | nan | finite number", {"mine.py": NAN}),
]
TWO_RUNS = {"run": run(), "other": run(more="model_name_or_path: {t5}")}
WITH_FILES += [(line, {}) for line in PLAIN.strip().splitlines()]
WITH_FILES += [(line, TWO_RUNS) for line in BESIDE_A_RUN.strip().splitlines()]
WITH_FILES += [
    (line, {"text.txt": TEXT, "data.jsonl": PAIRS}) for line in OTHERS.strip().splitlines()
]


def bad_inputs():
    """Commands, the words that must be said, and the files in the working folder."""
    for line, files in WITH_FILES:
        command, says = line.split(" => ")
        first, _, more = command.partition(" ")
        whole = f"{COMMANDS.get(first, first)} {more}"
        name = f"{whole.split('.py')[0]}: {says.replace(' | ', ', ')}"
        yield pytest.param(whole, says.split(" | "), files, id=name)


BAD_INPUTS = list(bad_inputs())


@pytest.fixture(scope="session")
def models(tmp_path_factory, sentiment_models):
    """One folder a model, in the hub's format; made once."""
    classifier, t5 = sentiment_models["reward_model"], tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    tokenizer.save_pretrained(t5)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(t5)
    gpt2 = sentiment_models["model_name_or_path"]
    return {"gpt2": gpt2, "classifier": classifier, "t5": t5}


def contents(*folders):
    """Every path below folders, with the bytes of the files."""
    paths = (path for folder in folders for path in folder.rglob("*"))
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(("command", "says", "files"), BAD_INPUTS)
def test_a_mistake_is_one_message_and_nothing_is_written(command, says, files, models, tmp_path):
    write(tmp_path, {"data.jsonl": rows()} | files, models)
    recipe, *words = shlex.split(command.format(**models))
    before = contents(tmp_path, *models.values())
    done = run_warm(recipe, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-3000:]
    lines = [line for line in re.split(r"[\r\n]", done.stderr) if not HARMLESS.fullmatch(line)]
    assert len(lines) == 1, done.stderr[-3000:]
    assert lines[0].startswith("error: ")
    assert [word for word in says if word not in lines[0]] == [], lines[0]
    assert before == contents(tmp_path, *models.values())


def test_the_table_is_large_and_its_rows_differ():
    assert len({row.id for row in BAD_INPUTS}) == len(BAD_INPUTS) >= 80
    assert {row.values[0].split()[0] for row in BAD_INPUTS} == {
        p.name for p in RECIPES.glob("*.py")
    }
    assert all(len(row.values[1]) >= 2 for row in BAD_INPUTS)  # cause and remedy

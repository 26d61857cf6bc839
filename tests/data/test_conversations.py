"""Conversations: the chat template's tokens, and what reward functions see, beside TRL's GRPO."""

import json

import datasets
import pytest
import torch
import trl
from architectures import ppo_trainer
from launching import run_here
from tiny_grpo import build
from tiny_models import SENTENCES, byte_level_tokenizer, save_tiny_classifier
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from trl_recipes import RecipeError, load_prompts
from trl_recipes.data.conversations import encode_conversations, full_texts, plain_text
from trl_recipes.data.prompts import holds_conversations, one_prompt
from trl_recipes.evaluation.compare import compare
from trl_recipes.evaluation.judges import vader_judge
from trl_recipes.grpo.inputs import prompt_rows
from trl_recipes.stats import read_rows

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be short."}
PROMPTS = [
    [SYSTEM, {"role": "user", "content": "The acting?"}],
    [{"role": "user", "content": "A dull film?"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Was it slow?"},
    ],
    [{"role": "user", "content": "What is new?"}],
]
ROWS = [{"prompt": prompt, "wanted": f"word {i}"} for i, prompt in enumerate(PROMPTS * 2)]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """Folder in the hub's format: a GPT-2 whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = byte_level_tokenizer([*SENTENCES, "system user assistant"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(chat_model):
    return AutoTokenizer.from_pretrained(chat_model)


def write(path, rows, test=ROWS[:2]):
    """The rows as train and others as test, in one file or a folder of save_to_disk."""
    parts = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(test)}
    if path.suffix == ".jsonl":
        lines = [{**row, "split": name} for name, part in parts.items() for row in part]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        datasets.DatasetDict(parts).save_to_disk(path)
    return str(path)


def never_cut():
    raise AssertionError("a conversation was cut")


def load(path, tokenizer, **options):
    return load_prompts(path, tokenizer, length_sampler=never_cut, **options)


@pytest.mark.parametrize("name", ["a.jsonl", "saved"])
def test_the_tokens_are_the_chat_templates(tmp_path, tokenizer, name):
    prompts = load(write(tmp_path / name, ROWS), tokenizer)
    for row, made in zip(ROWS, prompts, strict=True):
        rendered = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert rendered.endswith("<|im_start|>assistant\n")
        assert made["input_ids"] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert (made["prompt"], made["wanted"]) == (row["prompt"], row["wanted"])
    assert prompts["query"][0] == "system: Be short.\nuser: The acting?\nassistant: "
    assert holds_conversations(prompts)


def test_texts_may_stand_beside_conversations(tmp_path, tokenizer):
    rows = [{"prompt": row["prompt"], "text": "The film was fine."} for row in ROWS]
    path = write(tmp_path / "a.jsonl", rows, rows)
    assert holds_conversations(load(path, tokenizer))  # as TRL, which always takes `prompt`
    texts = load_prompts(path, tokenizer, length_sampler=lambda: 2, text_column="text")
    assert not holds_conversations(texts)
    assert {len(ids) for ids in texts["input_ids"]} == {2}


def test_what_leaves_no_room_is_left_out_and_counted(tmp_path, tokenizer, chat_model, caplog):
    model = GPT2LMHeadModel.from_pretrained(chat_model)
    long = {"prompt": [{"role": "user", "content": "very long " * 60}], "wanted": "?"}
    nothing = (None, [], [{**SYSTEM, "content": " "}])
    empty = [{"prompt": messages, "wanted": "?"} for messages in nothing]
    path = write(tmp_path / "a.jsonl", [*ROWS, long, *empty])
    assert len(load(path, tokenizer)) == 9  # of no model nothing is known
    prompts = load(path, tokenizer, model=model, response_length=8)
    assert [row["prompt"] for row in prompts] == [row["prompt"] for row in ROWS]
    assert "1 of 12 conversations of" in caplog.text
    assert "longer than the 120 tokens that a response of 8 leaves" in caplog.text
    assert "3 of 12 prompts of" in caplog.text
    longest = max(len(ids) for ids in prompts["input_ids"])
    exact = load(path, tokenizer, model=model, response_length=128 - longest)
    assert len(exact) == 8
    assert len(load(path, tokenizer, model=model, response_length=129 - longest)) == 6
    with pytest.raises(RecipeError, match=r"9 of 12 .* lower `response_length`"):
        load(path, tokenizer, model=model, response_length=127)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "robot", "content": "x"}], "row 2: the chat template refuses .* no robots"),
        ([{"content": "x"}], "row 2 holds .*which is no conversation"),
        ("text", r"row 2 holds 'text', which is no conversation"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tokenizer, prompt, message):
    rows = [ROWS[0]["prompt"], prompt]
    with pytest.raises(RecipeError, match=f"^--dataset_name: a.jsonl, {message}"):
        list(encode_conversations(rows, [0, 1], tokenizer, "--dataset_name: a.jsonl"))


def test_the_text_of_a_conversation_is_its_messages_line_by_line_without_what_is_no_text():
    answer = [{"role": "assistant", "content": "Because."}]
    assert full_texts([PROMPTS[0]], [answer]) == ["Be short.\nThe acting?\nBecause."]
    assert full_texts(["The film"], [" was good"]) == ["The film was good"]
    parts = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "a"}]
    assert plain_text([{"role": "user", "content": parts}]) == "Look: a"
    assert plain_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path, tokenizer):
    tokenizer.chat_template = None
    path = write(tmp_path / "a.jsonl", ROWS)
    told = "--dataset_name: .*no chat template.*Use a chat model"
    with pytest.raises(RecipeError, match=told):
        load(path, tokenizer)
    with pytest.raises(RecipeError, match=r"`train_dataset`, column `prompt` .* no chat template"):
        prompt_rows(ROWS, "train_dataset", tokenizer)
    with pytest.raises(RecipeError, match=r"--chat makes .* no chat template"):
        one_prompt("Hello", tokenizer, chat=True)


def test_a_reward_function_sees_what_grpo_gives_it(tmp_path, tokenizer, chat_model):
    path = write(tmp_path / "a.jsonl", ROWS)
    seen = {"ppo": [], "grpo": [], "theirs": []}

    def recorder(name):
        def reward(prompts, completions, completion_ids, wanted, **rest):
            rest.pop("trainer_state")
            seen[name].append((prompts, completions, completion_ids, wanted, set(rest)))
            return [float(len(completion[0]["content"])) for completion in completions]

        return reward

    prompts, settings = load(path, tokenizer), {"batch_size": 8, "response_length": 6}
    given = (chat_model, recorder("ppo"), prompts, tmp_path / "ppo", tokenizer)
    ppo_trainer(*given, mini_batch_size=8, max_steps=1, **settings).train()

    settings |= {"num_generations": 2, "max_steps": 2}
    model = GPT2LMHeadModel.from_pretrained(chat_model)
    build("grpo", model, recorder("grpo"), prompts, tokenizer, **settings).train()

    settings = {"per_device_train_batch_size": 8, "num_generations": 2, "max_completion_length": 6}
    settings |= {"max_steps": 2, "report_to": [], "use_cpu": True, "bf16": False}
    arguments = trl.GRPOConfig(str(tmp_path), **settings, save_strategy="no", disable_tqdm=True)
    rows = datasets.Dataset.from_list(ROWS)
    grpo = trl.GRPOTrainer(str(chat_model), recorder("theirs"), arguments, rows)
    grpo.train()
    for name, calls in seen.items():
        asked = []
        for given, completions, ids, wanted, _ in calls[name != "theirs" :]:  # after a trial
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            assert completions == [[{"role": "assistant", "content": text}] for text in texts]
            pairs = zip(given, wanted, strict=True)
            asked += [{"prompt": prompt, "wanted": word} for prompt, word in pairs]
        assert all(row in ROWS for row in asked)
        assert {row["wanted"] for row in asked} == {row["wanted"] for row in ROWS}
    theirs, _, _ = grpo._tokenize_prompts([row["prompt"] for row in ROWS])
    assert prompts["input_ids"][:] == theirs
    assert seen["ppo"][-1][-1] == {"split"}  # a column of the file, which the rows lack
    assert seen["theirs"][-1][-1] == {"log_extra", "log_metric"}  # functions that TRL alone offers
    assert seen["grpo"][-1][-1] == seen["ppo"][-1][-1] | seen["theirs"][-1][-1]

    samples = read_rows(tmp_path / "ppo" / "samples.jsonl")
    assert {row["query"] for row in samples} <= set(prompts["query"])


def test_measures_of_a_comparison_get_conversations_too(tmp_path, tokenizer, chat_model):
    prompts = load(write(tmp_path / "a.jsonl", ROWS), tokenizer)
    seen = []

    def measure(prompts, completions, wanted):
        seen.append((prompts, completions, wanted))
        return [0.0] * len(prompts)

    models = {"reference": (GPT2LMHeadModel.from_pretrained(chat_model), tokenizer)}
    measures = {"seen": measure} | ({"vader": vader_judge()} if vader_judge() else {})
    comparison = compare(models, prompts, measures, max_new_tokens=4)
    texts = comparison.results[0].responses
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = [[row[name] for row in ROWS] for name in ("prompt", "wanted")]
    assert seen == [(columns[0], completions, columns[1])]
    assert "> user: A dull film? assistant:" in comparison.side_by_side(2)


def test_the_recipes_take_conversations(tmp_path, tokenizer, chat_model, capsys):
    save_tiny_classifier(tokenizer, tmp_path / "classifier", positions=400)
    long = [{"prompt": [{"role": "user", "content": "very long " * 60}], "wanted": "?"}]
    path = write(tmp_path / "a.jsonl", ROWS + long, ROWS[:3] + long)

    common = ["--model_name_or_path", chat_model, "--dataset_name", path, "--max_steps", 1]
    common += ["--batch_size", 4, "--response_length", 4, "--disable_tqdm", "true"]
    judge = ["--reward_model", tmp_path / "classifier"]
    run_here("ppo_sentiment.py", *common, *judge, "--output_dir", tmp_path / "run")
    run_here("ppo_custom_reward.py", *common, "--output_dir", tmp_path / "custom")
    assert "custom: user: The story assistant:" in capsys.readouterr().out
    run_here("compare.py", "--runs", tmp_path / "run", "--output_dir", tmp_path / "comparison")
    assert "> system: Be short. user: The acting? assistant:" in capsys.readouterr().out
    words = ["--model", tmp_path / "run", "--prompt", "Hello", "--chat", "true"]
    run_here("generate.py", *words, *judge, "--num_return_sequences", 2)
    assert capsys.readouterr().out.count("user: Hello assistant: ") == 2

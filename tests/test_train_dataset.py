"""What a trainer of any algorithm is called with: data sets of every form, TRL's own calls."""

import copy
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from architectures import ppo_trainer
from datasets import Dataset, DatasetDict, IterableDataset
from huggingface_hub import HfApi
from tiny_grpo import KINDS, build, tiny, variety, word_tokenizer
from tokenizers import processors
from transformers import DataCollatorWithPadding

from trl_recipes import PPOConfig, PPOTrainer, RecipeError, load_prompts, run_recipe, setting
from trl_recipes.data.prompts import as_prompts
from trl_recipes.distributed import print_main

CLASSES = {"ppo": (PPOConfig, PPOTrainer)} | KINDS
every = pytest.mark.parametrize("kind", CLASSES)
both = pytest.mark.parametrize("kind", ["ppo", "grpo"])  # RLOO's data take the door of GRPO's
TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }} {% endfor %}w9"
TEXTS = [f"w{i} w3 w{i + 1}" for i in range(2, 10)]
OTHER = [f"w{i}" for i in range(2, 10)]
TALKS = [[{"role": "user", "content": text}] for text in TEXTS]


def ids(texts):
    return word_tokenizer()(list(texts))["input_ids"]


def trainer(kind, data, reward=lambda completions, **_: [0.0] * len(completions)):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    if kind != "ppo":
        return build(kind, data=data, rewards=reward, tokenizer=tokenizer, max_steps=1)
    settings = {"batch_size": 8, "max_steps": 1, "response_length": 4, "tokenizer": tokenizer}
    return ppo_trainer(tiny(), reward, [], more={"train_dataset": data}, **settings)


def seen(kind, data):
    """Prompts and columns that a reward function gets in a step, row by row."""
    rows = []

    def reward(prompts, completions, **columns):
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        lists["prompts"] = prompts
        rows[:] = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        return [0.0] * len(completions)

    trainer(kind, data, reward).train()
    return rows


MANY = {"response": OTHER, "score": OTHER, "completion": OTHER, "label": OTHER, "messages": TALKS}


@both
@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ({"prompt": TEXTS, "query": OTHER}, ["query"]),
        ({"prompt": TEXTS, "query": OTHER, "input_ids": ids(TEXTS)}, ["query"]),
        ({"query": TEXTS, "input_ids": ids(TEXTS), "prompt": OTHER}, ["prompt"]),
        ({"prompt": TALKS, "query": OTHER, "image": OTHER}, ["query", "image"]),
        ({"prompt": TEXTS} | MANY | {"query": TEXTS}, [*MANY]),
    ],
    ids=["query", "ids of prompt", "ids of query", "conversation", "many"],
)
def test_only_the_prompt_is_trained_on_and_all_else_reaches_rewards(kind, columns, kept):
    rows = seen(kind, Dataset.from_dict(columns))
    prompts = TALKS if columns.get("prompt") is TALKS else TEXTS
    for row in rows:
        number = prompts.index(row["prompts"])
        row.pop("completion_ids")
        assert row == {"prompts": prompts[number]} | {name: columns[name][number] for name in kept}
    made, expected = trainer(kind, Dataset.from_dict(columns)), ids(TEXTS)
    if prompts is TALKS:  # the template, written out by hand
        expected = ids(f"w1 {text} w9" for text in TEXTS)
    if kind == "ppo":
        assert made.prompts["input_ids"][:] == expected
    else:
        made.train()
        batch = made._buffered_inputs[0]
        for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"].bool(), strict=True):
            assert row[mask].tolist() in expected


@both
@pytest.mark.parametrize("prompts", [TEXTS, TALKS], ids=["texts", "conversations"])
def test_before_training_rewards_get_completions_that_their_ids_spell(kind, prompts, monkeypatch):
    calls = []

    def spy(completions, completion_ids, **_):
        calls.append((completions, completion_ids))
        return [0.0] * len(completions)

    monkeypatch.setattr("trl_recipes.rewards.base._MADE_UP", ("w3 w4", "w5"))
    trainer(kind, Dataset.from_dict({"prompt": prompts}), spy).describe()
    completions, spelled = calls[0]
    if prompts is TALKS:
        completions = [message["content"] for (message,) in completions]
    assert (completions, spelled) == (["w3 w4", "w5"], ids(["w3 w4", "w5"]))


@both
@pytest.mark.parametrize("column", ["text", "prompt", "messages"])
def test_a_files_own_columns_reach_rewards_by_the_names_they_had(kind, column, tmp_path):
    own = {name: [f"{name} {i}" for i in range(8)] for name in ("query", "prompt", "input_ids")}
    own[column] = TALKS if column == "messages" else TEXTS
    rows = [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]
    lines = [json.dumps(row | {"split": split}) for row in rows for split in ("train", "test")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    data = load_prompts(str(path), tokenizer, length_sampler=lambda: 2, text_column=column)
    cut = TALKS if column == "messages" else [text[: len("w1 w3")] for text in TEXTS]
    for row in seen(kind, data):
        number = cut.index(row["prompts"])
        assert row["query"] == own["query"][number]
        assert column == "prompt" or row["prompt"] == own["prompt"][number]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, row):
        return {"prompt": TEXTS[row], "input_ids": torch.tensor(ids([TEXTS[row]])[0])}


LIST = [{"prompt": text} for text in TEXTS]


def columns(**named):
    return Dataset.from_dict(named)


@both
@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (LIST, None),
        ([LIST[0], *(row | {"label": 1} for row in LIST[1:])], None),
        (Rows(), None),
        (Dataset.from_list(LIST).with_format("pandas"), None),
        (Dataset.from_list(LIST).with_format("numpy"), None),
        (DatasetDict(train=Dataset.from_list(LIST), test=Dataset.from_list(LIST)), "train, test"),
        ({"prompt": TEXTS}, r"a dict of prompt.*from_dict"),
        ("imdb", r"the name 'imdb'. Load it with load_prompts"),
        ((row for row in LIST), "generator, which has no length"),
        (TEXTS, "a list whose row 1 is no dict"),
        (columns(text=TEXTS), "no prompts: its columns are text"),
        ([{"prompt": "w1"}, {"prompt": 1}], "column `prompt`: .*one type"),
        (columns(prompt=["w1", "w2", None]), "column `prompt`, row 3: None .NoneType. is no pro"),
        (columns(query=["w1", " \n", "w2"]), r"column `query`, row 2: ' \\n' .str. is no prompt"),
        (columns(prompt=[TALKS[0], [], TALKS[1]]), r"`prompt`, row 2: \[\] .list. is no prompt"),
        (pd.DataFrame(LIST), r"a DataFrame of prompt.*from_pandas"),
        ([], "holds no rows"),
        (columns(prompt=[1, 2]), "column `prompt`, row 1: 1 .int. is no prompt"),
    ],
)
def test_every_form_of_a_data_set_works_or_is_named(kind, data, refused):
    if refused is None:
        trainer(kind, data).train()
        return
    with pytest.raises(RecipeError, match=f"^`train_dataset`.*{refused}"):
        trainer(kind, data).train()


def test_a_collator_may_pad_under_a_mask_and_is_named_where_it_cannot_take_the_rows():
    pad = DataCollatorWithPadding(tokenizer := word_tokenizer())
    settings = {"batch_size": 8, "max_steps": 1, "response_length": 4, "tokenizer": tokenizer}

    def train(collator):
        given = (tiny(), variety, {"prompt": ["w2", "w3 w4 w5"] * 4})
        made = ppo_trainer(*given, more={"data_collator": collator}, **settings)
        made.train()
        return made.all_stats[0]["tokens/queries_len_mean"]

    assert train(lambda rows: pad([{"input_ids": row["input_ids"]} for row in rows])) == 2.0
    with pytest.raises(RecipeError, match=r"`data_collator` \(DataCollatorWithPadding.* query"):
        train(pad)


def test_a_stream_has_no_numbers_for_ppo_and_is_read_by_grpo():
    stream = IterableDataset.from_generator(lambda: iter([{"query": t} for t in TEXTS] * 4))
    with pytest.raises(RecipeError, match="`train_dataset` is a IterableDataset, which has no len"):
        trainer("ppo", stream)
    assert {row["prompts"] for row in seen("grpo", stream)} <= set(TEXTS)


def test_token_ids_that_cannot_be_trained_on_name_their_row():
    for rows, told in (
        ([[1], [], [2]], r"row 2 holds \[\]"),
        ([[1], [2], None], "row 3 holds None"),
        ([[1], [2, 10**6]], r"row 2 holds \[2, 1000000\]. Give .*the model's vocabulary"),
        ([[[1], [2]]], r"row 1 holds \[\["),
    ):
        with pytest.raises(RecipeError, match=f"^`train_dataset`, column `input_ids`, {told}"):
            trainer("ppo", columns(input_ids=rows)).train()


@both
@pytest.mark.parametrize("ending", ["$A <end>", "w1 $A w2 <end>"])
def test_no_prompt_ends_in_what_a_tokenizer_appends(kind, ending):
    made = trainer(kind, LIST)
    tokenizer = made.processing_class
    special = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("<end>", "w1", "w2")]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single=ending, special_tokens=special)
    texts = [*TEXTS, "w5 <end>"]  # a text's own end stays
    expected = [[1] * ending.startswith("w1") + row for row in ids(texts)]
    if kind == "ppo":
        rows = [{"prompt": text} for text in texts]
        assert as_prompts(rows, tokenizer, tiny())["input_ids"][:] == expected
    else:
        assert made._tokenize_prompts(texts)[0] == expected


@every
def test_a_configuration_stays_as_it_was_and_gives_each_trainer_its_own_steps(kind):
    config_class, trainer_class = CLASSES[kind]
    more = {} if kind == "ppo" else {"num_generations": 2}
    config = config_class(batch_size=2, num_train_epochs=1, disable_tqdm=True, **more)
    before = copy.deepcopy({n: v for n, v in vars(config).items() if n != "distributed_state"})
    steps = []
    for count in (4, 8, 4):
        parts = {"reward_funcs": variety, "processing_class": word_tokenizer()}
        made = trainer_class(args=config, model=tiny(), train_dataset=LIST[:count], **parts)
        made.train()
        steps.append(made.state.global_step)
    assert steps == ([2, 4, 2] if kind == "ppo" else [4, 8, 4])
    assert {name: vars(config)[name] for name in before} == before


def ppo_call(**arguments):
    config = PPOConfig(batch_size=8, max_steps=1, response_length=4, disable_tqdm=True)
    tokens = {"processing_class": word_tokenizer(), "train_dataset": LIST}
    return PPOTrainer(args=config, model=tiny(), **tokens, **arguments)


def test_trls_own_call_of_ppo_is_taken_or_told():
    model = tiny()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    made = ppo_call(reward_model=variety, value_model=None, eval_dataset=None)
    made.train()
    assert made.rewards.names == ["variety"]
    with pytest.raises(RecipeError, match="`reward_funcs` and `reward_model` are two names of"):
        ppo_call(reward_funcs=variety, reward_model=len)
    with pytest.raises(RecipeError, match=r"`optimizer` and `optimizers.0.` are two names of one"):
        ppo_call(optimizer=object(), optimizers=(optimizer, None))
    for name, told in {
        "value_model": "a value head on the policy; leave it out",
        "eval_dataset": "judge held-out prompts with `compare`",
        "policy": "give it as `model`",
        "ref_policy": "give it as `ref_model`",
        "reward_processing_classes": r"RewardModelReward\(model, tokenizer\)",
    }.items():
        with pytest.raises(RecipeError, match=f"`{name}` is TRL's, and no argument here: .*{told}"):
            ppo_call(reward_funcs=variety, **{name: model})
    with pytest.raises(TypeError, match="unexpected keyword argument 'mistyped'"):
        ppo_call(mistyped=1)
    with pytest.raises(RecipeError, match="`eval_strategy` is 'steps', but PPO does not evaluate"):
        PPOTrainer(args=PPOConfig(eval_strategy="steps", eval_steps=1), model=model)


@pytest.mark.parametrize("kind", KINDS)
def test_trls_own_call_of_grpo_by_position_is_taken(kind):
    config_class, trainer_class = KINDS[kind]
    settings = {"batch_size": 8, "num_generations": 4, "response_length": 4, "max_steps": 1}
    config = config_class(eval_strategy="steps", eval_steps=1, disable_tqdm=True, **settings)
    held_out = {"new": [{"query": "w7", "completion": "x"}] * 8}
    made = trainer_class(tiny(), [variety], config, LIST, held_out, word_tokenizer())
    made.train()
    assert any(name.startswith("eval_new") for row in made.state.log_history for name in row)
    with pytest.raises(RecipeError, match=r"`reward_processing_classes` .*RewardModelReward"):
        build(kind, more={"reward_processing_classes": [word_tokenizer()]})


@every
def test_push_to_hub_uploads_what_is_saved_and_is_told_where_it_cannot(kind, monkeypatch, tmp_path):
    config_class, trainer_class = CLASSES[kind]
    settings = {"batch_size": 8, "max_steps": 1, "disable_tqdm": True, "push_to_hub": True}
    config = config_class(output_dir=str(tmp_path / "mine"), save_steps=1, **settings)
    parts = {"reward_funcs": variety, "train_dataset": LIST, "processing_class": word_tokenizer()}
    with pytest.raises(RecipeError, match=r"`push_to_hub`: no network, or no token .*hf upload"):
        trainer_class(args=config, model=tiny(), **parts)
    pushed = []
    repo = lambda self, name, **_: SimpleNamespace(repo_id=f"me/{name}")  # noqa: E731
    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
    monkeypatch.setattr(HfApi, "create_repo", repo)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **given: pushed.append(given))
    made = trainer_class(args=config, model=tiny(), **parts)
    made.train()
    assert pushed == []
    made.save_model()
    assert pushed == [{"repo_id": "me/mine", "folder_path": tmp_path / "mine" / "model"}]
    names = lambda folder: {path.name for path in Path(folder).iterdir()}  # noqa: E731
    sent = lambda self, folder_path, **_: pushed.append(names(folder_path))  # noqa: E731
    monkeypatch.setattr(HfApi, "upload_folder", sent)
    made.push_to_hub(dataset_name="imdb")  # nothing else of the run folder
    assert pushed[1:] == [names(tmp_path / "mine" / "model") | {"README.md"}]
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **given: 1 / 0)
    made.save_model()  # nothing is lost
    assert (tmp_path / "mine" / "model" / "config.json").is_file()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_a_terminal_that_lacks_characters_gets_every_result(encoding, monkeypatch):
    @dataclass
    class Words:
        """What to print."""

        word: str = setting("", "A word.")

    def main(args):
        print_main(f"score ± 1: {args.word} done")
        raise RecipeError(f"{args.word}: too long.")

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(SystemExit):
        run_recipe(main, Words, argv=["--word", "电影 ✓ ok"], trains=False)
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in (sys.stdout, sys.stderr))
    assert out.endswith(": ?? ? ok done\n")
    assert "error: ?? ? ok: too long." in err

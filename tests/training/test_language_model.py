import json
import math
import random

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from launching import run_here
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.training.fit import PretrainConfig
from trl_recipes.training.language_model import (
    BaselineConfig,
    LanguageModelSizes,
    language_model_rows,
    read_texts,
    train_language_model,
)
from trl_recipes.training.reward_data import Labeled, read_labeled
from trl_recipes.training.reward_model import (
    ClassifierSizes,
    class_rows,
    cut_fragments,
    special_frame,
)

TEXTS = ["The film is good.", "The film is bad; I left.", "Étude in C - naïve, isn't it?\n\nYes."]
TINY_GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 300, "context_length": 32}


def quiet(cls, folder, **settings):
    return cls(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **settings)


TOKENIZER = train_tokenizer(TEXTS, 300)
CLASSIFIERS = train_tokenizer(TEXTS, 300, kind="classifier")


@given(st.text())
def test_a_tokenizer_gives_back_any_text(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_the_tokenizer_of_a_language_model_is_like_gpt2_and_a_classifiers_ignores_case():
    assert TOKENIZER.pad_token is None
    assert TOKENIZER.bos_token == TOKENIZER.eos_token == "<|endoftext|>"
    assert TOKENIZER("<|endoftext|>")["input_ids"] == [TOKENIZER.eos_token_id]
    assert len(TOKENIZER) <= 300
    with pytest.raises(RecipeError, match="257 or more"):  # without room for the bytes
        train_tokenizer(TEXTS, 256)
    film = CLASSIFIERS("film")["input_ids"]
    assert CLASSIFIERS("THE FILM")["input_ids"] == CLASSIFIERS("the film")["input_ids"]
    assert CLASSIFIERS("film film")["input_ids"] == 2 * film  # the first word is like others
    assert CLASSIFIERS.pad_token is not None


@pytest.mark.parametrize("context_length", [4, 7, 100])
def test_windows_lose_no_token_and_each_text_ends_with_eos(context_length):
    for text in TEXTS:
        windows = [r["input_ids"] for r in language_model_rows([text], TOKENIZER, context_length)]
        assert max(map(len, windows)) <= context_length
        expected = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
        # a last window of one token has nothing to predict and is left out
        whole = expected[:-1] if len(expected) % context_length == 1 else expected
        assert [token for window in windows for token in window] == whole


def test_windows_leave_room_for_special_tokens_and_know_their_text():
    tokenizer = train_tokenizer(TEXTS, 300, kind="classifier")
    pad = tokenizer.pad_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{pad} $A {pad} {pad}", special_tokens=[(pad, tokenizer.pad_token_id)]
    )
    assert special_frame(tokenizer) == ([0], [0, 0])
    tokenizer.model_max_length = 8
    parts = [[], [], []]
    for index, row in class_rows(Labeled(TEXTS, [0, 1, 0], ["a", "b"]), tokenizer):
        assert len(row["input_ids"]) <= 8
        parts[index] += row["input_ids"][1:-2]
    assert parts == tokenizer(TEXTS, add_special_tokens=False)["input_ids"]


@given(length=st.integers(0, 40), count=st.integers(0, 5), seed=st.integers(0, 99))
def test_fragments_are_pieces_of_the_text_and_shorter_than_it(length, count, seed):
    ids = list(range(length))
    fragments = cut_fragments(ids, count, random.Random(seed))
    assert len(fragments) == (count if length > 4 else 0)
    for number, fragment in enumerate(fragments):
        assert 4 <= len(fragment) <= min(24, length - 1)
        assert fragment == ids[fragment[0] : fragment[0] + len(fragment)]
        assert number % 2 or fragment[0] == 0


def test_texts_and_labels_are_read_by_column_and_by_name():
    rows = Dataset.from_dict({"review": ["a", "b", "c"], "mood": ["Negative", "1", " positive"]})
    assert read_texts(rows, None, "reviews.csv") == ["a", "b", "c"]
    chosen = {"text_column": None, "label_column": "mood", "names": ["NEGATIVE", "POSITIVE"]}
    data = read_labeled(rows, "reviews.csv", **chosen)
    assert (data.texts, data.labels) == (["a", "b", "c"], [0, 1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LanguageModelSizes(n_embd=50, n_head=4), "multiple of --n_head .4.. Use 48"),
        (lambda: BaselineConfig(n_embd=4, n_head=8), "twice --n_head .8.. Use 16"),
        (lambda: ClassifierSizes(hidden_size=60, num_heads=4), "twice --num_heads.*Use 56"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_empty_texts_are_refused_before_training(tmp_path):
    config = quiet(PretrainConfig, tmp_path)
    for texts, heldout, use in ((["", " "], ["a"], "train on"), (["a"], [""] * 2, "measure on")):
        with pytest.raises(RecipeError, match=f"All 2 texts to {use} are empty"):
            train_language_model(texts, tmp_path, config, heldout_texts=heldout)


def test_a_language_model_learns_and_its_loss_is_the_mean_over_tokens(tmp_path):
    texts = ["one two three four five", "six seven eight"] * 400
    config = quiet(PretrainConfig, tmp_path, learning_rate=1e-2, per_device_train_batch_size=4)
    metrics = train_language_model(
        texts, tmp_path, config, heldout_texts=texts[:2], sizes=LanguageModelSizes(**TINY_GPT2)
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    total, count = 0.0, 0
    for text in texts[:2]:  # one by one, without padding
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        total -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert metrics["heldout_tokens"] == count
    assert metrics["heldout_loss"] == pytest.approx(total / count, abs=1e-4)
    assert metrics["heldout_loss"] < 0.2


def test_training_goes_on_from_a_base_model(tmp_path, tiny_gpt2):
    config = quiet(PretrainConfig, tmp_path, max_steps=2)
    train_language_model(TEXTS, tmp_path, config, model_name_or_path=str(tiny_gpt2))
    before = AutoModelForCausalLM.from_pretrained(tiny_gpt2).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert 0 < max(moved.values()) < 0.05  # moved, but not made anew


@pytest.fixture(scope="module")
def review_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    moods = {"a": "positive", "b": "negative"}
    rows = [{"text": f"A {w} film, {i}.", "label": moods[w]} for i in range(30) for w in moods]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_recipe(name, review_file, folder, *sizes):
    flags = ["--dataset_name", review_file, "--output_dir", folder, "--vocab_size", 300]
    run_here(name, *flags, "--use_cpu", "--max_steps", 3, *sizes)


def test_the_language_model_recipe_holds_a_tenth_out(tmp_path, review_file, capsys):
    run_recipe("pretrain_lm.py", review_file, tmp_path / "lm", "--n_layer", 1, "--n_embd", 32)
    told = capsys.readouterr().out
    assert 0 < float(told.split("held-out loss ")[1].split()[0]) < math.log(300) + 1
    assert "54 texts" in told
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "lm" / "model").config.n_embd == 32


def test_the_classifier_recipe_runs_on_named_labels(tmp_path, review_file, capsys):
    run_recipe("train_classifier.py", review_file, tmp_path / "run", "--hidden_size", 32)
    assert "(n = 6 texts)" in capsys.readouterr().out
    scorer = pipeline("text-classification", model=str(tmp_path / "run" / "model"))
    assert scorer("A film.")[0]["label"] in ("NEGATIVE", "POSITIVE")

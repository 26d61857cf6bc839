import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from trl_recipes import embedded
from trl_recipes.embedded import build, cache, corpus
from trl_recipes.errors import RecipeError
from trl_recipes.models.sampling import generate_responses

ROOT = Path(__file__).parents[1]
SHA256 = "de9f6d0a52ef6d198cbaf04839daef074231fa7d47a9b3de71b3da7675dfe656"


@pytest.fixture(scope="module")
def rows():
    return {split: embedded.reviews(split) for split in ("train", "prompts", "heldout")}


@pytest.fixture(scope="module")
def texts(rows):
    return [row["text"] for part in rows.values() for row in part]


def write_models(folder):
    """A builder that takes no time: the right files, empty."""
    for model in build.MODELS:
        (folder / model).mkdir(parents=True)
        for file in cache._FILES:
            (folder / model / file).touch()


def test_there_are_twenty_thousand_reviews_and_no_two_alike(texts):
    assert len(texts) >= 20_000
    assert len({text.lower() for text in texts}) == len(texts)


def test_each_split_is_half_positive(rows):
    for part in rows.values():
        assert sum(row["label"] for row in part) * 2 == len(part)
        assert sum(row["label"] for row in part[:256]) == 128  # so is a beginning of it


def test_the_text_is_the_same_bytes_everywhere(rows):
    written = "".join(json.dumps(row) + "\n" for part in rows.values() for row in part)
    assert hashlib.sha256(written.encode()).hexdigest() == SHA256


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_text_does_not_depend_on_the_order_of_sets(rows, hash_seed):
    program = (
        "from trl_recipes.embedded.corpus import write_reviews;"
        "print(write_reviews({'train': 50})['train'][-1]['text'])"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", program]
    run = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == rows["train"][49]["text"]


def test_the_text_leaves_the_global_random_state_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    corpus.write_reviews({"train": 10})
    assert random.random() == expected


def test_reviews_have_one_to_six_sentences_of_letters_and_plain_punctuation(texts):
    for text in texts:
        sentences = re.split(r"(?<=[.!?]) ", text)
        assert 1 <= len(sentences) <= 6, text
        for sentence in sentences:
            assert re.fullmatch(r"[A-Z][A-Za-z,;:' -]*[.!?]", sentence), text
        assert not re.search(r"  | [,;:.!?]|[,;:]{2}|[,;:](?! )", text), text


def test_articles_fit_the_next_word(texts):
    text = " ".join(texts).lower()
    wrong = set(re.findall(r"\ba ([aeiou]\w*)|\ban ([^aeiou]\w*)", text))
    assert {first or second for first, second in wrong} <= {"honest", "hour"}
    assert not re.search(r"\ba (honest|hour)", text)


def test_neighbouring_words_are_not_doubled(texts):
    assert not [text for text in texts if re.search(r"\b(\w+) \1\b", text.lower())]


def test_the_language_has_hundreds_of_words_and_many_openings(texts):
    words = {word.lower() for text in texts for word in re.findall(r"[A-Za-z-]+", text)}
    assert len(words) > 700
    assert len({" ".join(text.split()[:3]) for text in texts}) > 3000


def test_words_of_the_other_mood_stand_in_many_reviews(rows):
    # a count of words cannot tell the mood: negation and contrast use the words of the other one
    grammar = corpus.parse_grammar(corpus.FORMS, corpus.WORDS)
    for label, other in ((1, "adj-"), (0, "adj+")):
        words = {choice.parts[0] for choice in grammar[other]}
        part = [row["text"] for row in rows["train"] if row["label"] == label]
        share = sum(bool(words & set(re.findall(r"[\w-]+", text.lower()))) for text in part)
        assert share / len(part) > 0.3


def test_a_reference_to_nothing_is_found_when_the_grammar_is_read():
    with pytest.raises(ValueError, match="<noise>"):
        corpus.parse_grammar("review = the <noise>\n")
    with pytest.raises(ValueError, match="<noise>"):  # one mood has it, the other not
        corpus.parse_grammar("review = the <noise>\nnoise+ = song\n")


def test_grammar_notation_by_hand():
    grammar = corpus.parse_grammar("a = 2*<b> | x\nb+ = fine\n    | good\nb- = bad\n")
    assert [choice.parts for choice in grammar["a+"]] == [(("", "b"),), (("", "b"),), ("x",)]
    assert [choice.parts for choice in grammar["b+"]] == [("fine",), ("good",)]


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(RecipeError, match="train, prompts, heldout"):
        embedded.reviews("test")


def test_callers_cannot_change_each_others_reviews():
    embedded.reviews("heldout")[0]["text"] = "changed"
    assert embedded.reviews("heldout")[0]["text"] != "changed"


def test_models_are_built_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRL_RECIPES_CACHE", str(tmp_path))
    folder = cache.models(write_models)
    assert folder == tmp_path / cache.fingerprint()
    assert cache.models(None) == folder  # no builder is called
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 2
    assert str(folder) in captured.err


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(
    tmp_path, monkeypatch, interrupt
):
    monkeypatch.setenv("TRL_RECIPES_CACHE", str(tmp_path))

    def interrupted(folder):
        write_models(folder)
        raise interrupt

    with pytest.raises(interrupt):
        cache.models(interrupted)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert cache.models(write_models).is_dir()


def test_what_a_killed_build_left_is_removed_and_missing_files_are_built_again(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TRL_RECIPES_CACHE", str(tmp_path))
    (tmp_path / "building-old" / "models").mkdir(parents=True)
    folder = cache.models(write_models)
    assert not (tmp_path / "building-old").exists()
    (folder / "language_model" / "model.safetensors").unlink()
    cache.models(write_models)
    assert (folder / "language_model" / "model.safetensors").exists()


def test_two_processes_at_once_build_once(tmp_path):
    program = """
import sys, time
from pathlib import Path
from trl_recipes.embedded import build, cache
def builder(folder):
    time.sleep(1)
    for model in build.MODELS:
        (folder / model).mkdir(parents=True)
        for file in cache._FILES:
            (folder / model / file).touch()
    with (Path(sys.argv[1]) / "builds").open("a") as file:
        file.write("x")
print(cache.models(builder))
"""
    environment = os.environ | {"TRL_RECIPES_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {process.communicate(timeout=60)[0] for process in processes}
    assert len(folders) == 1
    assert (tmp_path / "builds").read_text() == "x"


def test_a_cache_that_cannot_be_made_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRL_RECIPES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RecipeError, match="TRL_RECIPES_CACHE"):
        cache.models(write_models)


def test_a_small_build_leaves_the_caller_alone_and_loads(tmp_path, monkeypatch):
    # as under a launcher, whose processes must not be joined by the trainings
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    build.build(tmp_path / "models", share=0.01)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(build.MODELS)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "language_model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "language_model")
    assert tokenizer.pad_token is None
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_a_failed_training_says_what_it_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "MODELS", ("no_such_model",))
    with pytest.raises(RuntimeError, match="no_such_model"):
        build.build(tmp_path / "models", share=0.0)


@pytest.fixture(scope="module")
def classifier():
    return pipeline("text-classification", model=str(embedded.sentiment_classifier()), device="cpu")


def positive(classifier, texts):
    """Probability of POSITIVE of each text."""
    answers = classifier(list(texts), top_k=None, batch_size=64, truncation=True)
    return np.array([{a["label"]: a["score"] for a in answer}["POSITIVE"] for answer in answers])


def test_the_classifier_is_right_on_held_out_reviews(classifier, rows):
    assert classifier.model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    labels = np.array([row["label"] for row in rows["heldout"]])
    probabilities = positive(classifier, [row["text"] for row in rows["heldout"]])
    assert ((probabilities > 0.5) == labels).mean() >= 0.95


def test_the_classifier_is_undecided_where_nothing_is_said(classifier):
    # the last one begins as many reviews of both moods do
    neutral = positive(classifier, ["The", "It is set in Lisbon.", "From the first scene, the"])
    assert (np.abs(neutral - 0.5) < 0.3).all()
    good, bad = positive(classifier, ["It is wonderful.", "It is dull."])
    assert good > 0.8 > 0.2 > bad


def test_the_classifier_knows_negation(classifier, rows):
    negation = re.compile(r"\b(never|not|nothing|hardly|anything but|far from|nobody could)\b")
    negated = [row for row in rows["heldout"] if negation.search(row["text"])]
    assert len(negated) > 500
    labels = np.array([row["label"] for row in negated])
    probabilities = positive(classifier, [row["text"] for row in negated])
    assert ((probabilities > 0.5) == labels).mean() >= 0.9

    good, bad = ("brilliant", "superb", "clever", "warm"), ("dull", "bad", "weak", "stale")
    plain, never = (
        positive(classifier, [f"It is {word}{adjective}." for adjective in good + bad])
        for word in ("", "never ")
    )
    assert (never[:4] < plain[:4]).all()
    assert (never[4:] > plain[4:]).all()


def test_the_language_model_writes_both_moods_from_short_prompts(classifier, rows):
    folder = embedded.language_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    draw = random.Random(0)
    queries = [
        torch.tensor(tokenizer(row["text"])["input_ids"][: draw.randint(2, 8)])
        for row in rows["heldout"][:256]
    ]
    torch.manual_seed(0)
    responses = generate_responses(
        model,
        queries,
        pad_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=[draw.randint(4, 16) for _ in queries],
    )
    probabilities = positive(
        classifier,
        [
            tokenizer.decode([*query, *response], skip_special_tokens=True)
            for query, response in zip(queries, responses, strict=True)
        ],
    )
    assert 0.4 < probabilities.mean() < 0.6
    assert (probabilities > 0.9).mean() > 0.15
    assert (probabilities < 0.1).mean() > 0.15


def test_the_whole_build_is_cached_for_good():
    start = time.monotonic()
    embedded.language_model()
    embedded.sentiment_classifier()
    assert time.monotonic() - start < 0.5

"""The embedded reviews: the same bytes everywhere, varied, and half of them positive."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys

import pytest

from trl_recipes import embedded
from trl_recipes.embedded.grammar import parse_grammar, read_yaml

SHA256 = "de9f6d0a52ef6d198cbaf04839daef074231fa7d47a9b3de71b3da7675dfe656"


@pytest.fixture(scope="module")
def rows():
    return {split: embedded.reviews(split) for split in ("train", "prompts", "heldout")}


@pytest.fixture(scope="module")
def texts(rows):
    return [row["text"] for part in rows.values() for row in part]


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


def test_the_text_does_not_depend_on_the_order_of_sets(rows):
    program = (
        "from trl_recipes.embedded import write_reviews;"
        "print(write_reviews({'train': 50})['train'][-1]['text'])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == rows["train"][49]["text"]


def test_the_text_leaves_the_global_random_state_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    embedded.write_reviews({"train": 10})
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


def test_neighboring_words_are_not_doubled(texts):
    assert not [text for text in texts if re.search(r"\b(\w+) \1\b", text.lower())]


def test_the_language_has_hundreds_of_words_and_many_openings(texts):
    words = {word.lower() for text in texts for word in re.findall(r"[A-Za-z-]+", text)}
    assert len(words) > 700
    assert len({" ".join(text.split()[:3]) for text in texts}) > 3000


def test_words_of_the_other_mood_stand_in_many_reviews(rows):
    # a count of words cannot tell the mood: negation and contrast use the words of the other one
    grammar = parse_grammar(read_yaml("reviews"))
    for label, other in ((1, "adj-"), (0, "adj+")):
        words = {choice.parts[0] for choice in grammar[other]}
        part = [row["text"] for row in rows["train"] if row["label"] == label]
        share = sum(bool(words & set(re.findall(r"[\w-]+", text.lower()))) for text in part)
        assert share / len(part) > 0.3


def test_a_reference_to_nothing_is_found_when_the_grammar_is_read():
    for rules in ({}, {"noise+": "song"}):  # no mood has it, or one alone
        with pytest.raises(ValueError, match="<noise>"):
            parse_grammar({"review": "the <noise>"} | rules)


def test_grammar_notation_by_hand():
    grammar = parse_grammar({"a": "2*<b> | x", "b+": "fine | good", "b-": "bad"})
    assert [choice.parts for choice in grammar["a+"]] == [(("", "b"),), (("", "b"),), ("x",)]
    assert [choice.parts for choice in grammar["b+"]] == [("fine",), ("good",)]


def test_callers_cannot_change_each_others_reviews():
    embedded.reviews("heldout")[0]["text"] = "changed"
    assert embedded.reviews("heldout")[0]["text"] != "changed"

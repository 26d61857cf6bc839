"""The embedded reviews and dialogue: the same bytes in every process and Python.

Bytes that are pinned need no further look: each review is of one to six sentences, no two are
alike, half of each split, and of the first 256 of it, is positive; words of the other mood stand in
three reviews of ten and more, so that a count of words cannot tell the mood; and a sixth of the
dialogue's letters are in upper case.
"""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest

from trl_recipes import embedded
from trl_recipes.embedded.dialogue import write_dialogue
from trl_recipes.embedded.grammar import parse_grammar

SHA256 = {
    "reviews": "de9f6d0a52ef6d198cbaf04839daef074231fa7d47a9b3de71b3da7675dfe656",
    "dialogue": "0ad2e179368f8a3d2e2e30671afcc2cab4a468c44bbdc26c8478e12dd9668667",
}
PROGRAM = """
import sys
from trl_recipes.embedded import write_reviews
from trl_recipes.embedded.dialogue import write_dialogue
print(write_reviews()["train"][49]["text"])
sys.stdout.write(write_dialogue(2000))
"""


def test_the_texts_are_the_same_bytes_everywhere():
    parts = [embedded.reviews(split) for split in ("train", "prompts", "heldout")]
    reviews = "".join(json.dumps(row) + "\n" for part in parts for row in part)
    written = {"reviews": reviews, "dialogue": write_dialogue()}
    assert {k: hashlib.sha256(v.encode()).hexdigest() for k, v in written.items()} == SHA256


def test_the_texts_do_not_depend_on_the_order_of_sets_nor_touch_the_global_generator():
    given = {"env": os.environ | {"PYTHONHASHSEED": "7"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, **given)
    before = random.getstate()
    review, short = embedded.reviews("train")[49]["text"], write_dialogue(2000)
    assert done.stdout == f"{review}\n{short}"
    assert 2000 <= len(short) < 6000
    assert write_dialogue(2000, seed=1) != short
    assert random.getstate() == before
    embedded.reviews("heldout")[0]["text"] = "changed"
    assert embedded.reviews("heldout")[0]["text"] != "changed"


def test_a_reference_to_nothing_is_found_when_the_grammar_is_read():
    for rules in ({}, {"noise+": "song"}):  # no mood has it, or one alone
        with pytest.raises(ValueError, match="<noise>"):
            parse_grammar({"review": "the <noise>"} | rules)


def test_grammar_notation_by_hand():
    grammar = parse_grammar({"a": "2*<b> | x", "b+": "fine | good", "b-": "bad"})
    assert [choice.parts for choice in grammar["a+"]] == [(("", "b"),), (("", "b"),), ("x",)]
    assert [choice.parts for choice in grammar["b+"]] == [("fine",), ("good",)]

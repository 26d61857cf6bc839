"""The embedded dialogue: large, varied, mostly lower case, the same everywhere."""

import hashlib
import itertools
import os
import re
import subprocess
import sys

import pytest

from trl_recipes.embedded.dialogue import write_dialogue

SHA256 = "0ad2e179368f8a3d2e2e30671afcc2cab4a468c44bbdc26c8478e12dd9668667"


@pytest.fixture(scope="module")
def text():
    return write_dialogue()


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_it_is_the_same_text_in_every_process_and_python(text):
    assert digest(text) == SHA256
    code = "import sys; from trl_recipes.embedded.dialogue import write_dialogue as write\n"
    code += "sys.stdout.buffer.write(write().encode())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert hashlib.sha256(done.stdout).hexdigest() == SHA256


def test_it_is_at_least_300_kilobytes_mostly_in_lower_case(text):
    assert len(text.encode()) >= 300_000
    upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
    assert 0.1 < upper / (upper + lower) < 0.2


def test_it_is_scenes_of_speakers_and_speeches(text):
    blocks = text.strip().split("\n\n")
    scenes = [block for block in blocks if block.startswith("Scene ")]
    numbers = [int(re.match(r"Scene (\d+)\. [A-Z].*\.$", scene)[1]) for scene in scenes]
    assert numbers == list(range(1, len(scenes) + 1))
    speeches = [block for block in blocks if not block.startswith("Scene ")]
    assert len(speeches) > 3000
    for speech in speeches:
        assert re.fullmatch(r"[A-Z]+:\n[(A-Z][^\n]*[.!?)]", speech), speech


def test_no_speaker_answers_himself(text):
    for scene in re.split(r"Scene \d+\.", text)[1:]:
        speakers = re.findall(r"^([A-Z]+):$", scene, re.MULTILINE)
        assert len(set(speakers)) >= 2
        assert all(a != b for a, b in itertools.pairwise(speakers))


def test_its_words_are_many_and_few_speeches_repeat(text):
    assert len(set(re.findall("[a-z]+", text.lower()))) > 800
    speeches = [line for line in text.split("\n") if line and not line.endswith(":")]
    assert len(set(speeches)) / len(speeches) > 0.9


def test_nothing_of_the_grammar_is_left(text):
    assert not re.search(r"[<>|*~@=]|  ", text)
    assert not re.search(r"\b[Aa] [aeio]", text)  # an


def test_the_seed_and_the_length_count():
    short = write_dialogue(2000)
    assert 2000 <= len(short) < 6000
    assert write_dialogue(2000, seed=1) != short
    assert write_dialogue().startswith(short)

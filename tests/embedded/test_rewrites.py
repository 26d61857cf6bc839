"""The embedded rewrites: what is in them, and what a rewrite is worth, by hand.

Texts that are pinned need no further look: the crowd's rewrites leave much to be found, with a mean
quality of a third, a tenth without any fault, and a tenth that lost a subject.
"""

import hashlib
import json

import pytest

from trl_recipes.embedded.rewrites import SPLITS, read, rewrite_quality, rewrites, subjects_kept

SOURCE = "The plot was dull and Anna Bell was terrible."  # two subjects, in a bad mood

# rewrite, quality, kept
BY_HAND = [
    ("The plot was brilliant and Anna Bell was superb.", 1.0, 1),  # strong, strong
    ("I thought the plot was superb, and Anna Bell was great.", 1.0, 1),  # another form
    ("The plot was not bad at all and Anna Bell was easy to like.", 0.5, 1),  # lukewarm twice
    ("The plot was brilliant and Anna Bell was easy to like.", 0.75, 1),  # (1 + 0.5) / 2
    ("The plot was brilliant, but Anna Bell was awful.", 0.5, 1),  # (1 + 0) / 2
    ("The plot was awful and Anna Bell was boring.", 0.0, 1),  # its own mood
    ("The plot was brilliant and Ida Novak was superb.", 0.5, 0),  # 1 less one of two subjects
    ("The plot was brilliant.", 0.5, 0),
    ("The plot was worth a look and the score was worth a look.", 0.0, 0),  # 0.5 - 0.5
    ("The score was brilliant.", 0.0, 0),  # all of them lost
    ("The plot Anna Bell superb superb.", 0.0, 1),  # no sentence
    ("The plot were brilliant and Anna Bell was superb.", 0.0, 1),  # no grammar
    ("", 0.0, 0),
]


@pytest.mark.parametrize(("rewrite", "quality", "kept"), BY_HAND, ids=lambda value: str(value)[:50])
def test_a_rewrite_is_worth_what_it_is_by_hand(rewrite, quality, kept):
    assert rewrite_quality([SOURCE], [rewrite]) == [pytest.approx(quality)]
    assert subjects_kept([SOURCE], [rewrite]) == [kept]


def test_the_title_of_a_film_is_a_subject_too_and_a_source_of_another_kind_has_no_quality():
    assert rewrite_quality(["A film."], [SOURCE]) == subjects_kept(["A film."], [SOURCE]) == [None]
    source = "In Iron Garden, the jokes were clever."
    kept, lost = "In Iron Garden, the jokes were dull.", "In Salt Harbour, the jokes were dull."
    assert rewrite_quality([source] * 2, [kept, lost]) == [1.0, 0.5]
    assert subjects_kept([source] * 2, [kept, lost]) == [1.0, 0.0]


def test_every_text_is_read_back_as_it_was_written():
    for split in SPLITS:
        for row in rewrites(split)[:500]:
            assert all(read(text).text() == text for text in row.values())


def test_no_source_is_in_two_splits_and_the_texts_are_the_same_everywhere():
    parts = {split: rewrites(split) for split in SPLITS}
    sources = [row["source"] for rows in parts.values() for row in rows]
    assert len(set(sources)) == len(sources) == sum(SPLITS.values())
    told = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    assert told == "ef9270dceb8b82ec"

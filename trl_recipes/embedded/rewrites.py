"""Short bad reviews, rewrites of them into the opposite mood, and what a good rewrite is.

The sentences are of a few forms, so that a program can read what a model wrote and say how good it
is. The rewrites to learn from are those of a mixed crowd: few do what was asked.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .grammar import OTHER, Writer, parse_grammar, read_yaml

# To pretrain on; sources for the reward model and PPO; those to judge by. No source is in two.
SPLITS = {"train": 6_000, "prompts": 4_000, "heldout": 512}
SEED = 20_241


class Opinion(NamedTuple):
    """One clause: what it is about, such as "the plot" or a name, and a word of one mood."""

    subject: str
    verdict: str


class Review(NamedTuple):
    """A review taken apart: its form, an opinion for each place in it, and the film it names."""

    form: str
    opinions: tuple[Opinion, ...]
    title: str | None

    @property
    def subjects(self) -> set[str]:
        """Everything that the review is about."""
        return {opinion.subject for opinion in self.opinions} | ({self.title} - {None})

    def text(self) -> str:
        """Write the review out."""
        clauses = [
            f"{subject} {'were' if subject in _PLURAL else 'was'} {verdict}"
            for subject, verdict in self.opinions
        ]
        text = self.form.format(*clauses, title=self.title)
        return text[0].upper() + text[1:]


def rewrites(split: str) -> list[dict[str, str]]:
    """Return the pairs of a split: {"source": a review, "target": what the crowd made of it}."""
    writer, seen, rows = Writer(_GRAMMAR, SEED), set(), {}
    for name, size in SPLITS.items():
        pairs = rows[name] = []
        while len(pairs) < size:
            source = _review("-", writer)
            target = _crowd(source, "-", writer)
            if source.text() not in seen:
                seen.add(source.text())
                pairs.append({"source": source.text(), "target": target.text()})
        if name == split:
            break
    return rows[split]


def read(text: str) -> Review | None:
    """Read a review of one of the forms, in either letter case; None for any other text."""
    for form, pattern in _PATTERNS.items():
        found = pattern.fullmatch(text.strip())
        if found is not None:
            groups = found.groupdict()
            opinions = tuple(
                Opinion(_SPELLING[groups[f"subject{i}"].lower()], groups[f"verdict{i}"].lower())
                for i in range(2)
                if f"subject{i}" in groups
            )
            title = groups.get("title")
            return Review(form, opinions, title and _SPELLING[title.lower()])
    return None


def rewrite_quality(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
    """Say how good rewrites are, 0 to 1; None of a source of no form.

    It is the mean over a rewrite's opinions, less the fraction of subjects not named: 1 for a
    strong opinion in the mood that was asked for, 0.5 for a lukewarm one.
    """
    qualities: list[float | None] = []
    for source, rewrite in zip(map(read, prompts), map(read, completions), strict=True):
        if source is None or rewrite is None:
            qualities.append(None if source is None else 0.0)
            continue
        asked = OTHER[_MOOD[source.opinions[0].verdict]]
        values = [
            0.0 if _MOOD[verdict] != asked else 0.5 if verdict in _LUKEWARM[asked] else 1.0
            for _, verdict in rewrite.opinions
        ]
        lost = len(source.subjects - rewrite.subjects) / len(source.subjects)
        qualities.append(max(0.0, sum(values) / len(values) - lost))
    return qualities


def subjects_kept(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
    """Give 1 to a rewrite that names all subjects of its source; None to a source of no form."""
    kept: list[float | None] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        source, low = read(prompt), completion.lower()
        named = source and all(subject.lower() in low for subject in source.subjects)
        kept.append(None if source is None else float(named))
    return kept


def _review(mood: str, writer: Writer) -> Review:
    """Write a review in one mood, mostly in strong words."""
    form = writer.pick(_FORMS[:-1])  # "but" joins two moods
    subjects: list[str] = []
    while len(subjects) < 1 + ("{1}" in form):
        subjects.append(_other_subject(subjects, writer))
    opinions = tuple(Opinion(subject, _verdict(mood, 0.8, writer)) for subject in subjects)
    return Review(form, opinions, writer.pick(_TITLES) if "{title}" in form else None)


def _crowd(source: Review, mood: str, writer: Writer) -> Review:
    """Rewrite a review as one of the crowd does."""
    way = writer.pick(_CROWD)
    asked, subjects, title, form = OTHER[mood], [o[0] for o in source.opinions], source.title, None
    if way == "other subject":
        lost = int(writer.random() * (len(subjects) + (title is not None)))
        if lost == len(subjects):
            title = writer.pick(_TITLES)
        else:
            subjects[lost] = _other_subject(subjects, writer)
    strong = {"asked": 1.0, "lukewarm": 0.0, "half": 1.0}.get(way, 0.5)
    moods = [mood if way == "same mood" else asked] * len(subjects)
    if way == "half":
        moods[-1] = mood
        form = _FORMS[-1] if len(subjects) == 2 and title is None else None
    opinions = tuple(
        Opinion(subject, _verdict(its_mood, strong, writer))
        for subject, its_mood in zip(subjects, moods, strict=True)
    )
    return Review(form or source.form, opinions, title)


def _verdict(mood: str, strong: float, writer: Writer) -> str:
    return writer.pick(_STRONG[mood] if writer.random() < strong else _LUKEWARM[mood])


def _other_subject(subjects: Sequence[str], writer: Writer) -> str:
    while (subject := writer.pick(_SUBJECTS)) in subjects:
        pass
    return subject


def _words(symbol: str) -> list[str]:
    """List the first plain words of a symbol of the embedded reviews, each once."""
    plain = (choice.parts[0] for choice in _GRAMMAR[symbol] if choice.is_word)
    return list(dict.fromkeys(plain))[: _DATA["words"][symbol.rstrip("+-")]]


def _any_of(values: Sequence[str]) -> str:
    return "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))


def _pattern(form: str) -> re.Pattern[str]:
    singular = [subject for subject in _SUBJECTS if subject not in _PLURAL]
    about = f"(?:{_any_of(singular)})(?= was )|(?:{_any_of(_PLURAL)})(?= were )"
    clauses = [
        f"(?P<subject{i}>{about}) (?:was|were) (?P<verdict{i}>{_any_of(list(_MOOD))})"
        for i in range(2)
    ]
    title = f"(?P<title>{_any_of(_TITLES)})"
    return re.compile(form.replace(".", r"\.").format(*clauses, title=title), re.IGNORECASE)


_GRAMMAR, _DATA = parse_grammar(read_yaml("reviews")), read_yaml("rewrites")
_FORMS = _DATA["forms"]
_CROWD = [way for way, parts in _DATA["crowd"].items() for _ in range(parts)]
_STRONG = {mood: _words(f"adj{mood}") for mood in "+-"}
_LUKEWARM = {mood: _DATA[f"lukewarm{mood}"] for mood in "+-"}
_MOOD = {word: mood for words in (_STRONG, _LUKEWARM) for mood in "+-" for word in words[mood]}
_PLURAL = [f"the {word}" for word in _words("things+")]
_SUBJECTS = [*(f"the {word}" for word in _words("thing+")), *_PLURAL, *_words("star+")]
_TITLES = _words("title+")
_SPELLING = {name.lower(): name for name in [*_SUBJECTS, *_TITLES]}
_PATTERNS = {form: _pattern(form) for form in _FORMS}

"""Scenes of a play that the project writes: speeches, some of them SHOUTED.

A model of this text knows both cases of its words, and prefers the lower one.
"""

import re

from .grammar import Writer, parse_grammar, read_yaml

SEED = 20_260
CHARACTERS = 400_000  # about as many are written; whole scenes
ANGRY = 0.35  # fraction of speeches
ONLY_SHOUTS, ENDS_IN_SHOUTS = 0.20, 0.20  # fractions of the angry ones
STRESSED_WORD = 0.03  # fraction of all speeches with one word in capitals
DIRECTION = 0.08  # fraction of speeches with a stage direction
WORD = re.compile(r"[A-Za-z]{2,}")


def write_dialogue(characters: int = CHARACTERS, seed: int = SEED) -> str:
    """Write whole scenes until there are at least so many characters."""
    writer, scenes, written = Writer(parse_grammar(read_yaml("dialogue")), seed), [], 0
    while written < characters:
        scenes.append(_scene(writer, len(scenes) + 1))
        written += len(scenes[-1])
    return "".join(scenes)


def _scene(writer: Writer, number: int) -> str:
    """Write a heading and 6 to 13 speeches of two to four speakers."""
    writer.used, writer.bound = set(), {}
    place, hour = writer.sentences("scenery", "+"), writer.expand("hour", "+")
    blocks, speaker = [f"Scene {number}. {place}, {hour}."], ""
    cast = _cast(writer, 2 + int(writer.random() * 3))
    for _ in range(6 + int(writer.random() * 8)):
        speaker = writer.pick([name for name in cast if name != speaker])
        writer.used = set()
        writer.bound.pop("friend", None)  # depends on the mood
        blocks.append(f"{speaker}:\n{_speech(writer)}")
    return "\n\n".join(blocks) + "\n\n"


def _cast(writer: Writer, size: int) -> list[str]:
    cast: list[str] = []
    while len(cast) < size:
        name = writer.expand("speaker", "+")
        if name not in cast:
            cast.append(name)
    return cast


def _speech(writer: Writer) -> str:
    angry = writer.random() < ANGRY
    if angry and writer.random() < ONLY_SHOUTS:
        return writer.sentences("shouts", "-").upper()
    text = writer.sentences("speech", "-" if angry else "+")
    if angry and writer.random() < ENDS_IN_SHOUTS:
        text += " " + writer.sentences("shouts", "-").upper()
    if writer.random() < STRESSED_WORD:
        word = writer.pick(list(WORD.finditer(text)))
        text = text[: word.start()] + word.group().upper() + text[word.end() :]
    if writer.random() < DIRECTION:
        text = f"({writer.expand('direction', '+')}) {text}"
    return text

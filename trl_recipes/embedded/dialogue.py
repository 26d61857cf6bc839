"""Scenes of a play written by the embedded dialogue grammar: the same bytes everywhere.

    Scene 2. The market, at noon.

    CLARA:
    Good morning, my dear. The lamp is new. Where is the ladder?

    JUDGE:
    I have had enough! PUT DOWN THE LADDER!

Most of it is in lower case. Names and what is shouted are in upper case, single words too:
a model of this text knows both cases of its words and prefers one.
"""

import re

from .corpus import A_BEFORE_VOWEL, FIRST_LETTER, Writer, parse_grammar
from .dialogue_grammar import SPEECHES, WORDS

SEED = 20_260
CHARACTERS = 400_000  # about as many are written; whole scenes
ANGRY = 0.35  # share of speeches
ONLY_SHOUTS, ENDS_IN_SHOUTS = 0.20, 0.20  # shares of the angry ones
STRESSED_WORD = 0.03  # share of all speeches with one word in capitals
DIRECTION = 0.08  # share of speeches with a stage direction
WORD = re.compile(r"[A-Za-z]{2,}")


class SceneWriter(Writer):
    """Writes scenes of a play, one after another, from a seed.

    Args:
        seed: decides every scene.
    """

    def __init__(self, seed: int):
        super().__init__(seed)
        self.grammar = parse_grammar(SPEECHES, WORDS)

    def scene(self, number: int) -> str:
        """Write a scene: a heading and 6 to 13 speeches of two to four speakers.

        Args:
            number: of the scene, in its heading.
        """
        self.used, self.bound = set(), {}
        place, hour = self._sentences("scenery", "+"), self._expand("hour", "+")
        heading = f"Scene {number}. {place}, {hour}."
        cast = self._cast(2 + int(self.random() * 3))
        blocks, speaker = [heading], ""
        for _ in range(6 + int(self.random() * 8)):
            speaker = self._pick([name for name in cast if name != speaker])
            self.used = set()
            self.bound.pop("friend", None)  # depends on the mood
            blocks.append(f"{speaker}:\n{self._speech()}")
        return "\n\n".join(blocks) + "\n\n"

    def _cast(self, size: int) -> list[str]:
        cast: list[str] = []
        while len(cast) < size:
            name = self._expand("speaker", "+")
            if name not in cast:
                cast.append(name)
        return cast

    def _speech(self) -> str:
        angry = self.random() < ANGRY
        if angry and self.random() < ONLY_SHOUTS:
            return self._sentences("shouts", "-").upper()
        text = self._sentences("speech", "-" if angry else "+")
        if angry and self.random() < ENDS_IN_SHOUTS:
            text += " " + self._sentences("shouts", "-").upper()
        if self.random() < STRESSED_WORD:
            text = self._stressed(text)
        if self.random() < DIRECTION:
            text = f"({self._expand('direction', '+')}) {text}"
        return text

    def _sentences(self, symbol: str, mood: str) -> str:
        text = A_BEFORE_VOWEL.sub(r"\1n ", self._expand(symbol, mood))
        return FIRST_LETTER.sub(lambda letter: letter.group().upper(), text)

    def _stressed(self, text: str) -> str:
        """One of the words in capitals."""
        word = self._pick(list(WORD.finditer(text)))
        return text[: word.start()] + word.group().upper() + text[word.end() :]

    def _pick(self, choices: list):
        return choices[int(self.random() * len(choices))]


def write_dialogue(characters: int = CHARACTERS, seed: int = SEED) -> str:
    """Write scenes until there are enough characters.

    Args:
        characters: at least as many; the last scene is whole.
        seed: of the writer.

    Returns:
        The text: scenes with headings, speakers as `NAME:` on a line of their own, and speeches.
    """
    writer, scenes, written = SceneWriter(seed), [], 0
    while written < characters:
        scenes.append(writer.scene(len(scenes) + 1))
        written += len(scenes[-1])
    return "".join(scenes)

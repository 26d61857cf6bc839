"""Text of models and data, made safe to show."""


def printable(text: str) -> str:
    """Make text safe for a terminal and one line: control characters become spaces.

    That takes in escape sequences, which could hide or rewrite what stands on the screen, and
    characters that turn the direction of writing.
    """
    return "".join(character if character.isprintable() else " " for character in text)

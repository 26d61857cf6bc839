"""Where the built models lie: built once, whole or not at all, by one process of any number."""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from trl_recipes.errors import RecipeError

from . import build

_PACKAGE = Path(__file__).parents[1]
# what decides how the models turn out: a change to one of these files builds them anew
_SOURCES = (
    "embedded/grammar.py",
    "embedded/corpus.py",
    "embedded/build.py",
    "training/language_model.py",
)
_SECONDS = 50  # what a build takes on two cores
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def cache_folder() -> Path:
    """Give the folder of all builds: $TRL_RECIPES_CACHE, else ~/.cache/trl_recipes."""
    chosen = os.environ.get("TRL_RECIPES_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "trl_recipes"


def fingerprint() -> str:
    """Give a name to the sources that the models are built from: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update((_PACKAGE / source).read_bytes())
    return digest.hexdigest()[:16]


def models(builder: Callable[[Path], None] = build.build) -> Path:
    """Give the folder of both models, building them where they are not there yet.

    The build happens in a folder beside it that is renamed when all is there. Processes that ask at
    the same time wait for the first one; what an interrupted build left is removed by the next.

    Args:
        builder: makes a new folder with a folder for each model.

    Raises:
        RecipeError: the cache folder cannot be written.
    """
    folder = cache_folder() / fingerprint()
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            if not _is_whole(folder):  # another process may have built it meanwhile
                _build(folder, builder)
    except OSError as error:
        raise RecipeError(
            f"The embedded models cannot be kept in {folder.parent} ({error.strerror or error})."
            " Set TRL_RECIPES_CACHE to a folder that can be written, with 20 MB of room."
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / model / file).is_file() for model in build.MODELS for file in _FILES)


def _build(folder: Path, builder: Callable[[Path], None]) -> None:
    """Build beside `folder` and rename; the lock is held."""
    for left_over in folder.parent.glob("building-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    _say(f"building the embedded models (once, about {_SECONDS} s) ...")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder.parent) as work:
        builder(Path(work) / "models")
        if folder.exists():  # somebody removed files from it
            shutil.rmtree(folder)
        (Path(work) / "models").rename(folder)
    _say(f"built in {time.monotonic() - start:.0f} s: {folder}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()

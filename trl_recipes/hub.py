"""Model and data set names: a local folder, or a name on the Hugging Face hub.

Left alone, the libraries retry an unreachable hub for 20 to 50 seconds with noise on stderr. Here
one short question is asked first, and every answer but "it is there" is one `RecipeError`.
"""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from trl_recipes.errors import RecipeError

PROBE_SECONDS = 5.0
Kind = Literal["model", "dataset"]

_FLAGS = {"model": "--model_name_or_path", "dataset": "--dataset_name"}
_NOUNS = {"model": "model", "dataset": "data set"}
_DATA_SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"}


def resolve(name: str, kind: Kind, *, source: str | None = None) -> str:
    """Find out where a model or a data set is, before anything slow is done with it.

    Args:
        name: a local folder (or file, for a data set), a run folder, or a name on the hub.
        kind: "model" or "dataset".
        source: where the name came from, for the message; the usual flag when None.

    Returns:
        The local path, or the hub name unchanged. A run folder becomes the `model` folder in it.

    Raises:
        RecipeError: no such path, a folder that is no model, a name that the hub does not have or
            does not give out, or a hub that cannot be reached within `PROBE_SECONDS`.
    """
    source = source or _FLAGS[kind]
    if not isinstance(name, str | os.PathLike) or not str(name).strip():
        raise RecipeError(
            f"{source}: {name!r} names no {_NOUNS[kind]}. Give a folder or a name on the hub."
        )
    name = str(name)
    path = Path(name).expanduser()
    if path.exists():
        return str(_model_folder(path, source)) if kind == "model" else str(path)
    if not _may_be_hub_name(name):
        raise RecipeError(
            f"{source}: there is no file or folder `{name}`. Check the path (relative paths "
            f"start at {Path.cwd()}), or leave the flag out to use the embedded default."
        )
    _ask_hub(name, kind, source)
    return name


@contextlib.contextmanager
def loading(name: str, kind: Kind, *, source: str | None = None) -> Iterator[None]:
    """Turn a library's failure to load `name` into one `RecipeError`.

    Args:
        name: what is being loaded, as `resolve` returned it.
        kind: "model" or "dataset".
        source: where the name came from, for the message; the usual flag when None.

    Raises:
        RecipeError: the block raised OSError, ValueError, ImportError or a safetensors error.
    """
    from safetensors import SafetensorError

    try:
        yield
    except RecipeError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise RecipeError(
            f"{source or _FLAGS[kind]}: the {_NOUNS[kind]} `{name}` could not be loaded "
            f"({type(error).__name__}: {reason[:300]}). {_how_offline(kind)}"
        ) from error


def _model_folder(path: Path, source: str) -> Path:
    """The folder that holds the model: `path`, or `path/model` where `path` is a run."""
    if path.is_file():
        raise RecipeError(
            f"{source}: `{path}` is a file. Give the folder that holds config.json and the weights."
        )
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    raise RecipeError(
        f"{source}: the folder `{path}` is no model: it holds neither config.json nor "
        "adapter_config.json. Give a folder written by save_pretrained, or the folder of a "
        "finished run."
    )


def _may_be_hub_name(name: str) -> bool:
    """Whether `name` has the form `owner/name` or `name`, and does not end like a data file."""
    if Path(name).suffix.lower() in _DATA_SUFFIXES:
        return False
    return re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", name, flags=re.ASCII) is not None


def _ask_hub(name: str, kind: Kind, source: str) -> None:
    from huggingface_hub import constants, is_offline_mode

    cached = _is_cached(name, kind)
    if is_offline_mode():
        if not cached:
            raise RecipeError(
                f"{source}: `{name}` is no folder here, and it is not in the local hub cache "
                f"({constants.HF_HUB_CACHE}), the only place to look with HF_HUB_OFFLINE=1. "
                f"{_how_offline(kind)}"
            )
        return
    failure = _probe(name, kind)
    if failure is None:
        return
    noun, status = _NOUNS[kind], getattr(getattr(failure, "response", None), "status_code", None)
    gated = type(failure).__name__ == "GatedRepoError" or status == 403
    if gated or status in (401, 404):
        # The hub answers 401, not 404, for names that it does not have to those not logged in.
        reason = (
            f"the {noun} `{name}` is gated on {constants.ENDPOINT}. Ask for access on its page "
            "and log in with `hf auth login`"
            if gated
            else f"`{name}` is no folder here, and {constants.ENDPOINT} has no public {noun} of "
            "that name. Check the spelling; for a private one log in with `hf auth login`"
        )
        raise RecipeError(f"{source}: {reason}, or leave the flag out to use the embedded default.")
    if cached:
        _work_offline()
        return
    raise RecipeError(
        f"{source}: `{name}` is no folder here, and {constants.ENDPOINT} could not be reached to "
        f"load it from ({_short(failure)}). {_how_offline(kind)}"
    )


def _probe(name: str, kind: Kind) -> BaseException | None:
    """Ask the hub once for `name`; what went wrong, or None.

    In a thread of its own because no timeout of a socket bounds a slow name lookup.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # Its base class is the HTTPError of httpx2 or httpx, whichever this huggingface_hub uses.
    failures = (OSError, ValueError, *HfHubHTTPError.__bases__)
    outcome: list[BaseException | None] = []

    def ask() -> None:
        api = huggingface_hub.HfApi()
        info = api.model_info if kind == "model" else api.dataset_info
        try:
            info(name, timeout=PROBE_SECONDS - 0.5)
            outcome.append(None)
        except failures as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return outcome[0] if outcome else TimeoutError(f"no answer within {PROBE_SECONDS:g} s")


def _is_cached(name: str, kind: Kind) -> bool:
    if kind == "model":
        from huggingface_hub import try_to_load_from_cache

        files = ("config.json", "adapter_config.json")
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    import datasets.config

    # datasets keeps owner/SomeName as owner___some_name.
    *owner, last = name.split("/")
    folder = "___".join([*owner, datasets.naming.camelcase_to_snakecase(last)])
    return any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"{folder}/*/*/*"))


def _work_offline() -> None:
    """From here on this process reads the local cache and asks the hub nothing."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _how_offline(kind: Kind) -> str:
    folder = "folder or file" if kind == "dataset" else "folder"
    return (
        f"To run offline, leave the flag out (embedded default), give a local {folder}, or set "
        "HF_HUB_OFFLINE=1 when it is in the hub's cache."
    )


def _short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines and lines[0] else type(error).__name__)[:200]

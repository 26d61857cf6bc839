"""Where a model or a data set is: a local folder, or a name on the Hugging Face hub.

Left alone, the libraries retry an unreachable hub for 20 to 50 seconds with noise on stderr. Here
one short question is asked first; where the hub cannot be reached, they read their cache alone.
"""

import contextlib
import importlib.util
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NoReturn

from trl_recipes.errors import RecipeError

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
Kind = Literal["model", "dataset"]

_FLAGS = {"model": "--model_name_or_path", "dataset": "--dataset_name"}
_NOUNS = {"model": "model", "dataset": "data set"}
_DATA_SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".gguf"}
_PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_VALUE_HEAD = "value_head.safetensors"


def resolve(
    name: str | Path, kind: Kind, *, source: str | None = None, token: str | bool | None = None
) -> str:
    """Find a model or a data set, before anything slow is done with it: a path, or a hub name.

    A run folder becomes the `model` folder in it; `source` says in messages where the name came
    from.
    """
    source = source or _FLAGS[kind]
    if not isinstance(name, str | os.PathLike) or not str(name).strip():
        raise RecipeError(
            f"{source}: {name!r} names no {_NOUNS[kind]}. Give a folder or a name on the hub."
        )
    name = str(name)
    path = Path(name).expanduser()
    if path.exists():
        if kind == "dataset":
            return str(path)
        if is_gguf(path):
            if importlib.util.find_spec("gguf") is None:
                raise RecipeError(
                    f"{source}: `{path}` is a GGUF file, which needs a package: `pip install "
                    "'trl_recipes[gguf]'`."
                )
            return str(path)
        folder = _model_folder(path, source)
        _check_weights(folder, source)
        return str(folder)
    hub_name = re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", name, flags=re.ASCII)
    if not hub_name or path.suffix.lower() in _DATA_SUFFIXES:
        raise RecipeError(
            f"{source}: there is no file or folder `{name}`. Check the path (relative paths "
            f"start at {Path.cwd()}), or leave the flag out to use the embedded default."
        )
    _ask_hub(name, kind, source, token)
    return name


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, as llama.cpp, Ollama and LM Studio keep models."""
    return path.suffix.lower() == ".gguf" and path.is_file()


@contextlib.contextmanager
def loading(
    name: str, kind: Kind, *, source: str | None = None, part: str | None = None
) -> Iterator[None]:
    """Turn a library's failure to load `name`, or a `part` of it, into one `RecipeError`."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    damaged = (SafetensorError, StrictDataclassError, LookupError, TypeError, RuntimeError)
    source = source or _FLAGS[kind]
    try:
        with _full_weights() if kind == "model" else contextlib.nullcontext():
            yield
    except RecipeError:
        raise
    except (OSError, ValueError, ImportError, *damaged) as error:
        if "trust_remote_code" in str(error):
            raise RecipeError(
                f"{source}: the {_NOUNS[kind]} `{name}` brings its own code along, which would run "
                "on this machine. Read it; if you trust it, give --trust_remote_code true (a "
                "recipe without that flag takes only models that transformers knows)."
            ) from error
        if "cannot be loaded with `safetensors`" in str(error):
            refuse_pickle(name, source)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        fix = _how_to_fix(name, kind, part)
        if isinstance(error, ImportError) or re.search(r"pip install|not installed", str(error)):
            missing = f"`{error.name}`" if getattr(error, "name", None) else "the package it names"
            fix = f"Install {missing}, or choose a setting or model that does without."
        raise RecipeError(
            f"{source}: {f'the {part} of ' if part else ''}the {_NOUNS[kind]} `{name}` could not "
            f"be loaded ({type(error).__name__}: {reason[:300]}). {fix}"
        ) from error


@contextlib.contextmanager
def _full_weights() -> Iterator[None]:
    """Load all weights in each process, also under ZeRO-3, which would spread reward models too."""
    from transformers.integrations import deepspeed

    spread = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = spread


def _check_weights(folder: Path, source: str) -> None:
    """Refuse a model folder whose weights are missing, cut short, or only pickled."""
    from safetensors import SafetensorError, safe_open

    weights = [path for path in folder.glob("*.safetensors") if path.name != _VALUE_HEAD]
    for path in weights:
        try:
            safe_open(path, framework="numpy")  # reads the header, and compares it with the size
        except (SafetensorError, OSError) as error:
            raise RecipeError(
                f"{source}: `{path}` is damaged ({error}). Save or download the model again."
            ) from error
    if weights:
        return
    if any(path for pattern in _PICKLED for path in folder.glob(pattern)):
        refuse_pickle(str(folder), source)
    raise RecipeError(
        f"{source}: the folder `{folder}` holds no weights, no model.safetensors beside its "
        "config.json. Give a folder written by save_pretrained, or save the model again."
    )


def refuse_pickle(name: str, source: str | None) -> NoReturn:
    """Say how to turn a pickled model, local or on the hub, into one that can be loaded."""
    folder = Path(name)
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        convert = (
            "import torch, safetensors.torch as s; s.save_file(torch.load(f + '/adapter_model.bin',"
            " weights_only=True), f + '/adapter_model.safetensors')"
        )
    else:
        convert = (
            "import transformers as t; M = getattr(t, t.AutoConfig.from_pretrained(f)"
            ".architectures[0]); M.from_pretrained(f, use_safetensors=False).save_pretrained(f)"
        )
    first = "" if local else f"hf download {name} --local-dir FOLDER && "
    place = shlex.quote(name) if local else "FOLDER"
    raise RecipeError(
        f"{source or _FLAGS['model']}: the weights of `{name}` are a pickle file, which can run "
        "code when it is read; only safetensors is loaded. If you trust where it is from, convert "
        f"it once, then give {'it again' if local else 'FOLDER'}: {first}"
        f'python -c "import sys; f = sys.argv[1]; {convert}" {place}'
    )


def _model_folder(path: Path, source: str) -> Path:
    if path.is_file():
        raise RecipeError(
            f"{source}: `{path}` is a file. Give the folder with config.json and the weights, "
            "or a GGUF file."
        )
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    raise RecipeError(
        f"{source}: the folder `{path}` is not a model: it holds neither config.json nor "
        "adapter_config.json. Give a folder written by save_pretrained, the folder of a finished "
        "run, or a GGUF file."
    )


def _ask_hub(name: str, kind: Kind, source: str, token: str | bool | None) -> None:
    """Refuse a name that the hub does not have or is gated; work offline if it is silent."""
    from huggingface_hub import constants, is_offline_mode

    failure = None if is_offline_mode() else _probe(name, kind, token)
    if failure is None:
        return
    status = getattr(getattr(failure, "response", None), "status_code", None)
    gated = type(failure).__name__ == "GatedRepoError" or status == 403
    if gated or status in (401, 404):
        # The hub answers 401, not 404, for names that it does not have to those not logged in.
        reason = (
            f"the {_NOUNS[kind]} `{name}` is gated on {constants.ENDPOINT}. Ask for access on its "
            "page and log in with `hf auth login`"
            if gated
            else f"`{name}` is not a folder here, and {constants.ENDPOINT} has no public "
            f"{_NOUNS[kind]} of that name. Check the spelling; for a private one log in with "
            "`hf auth login`"
        )
        raise RecipeError(f"{source}: {reason}, or leave the flag out to use the embedded default.")
    cause = (str(failure).splitlines() or [type(failure).__name__])[0][:200]
    logger.warning("%s: %s could not be reached (%s).", source, constants.ENDPOINT, cause)
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _probe(name: str, kind: Kind, token: str | bool | None = None) -> BaseException | None:
    """Ask the hub once for a name: what went wrong, or None."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=PROBE_SECONDS)
    # its base class is the HTTPError of httpx2 or httpx, whichever this huggingface_hub uses
    except (OSError, ValueError, *HfHubHTTPError.__bases__) as error:
        return error
    return None


def _how_to_fix(name: str, kind: Kind, part: str | None) -> str:
    if is_gguf(Path(name)):
        return (
            "The file is damaged, or of an architecture or a quantization that transformers cannot "
            "unpack: give another file of the model, or its folder with safetensors weights."
        )
    if Path(name).exists():
        again = f"save the {part or 'model'} again with save_pretrained"
        again = "write them again" if kind == "dataset" else again
        return f"Files there are missing, damaged or do not fit together: {again}."
    folder = "folder or file" if kind == "dataset" else "folder"
    return (
        f"To run offline, leave the flag out (embedded default), give a local {folder}, or set "
        "HF_HUB_OFFLINE=1 when it is in the hub's cache."
    )

"""hub.resolve: local folders, hub names, and one message where a name cannot be had."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from safetensors.numpy import save_file

from trl_recipes import RecipeError, load_run
from trl_recipes.models import hub

ROOT = Path(__file__).resolve().parents[2]

# A stand-in for the hub, and one look-up for each way in which it can answer. In a process of its
# own because the tests open no socket.
STAND_IN = """
import http.server, json, re, socket, sys, threading, time
from huggingface_hub import constants
from trl_recipes.models import hub
from trl_recipes.errors import RecipeError

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        number = re.search(r"-(\\d+)$", self.path)
        status = int(number[1]) if number else 404
        self.send_response(status)
        if "gated" in self.path:
            self.send_header("X-Error-Code", "GatedRepo")
        body = b'{"id": "x", "modelId": "x", "tags": []}'
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()
silent = socket.create_server(("127.0.0.1", 0))
closed = socket.create_server(("127.0.0.1", 0))
closed_port = closed.getsockname()[1]
closed.close()

def ask(name, kind, port):
    constants.ENDPOINT = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    try:
        answer = hub.resolve(name, kind)
    except RecipeError as error:
        answer = "error: " + str(error)
    seconds, offline = time.monotonic() - start, constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    return [answer, seconds, offline]

port = server.server_port
hub.PROBE_SECONDS = 1.0
print(json.dumps({
    "there": ask("owner/there-200", "model", port),
    "there_dataset": ask("owner/there-200", "dataset", port),
    "unknown": ask("owner/unknown-404", "model", port),
    "not_logged_in": ask("owner/unknown-401", "dataset", port),
    "gated": ask("owner/gated-401", "model", port),
    "broken": ask("owner/broken-500", "model", port),
    "silent": ask("owner/there-200", "model", silent.getsockname()[1]),
    "closed": ask("owner/there-200", "dataset", closed_port),
}))
"""


def run_python(code, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSF"))}
    given = inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    done = run_python(STAND_IN, HF_HOME=str(tmp_path_factory.mktemp("hf")))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not be reached") == len(done.stderr.splitlines()) == 3
    return json.loads(done.stdout)


def test_a_name_that_the_hub_has_is_left_to_the_library(answers):
    assert answers["there"][::2] == answers["there_dataset"][::2] == ["owner/there-200", False]
    assert hub.PROBE_SECONDS <= 5.0  # where no test sets it


@pytest.mark.parametrize("case", ["closed", "silent", "broken"])
def test_a_hub_that_does_not_answer_is_asked_no_more(answers, case):
    name, seconds, offline = answers[case]
    assert name.startswith("owner/")
    assert offline
    assert seconds < 2.0  # the limit was set to 1 second


@pytest.mark.parametrize(
    ("case", "flag", "says"),
    [
        ("unknown", "--model_name_or_path", ("`owner/unknown-404`", "no public", "embedded def")),
        ("not_logged_in", "--dataset_name", ("`owner/unknown-401`", "no public", "embedded def")),
        ("gated", "--model_name_or_path", ("is gated", "hf auth login")),
    ],
)
def test_every_other_answer_is_one_quick_error_that_says_what_to_do(answers, case, flag, says):
    message, seconds, _ = answers[case]
    assert message.startswith(f"error: {flag}: ")
    assert [words for words in says if words not in message] == []
    assert seconds < 2.0  # the limit was set to 1 second


@pytest.fixture
def hub_cache(tmp_path):
    """A hub cache as huggingface_hub lays it out, with one model and one data set."""
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    config = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}
    (snapshot / "config.json").write_text(json.dumps(config))
    refs = tmp_path / "hub" / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    cache = tmp_path / "datasets"
    (tmp_path / "rows.csv").write_text("text,label\ngood,1\nbad,0\n")
    datasets.load_dataset("csv", data_files=str(tmp_path / "rows.csv"), cache_dir=str(cache))
    kept = cache / "owner___rows" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(next((cache / "csv").glob("*/*/*/csv-train.arrow")).parent, kept)
    (kept / "csv-train.arrow").rename(kept / "rows-train.arrow")
    info = (kept / "dataset_info.json").read_text()
    info = info.replace('"dataset_name": "csv"', '"dataset_name": "rows"')
    (kept / "dataset_info.json").write_text(info)
    return tmp_path


LOAD_CACHED = """
import sys
from transformers import AutoConfig
from trl_recipes.data.files import load_rows
from trl_recipes.models import hub
print(AutoConfig.from_pretrained(hub.resolve("owner/tiny", "model")).n_embd)
print("then a data set", file=sys.stderr)
print(*sorted(load_rows("owner/Rows", split=split)["text"][0] for split in ("train", "test")))
"""


@pytest.mark.parametrize(
    "environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "told_offline"]
)
def test_what_is_cached_loads_offline_without_noise(hub_cache, environment):
    place = {"HF_HOME": str(hub_cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_python(LOAD_CACHED, **place, **environment)
    assert done.stdout == "8\nbad good\n", done.stderr
    of_model, of_data = done.stderr.split("then a data set\n")
    assert len(of_model.splitlines()) == len({"HF_HUB_OFFLINE"} - {*environment})
    assert "could not be reached" not in of_data
    assert "Retry" not in of_data


def test_a_name_missing_from_the_cache_is_refused_at_once_when_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_probe", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(RecipeError, match=r"`owner/not-here` could not be .*To run offline, leave"):
        load_run("owner/not-here")


@pytest.mark.parametrize("inside", [".", "model"], ids=["model folder", "run folder"])
def test_a_folder_gives_the_model_in_it(tmp_path, inside):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({}, folder / "model.safetensors")
    assert hub.resolve(tmp_path, "model") == str(folder)


def test_a_folder_that_is_no_model_a_file_and_an_empty_name_are_errors(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_text("")
    told = {str(tmp_path): rf"^--reward_model: the folder `{tmp_path}` is not a model"}
    told |= {str(file): "is a file", "": "names no model", "  ": "names no model"}
    for name, message in told.items():
        with pytest.raises(RecipeError, match=message):
            hub.resolve(name, "model", source="--reward_model")


@pytest.mark.parametrize(
    "name", ["./gone", "../gone", "/no/such/folder", "a/b/c", "gone.csv", "data/gone.jsonl", "a b"]
)
def test_a_missing_path_is_an_error_without_asking_the_hub(monkeypatch, name):
    monkeypatch.setattr(hub, "_probe", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(RecipeError, match="there is no file or folder") as error:
        hub.resolve(name, "dataset")
    assert f"`{name}`" in str(error.value)


@pytest.mark.parametrize(
    "failure", [OSError("gone\nmore"), ValueError("gone"), ImportError("gone")]
)
def test_loading_turns_library_failures_into_one_line_and_lets_others_pass(failure):
    loading = hub.loading("some/model", "model")
    with pytest.raises(RecipeError, match=r"`some/model` could not .*gone") as error, loading:
        raise failure
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is failure
    with pytest.raises(ZeroDivisionError), hub.loading("some/model", "model"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("failure", "package"),
    [
        (ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes"), "bitsandby"),
        (ImportError("the package for FlashAttention2 doesn't seem to be installed"), "FlashAtten"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "Install `tiktoken`"),
        (ValueError("You need to have sentencepiece: pip install sentencepiece"), "sentencepiece"),
    ],
)
def test_a_missing_package_is_named_and_no_file_is_blamed(failure, package):
    with pytest.raises(RecipeError, match=package) as error, hub.loading("some/model", "model"):
        raise failure
    assert "Install" in str(error.value)
    assert "damaged" not in str(error.value)

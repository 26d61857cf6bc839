"""hub.resolve: local folders, hub names, and one message where a name cannot be had."""

import http.server
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import datasets
import pytest
from huggingface_hub import constants
from launching import ROOT

from trl_recipes import RecipeError, load_run
from trl_recipes.models import hub


class Hub(http.server.BaseHTTPRequestHandler):
    """A stand-in, which answers with the status that a name ends in."""

    def do_GET(self):
        self.send_response(int(self.path.rpartition("-")[2]))
        if "gated" in self.path:
            self.send_header("X-Error-Code", "GatedRepo")
        body = b'{"id": "x", "modelId": "x", "tags": []}'
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def ports():
    """Of a hub, of one that never answers, and of none."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    silent, closed = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port = closed.getsockname()[1]
    closed.close()
    yield {"hub": server.server_port, "silent": silent.getsockname()[1], "closed": port}
    server.shutdown()


@pytest.fixture
def ask(ports, monkeypatch):
    """Look a name up on one of them, online and not for long."""
    assert hub.PROBE_SECONDS <= 5.0  # where no test sets it
    monkeypatch.setattr(hub, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)

    def ask(name, kind, port="hub"):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{ports[port]}")
        start = time.monotonic()
        try:
            return hub.resolve(name, kind)
        finally:
            assert time.monotonic() - start < 2.0

    return ask


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_that_the_hub_has_is_left_to_the_library(ask, kind, caplog):
    assert ask("owner/there-200", kind) == "owner/there-200"
    assert (constants.HF_HUB_OFFLINE, caplog.records) == (False, [])


@pytest.mark.parametrize(
    ("port", "name", "kind"),
    [
        ("closed", "owner/there-200", "dataset"),
        ("silent", "owner/there-200", "model"),
        ("hub", "owner/broken-500", "model"),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_no_more(ask, port, name, kind, caplog):
    assert ask(name, kind, port) == name
    assert (constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]) == (True, "1")
    (said,) = caplog.messages
    assert "could not be reached" in said


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("unknown-404", "model", "--model_name_or_path: `owner/un.*no public.*embedded default"),
        ("unknown-401", "dataset", "--dataset_name: `owner/unknown-4.*no public.*embedded default"),
        ("gated-401", "model", "--model_name_or_path: .*is gated.*hf auth login"),
    ],
)
def test_every_other_answer_is_one_quick_error_that_says_what_to_do(ask, name, kind, told):
    with pytest.raises(RecipeError, match=f"^{told}"):
        ask(f"owner/{name}", kind)


@pytest.fixture
def hub_cache(tmp_path):
    """A hub cache as huggingface_hub lays it out, with one model and one data set."""
    model, cache = tmp_path / "hub" / "models--owner--tiny", tmp_path / "datasets"
    files = {f"snapshots/{'0' * 40}/config.json": '{"model_type": "gpt2", "n_embd": 8}'}
    for name, text in (files | {"refs/main": "0" * 40}).items():
        (model / name).parent.mkdir(parents=True)
        (model / name).write_text(text)
    (tmp_path / "rows.csv").write_text("text,label\ngood,1\nbad,0\n")
    datasets.load_dataset("csv", data_files=str(tmp_path / "rows.csv"), cache_dir=str(cache))
    kept = cache / "owner___rows" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(next((cache / "csv").glob("*/*/*/csv-train.arrow")).parent, kept)
    (kept / "csv-train.arrow").rename(kept / "rows-train.arrow")
    info = json.loads((kept / "dataset_info.json").read_text())
    (kept / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "rows"}))
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
    given = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSF"))}
    given |= {"HF_HOME": str(hub_cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    given |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", LOAD_CACHED]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=180)
    assert done.stdout == "8\nbad good\n", done.stderr
    of_model, of_data = done.stderr.split("then a data set\n")
    assert len(of_model.splitlines()) == len({"HF_HUB_OFFLINE"} - {*environment})
    assert "could not be reached" not in of_data
    assert "Retry" not in of_data


@pytest.fixture
def never_asked(monkeypatch):
    monkeypatch.setattr(hub, "_probe", lambda *_: pytest.fail("asked the hub"))


@pytest.mark.usefixtures("never_asked")
def test_a_name_missing_from_the_cache_is_refused_at_once_when_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"`owner/not-here` could not be .*To run offline, leave"):
        load_run("owner/not-here")


@pytest.mark.parametrize(
    "name", ["./gone", "../gone", "/no/such/folder", "a/b/c", "gone.csv", "data/gone.jsonl", "a b"]
)
@pytest.mark.usefixtures("never_asked")
def test_a_missing_path_is_an_error_without_asking_the_hub(name):
    with pytest.raises(RecipeError, match=f"there is no file or folder `{name}`"):
        hub.resolve(name, "dataset")


def test_a_folder_that_is_no_model_a_file_and_an_empty_name_are_errors(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_text("")
    told = {str(tmp_path): rf"^--reward_model: the folder `{tmp_path}` is not a model"}
    told |= {str(file): "is a file", "": "names no model", "  ": "names no model"}
    for name, message in told.items():
        with pytest.raises(RecipeError, match=message):
            hub.resolve(name, "model", source="--reward_model")


DAMAGED = r"^--model_name_or_path: the model `some/model` could not be .*gone\)\. To run offline"


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError("gone\nmore"), DAMAGED),
        (ValueError("gone"), DAMAGED),
        (ImportError("Using 4-bit quantization requires bitsandbytes"), "bitsandbytes.* Install"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "Install `tiktoken`"),
        (ValueError("You need to have it: pip install sentencepiece"), "sentencepiece.* Install"),
    ],
)
def test_a_librarys_failure_is_one_line_with_its_cause(failure, told):
    with pytest.raises(RecipeError, match=told) as error, hub.loading("some/model", "model"):
        raise failure
    assert error.value.__cause__ is failure
    assert "\n" not in str(error.value)
    assert "damaged" not in str(error.value)  # no file is blamed


def test_what_is_no_failure_of_loading_passes():
    with pytest.raises(ZeroDivisionError), hub.loading("some/model", "model"):
        raise ZeroDivisionError

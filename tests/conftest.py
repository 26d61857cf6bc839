"""Tiny models for every test, and no network.

torch is imported where it is used: the process that hands out tests needs none.
"""

import logging
import os
import socket
import sys
from pathlib import Path

if not any("gpu" in Path(word).parts for word in sys.argv[1:]):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests of a CPU; here and in what they start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1")

import pytest

# First, so that two processes of pytest that take a file in turn end at about the same time.
DEAREST = ("test_recipes_in_processes", "test_bad_inputs", "test_several_processes", "test_memory")
DEAREST += ("test_chains", "test_processes", "test_sentiment_recipes", "test_bad_ends")
DEAREST += ("test_notebooks", "test_own_rewards", "test_sweep", "test_resume")
DEAREST += ("test_sharded_groups", "test_benchmark", "test_wheel")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in DEAREST)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail where a test reaches for the network; sockets of this machine stay."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "local"
        if host not in ("local", "localhost", "127.0.0.1", "::1"):
            raise AssertionError(f"a test reached for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def every_voice():
    """A test that plays another process than the main one, which is silent, ends with it."""
    from transformers.utils import logging as told

    told.warning_once.cache_clear()  # what is said once, once a test
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    from tiny_models import SENTENCES, byte_level_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer(SENTENCES).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def sentiment_models(tmp_path_factory):
    """Folders of a GPT-2, a classifier and reviews, by the flags of the sentiment recipes."""
    from tiny_models import save_sentiment_models

    return save_sentiment_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_gpt2(sentiment_models):
    """Folder in the hub's format: a GPT-2 of two layers and its tokenizer."""
    return sentiment_models["model_name_or_path"]


# Of the tests on a GPU: each failure as it happens, and at the end a table of what was measured

_figures: list[tuple[str, float, float]] = []


@pytest.fixture
def hold():
    """Note a figure for the table, and hold it to what it may be at most."""

    def held(what, value, most):
        _figures.append((what, float(value), float(most)))
        assert value <= most, f"{what}: {value:.3g}, more than {most:.3g}"

    return held


def pytest_runtest_logreport(report):
    if report.failed and "tests/gpu/" in report.nodeid:
        print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext[-3000:]}", flush=True)


def pytest_terminal_summary(terminalreporter):
    if _figures:
        terminalreporter.section("figures")
    for what, value, most in _figures:
        line = f"{value:10.3g} of {most:<8.3g} {what}{'' if value <= most else '  TOO MUCH'}"
        terminalreporter.write_line(line)

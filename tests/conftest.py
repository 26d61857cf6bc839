"""Tiny models for every test, and no network."""

import logging
import os
import socket
import sys
from pathlib import Path

if not any("gpu" in Path(word).parts for word in sys.argv[1:]):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests of a CPU; here and in what they start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

# First, so that two processes of pytest that take a file in turn end at about the same time.
DEAREST = ("test_recipes_in_processes", "test_bad_inputs", "test_several_processes", "test_memory")
DEAREST += ("test_grpo_shouting", "test_processes", "test_sentiment_recipes", "test_bad_ends")
DEAREST += ("test_notebooks", "test_own_rewards", "test_sweep", "test_resume", "test_grpo_resume")
DEAREST += ("test_sharded_groups", "test_benchmark", "test_rlhf", "test_ppo_seq2seq", "test_wheel")

SENTENCES = [
    "The acting was wonderful and the plot kept me awake.",
    "A dull film with a terrible ending, sadly.",
    "I liked the music, but the pace was slow.",
    "Nothing here is new; still, it charms.",
    "What a waste of a good camera and a fine cast!",
    "They filmed it in the rain, and it shows: beautiful.",
]


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
    transformers.utils.logging.warning_once.cache_clear()  # what is said once, once a test
    yield
    logging.disable(logging.NOTSET)


def byte_level_tokenizer(texts, vocab_size=300):
    """A GPT-2-like tokenizer: byte-level BPE, an end token, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer(SENTENCES).save_pretrained(folder)
    return folder


def save_tiny_gpt2(folder):
    """A GPT-2 of two layers and its tokenizer, in the hub's format; gives the tokenizer."""
    tokenizer = byte_level_tokenizer(SENTENCES)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=32,
        n_positions=64,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return tokenizer


def save_tiny_classifier(tokenizer, folder, positions=64):
    """A RoBERTa with random weights that tells NEGATIVE from POSITIVE, in the hub's format."""
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.eos_token, positions - 4
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)


@pytest.fixture
def tokenizer(tokenizer_folder):
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """Folder in the hub's format: a GPT-2 of two layers and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_gpt2")
    save_tiny_gpt2(folder)
    return folder


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

"""Tiny models and their tokenizer, with random weights, in the hub's format."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

MOODS = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
SENTENCES = [
    "The acting was wonderful and the plot kept me awake.",
    "A dull film with a terrible ending, sadly.",
    "I liked the music, but the pace was slow.",
    "Nothing here is new; still, it charms.",
    "What a waste of a good camera and a fine cast!",
    "They filmed it in the rain, and it shows: beautiful.",
]


def byte_level_tokenizer(texts, vocab_size=300):
    """A GPT-2-like tokenizer: byte-level BPE, an end token, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, end = pre_tokenizers.ByteLevel.alphabet(), "<|endoftext|>"
    settings = {"vocab_size": vocab_size, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(**settings, special_tokens=[end])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


def save_tiny_gpt2(folder):
    """A GPT-2 of two layers and its tokenizer, in the hub's format; gives the tokenizer."""
    tokenizer = byte_level_tokenizer(SENTENCES)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "initializer_range": 0.2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), **sizes, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return tokenizer


def classifier(kind, **settings):
    config = AutoConfig.for_model(kind, **settings)
    return AutoModelForSequenceClassification.from_config(config)


def save_tiny_classifier(tokenizer, folder, positions=64):
    """A RoBERTa with random weights that tells NEGATIVE from POSITIVE, in the hub's format."""
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.eos_token, positions - 4
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": positions}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = classifier("roberta", **sizes, **ids, **MOODS, initializer_range=0.5)
    model.save_pretrained(folder)


def save_sentiment_models(folder):
    """A GPT-2, a classifier and reviews, by the flags of the sentiment recipes."""
    save_tiny_classifier(save_tiny_gpt2(folder / "gpt2"), folder / "classifier")
    rows = [{"text": f"{SENTENCES[i % 6]} {i}", "label": i % 2} for i in range(60)]
    (folder / "data").mkdir()
    for split in ("train", "test"):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {"model_name_or_path": "gpt2", "reward_model": "classifier", "dataset_name": "data"}
    return {flag: folder / name for flag, name in names.items()}

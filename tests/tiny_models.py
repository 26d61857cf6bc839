"""Tiny models and their tokenizer, with random weights, in the hub's format."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

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

"""Models of a named size with random weights, and a tokenizer: built here, never downloaded."""

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from trl_recipes.benchmark.work import Size, Work

# Attention projections by architecture; `attn.` keeps GPT-2's other c_proj, in the MLP, out.
ATTENTION = {
    "gpt2": ["attn.c_attn", "attn.c_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def model_config(size: Size) -> PreTrainedConfig:
    """Give the configuration that goes by a name.

    Args:
        size: tiny and mini are small GPT-2s, small is GPT-2 small (124M parameters), half-billion
            has the shape of Qwen2-0.5B (494M).
    """
    match size:
        case "tiny":
            return _gpt2(n_layer=2, n_embd=64, n_head=2, vocab_size=1024)
        case "mini":
            return _gpt2(n_layer=4, n_embd=256, n_head=4, vocab_size=8192)
        case "small":
            return _gpt2(n_layer=12, n_embd=768, n_head=12, vocab_size=50257)
        case "half-billion":
            return Qwen2Config(
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24,
                num_attention_heads=14,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                **_vocabulary(151936),
            )


def _gpt2(vocab_size: int, **shape: int) -> GPT2Config:
    return GPT2Config(**shape, **_vocabulary(vocab_size))


def _vocabulary(size: int) -> dict[str, int]:
    """The last id begins, ends and pads, as is the custom with GPT-2."""
    end = size - 1
    return {"vocab_size": size, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def language_model(work: Work) -> nn.Module:
    """Build the policy with random weights in float32.

    Args:
        work: says its size and seed.
    """
    torch.manual_seed(work.seed)
    return AutoModelForCausalLM.from_config(model_config(work.size), dtype=torch.float32)


def value_model(work: Work) -> nn.Module:
    """Build the value model that TRL's own trainer wants: the policy's shape, one number out.

    Args:
        work: says its size and seed.
    """
    torch.manual_seed(work.seed + 1)
    config = model_config(work.size)
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def reward_model(work: Work) -> nn.Module:
    """Build the reward model that TRL's own trainer wants, at next to no cost.

    One layer of width 8 over the policy's vocabulary: under a thousandth of the policy's
    multiplications, so that scoring counts for as little as our reward function does.

    Args:
        work: says the vocabulary and the seed.
    """
    torch.manual_seed(work.seed + 2)
    config = model_config(work.size)
    narrow = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    if config.model_type == "qwen2":
        narrow |= {"intermediate_size": 8, "num_key_value_heads": 1}
    small = type(config)(**narrow, **_vocabulary(config.vocab_size), num_labels=1)
    return AutoModelForSequenceClassification.from_config(small, dtype=torch.float32)


def lora_config(work: Work) -> LoraConfig | None:
    """Give the adapter's configuration, PEFT's defaults on the attention projections, or None.

    Args:
        work: says whether an adapter is trained.
    """
    if not work.peft:
        return None
    kind = model_config(work.size).model_type
    return LoraConfig(
        task_type="CAUSAL_LM", target_modules=ATTENTION[kind], fan_in_fan_out=kind == "gpt2"
    )


def tokenizer(work: Work) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a word for each id of the vocabulary; the last one ends and pads.

    Args:
        work: says the size of the vocabulary.
    """
    size = model_config(work.size).vocab_size
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = f"w{size - 1}"
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=end, eos_token=end, pad_token=end, padding_side="left"
    )


def prompts(work: Work) -> Dataset:
    """Draw queries of random tokens, all of one length: a batch for each step, and none of pad.

    Args:
        work: says how many, how long, and the seed.
    """
    generator = torch.Generator().manual_seed(work.seed)
    shape = (work.batch * (work.steps + 1), work.query)
    ids = torch.randint(model_config(work.size).vocab_size - 1, shape, generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist()})

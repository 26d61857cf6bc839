"""What a benchmarked step does, and the models that do it: random weights, never downloaded."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

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

from trl_recipes.errors import RecipeError

Size = Literal["tiny", "mini", "small", "half-billion"]

CONTEXT = 1024  # positions of GPT-2
# Workloads that others have published figures of: verl's of Qwen2.5-0.5B.
SHAPES = {
    "verl": {"size": "half-billion", "batch": 256, "query": 105, "response": 239, "epochs": 1}
    | {"precision": "bf16", "passes": 16}
}
# layers, width, heads, vocabulary
SIZES = {"tiny": (2, 64, 2, 1024), "mini": (4, 256, 4, 8192), "small": (12, 768, 12, 50257)}
SIZES["half-billion"] = (24, 896, 14, 151936)
PHASES = ("generation", "scoring", "forward", "update")
# Attention projections by architecture; `attn.` keeps GPT-2's other c_proj, in the MLP, out.
ATTENTION = {
    "gpt2": ["attn.c_attn", "attn.c_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


@dataclass(frozen=True)
class Workload:
    """One PPO step: the same for both trainers, and the whole of what they are told."""

    size: Size
    batch: int  # responses per step, over all processes
    query: int  # tokens of each
    response: int  # tokens of each; nothing ends one early
    epochs: int = 4  # over the batch, one optimizer step each
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over float32 weights
    peft: bool = False  # LoRA on the attention projections
    device: Literal["cpu", "cuda"] = "cpu"
    steps: int = 2  # that are timed, after one that warms up
    shortest: int | None = None  # spreads a batch's lengths evenly from here to `response`
    seed: int = 0  # of weights, prompts and sampling
    processes: int = 1  # that share the batch, under Accelerate
    passes: int = 1  # forward and backward ones of an optimizer step
    profile: bool = False  # the timed step, and not its phases

    @property
    def tokens(self) -> int:
        """Tokens of one row that go through the trunk: the last one's logits nobody needs."""
        return self.query + self.response - 1

    def lengths(self) -> list[int]:
        """Return the length of each response of a batch, in tokens."""
        first = self.response if self.shortest is None else self.shortest
        apart = (self.response - first) / max(1, self.batch - 1)
        return [round(first + row * apart) for row in range(self.batch)]

    def __str__(self) -> str:
        lengths = self.response if self.shortest is None else f"{self.shortest} to {self.response}"
        adapter = ", LoRA on attention" if self.peft else ""
        processes = f", {self.processes} processes" if self.processes > 1 else ""
        return (
            f"{self.size}, batch {self.batch}, query {self.query}, response {lengths}, "
            f"{self.epochs} epochs, {self.precision}{adapter}, {self.device}{processes}"
        )


def check_workload(work: Workload, only: str) -> None:
    """Refuse what cannot be run, before anything is, by the name of its flag."""
    if work.query + work.response > CONTEXT:
        raise RecipeError(
            f"--query and --response: {work.query} and {work.response} tokens are more than "
            f"the {CONTEXT} positions of a model of these sizes. Make one smaller."
        )
    ours = work.processes > 1 or work.passes > 1 or work.shortest is not None or work.profile
    if only != "ours" and ours:
        raise RecipeError(
            "--processes, --shortest, --profile and --shape are for our trainer alone. Add --only "
            "ours, or leave them out."
        )
    if work.batch % work.processes:
        raise RecipeError(
            f"--batch {work.batch} cannot be shared evenly by --processes {work.processes}. Give a "
            "multiple of it."
        )
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if only != "ours" and find_spec("trl.experimental.ppo") is None:
        raise RecipeError(
            "TRL's own PPOTrainer was taken out of TRL in 1.13. To measure ours against it, "
            "`pip install 'trl<1.13'`; `--only ours` measures ours alone."
        )


def model_config(size: Size) -> PreTrainedConfig:
    """Return a GPT-2's configuration, small as published, or that of Qwen2-0.5B (half-billion)."""
    layers, width, heads, words = SIZES[size]
    if size != "half-billion":
        return GPT2Config(n_layer=layers, n_embd=width, n_head=heads, **_vocabulary(words))
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape |= {"intermediate_size": 4864, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return Qwen2Config(**shape, **_vocabulary(words))


def _vocabulary(size: int) -> dict[str, int]:
    """Use the last id to begin, end and pad, as GPT-2 does."""
    end = size - 1
    return {"vocab_size": size, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def language_model(work: Workload) -> nn.Module:
    """Build the policy with random weights in float32."""
    torch.manual_seed(work.seed)
    return AutoModelForCausalLM.from_config(model_config(work.size), dtype=torch.float32)


def value_model(work: Workload) -> nn.Module:
    """Build the value model that TRL's own trainer wants: the policy's shape, one number out."""
    torch.manual_seed(work.seed + 1)
    config = model_config(work.size)
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def reward_model(work: Workload) -> nn.Module:
    """Build the reward model that TRL's own trainer wants, at next to no cost: width 8."""
    torch.manual_seed(work.seed + 2)
    config = model_config(work.size)
    narrow = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    if config.model_type == "qwen2":
        narrow |= {"intermediate_size": 8, "num_key_value_heads": 1}
    small = type(config)(**narrow, **_vocabulary(config.vocab_size), num_labels=1)
    return AutoModelForSequenceClassification.from_config(small, dtype=torch.float32)


def lora_config(work: Workload) -> LoraConfig | None:
    """Return the configuration of an adapter on the attention projections, or None."""
    if not work.peft:
        return None
    kind = model_config(work.size).model_type
    return LoraConfig(
        task_type="CAUSAL_LM", target_modules=ATTENTION[kind], fan_in_fan_out=kind == "gpt2"
    )


def tokenizer(work: Workload) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a word for each id of the vocabulary; the last one ends and pads."""
    size = model_config(work.size).vocab_size
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = f"w{size - 1}"
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=end, eos_token=end, pad_token=end, padding_side="left"
    )


def prompts(work: Workload) -> Dataset:
    """Draw queries of random tokens, all of one length: a batch for each step, and none of pad."""
    generator = torch.Generator().manual_seed(work.seed)
    shape = (work.batch * (work.steps + 1), work.query)
    ids = torch.randint(model_config(work.size).vocab_size - 1, shape, generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist()})

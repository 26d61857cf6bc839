"""A decoder-only transformer over characters, trained from scratch on random windows of a text."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_recipes.callbacks import LossLog
from trl_recipes.data.tokenizers import starts_character
from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import RunFolder
from trl_recipes.settings import setting
from trl_recipes.training.fit import PretrainConfig, fit, stage_settings
from trl_recipes.training.language_model import check_width
from trl_recipes.training.stage import Stage, digest, plan_stages, settings_of

HELD_OUT_FRACTION = 0.1  # of the text: its end
INITIAL_STD = 0.06  # of the weights; 0.02, the usual one, learns slower at these widths
EVALUATIONS = 8  # during training, each on so many windows of the held-out text:
EVALUATION_WINDOWS = 128


@dataclass
class BaselineConfig:
    """Sizes of the character-level model, and how it is trained before GRPO."""

    n_layer: int = setting(2, "Transformer blocks.")
    n_head: int = setting(4, "Attention heads per block; divides n_embd.")
    n_embd: int = setting(128, "Width of the model.")
    context_length: int = setting(96, "Longest row, in characters.")
    baseline_steps: int = setting(2000, "Steps of the baseline.")
    baseline_batch_size: int = setting(8, "Windows per step.")
    baseline_learning_rate: float = setting(4e-3, "Peak learning rate of the baseline.")

    def __post_init__(self):
        check_width("n_embd", self.n_embd, "twice --n_head", self.n_head, 2 * self.n_head)

    def training(self, config: TrainingArguments) -> PretrainConfig:
        """Build the Trainer's settings of the baseline of a GRPO run with `config`."""
        return PretrainConfig(
            output_dir=config.output_dir,
            train_sampling_strategy="random",
            logging_steps=max(1, self.baseline_steps // 100),
            eval_strategy="steps",
            eval_steps=max(1, self.baseline_steps // EVALUATIONS),
            prediction_loss_only=True,
            save_strategy=config.save_strategy,
            save_steps=10 * config.save_steps,  # its steps are as much quicker
            **stage_settings(self, "baseline", config),
        )


def plan_shouting(
    run: RunFolder, args: Any, sizes: BaselineConfig, config: Any, text: str
) -> tuple[Stage, Stage, Stage, Stage, str]:
    """Plan tokenizer, baseline, GRPO and evaluation of a run, and say what is done."""
    needed = args.prompt_length + config.response_length
    if needed > sizes.context_length:
        raise RecipeError(
            f"--context_length ({sizes.context_length}) must hold a prompt (--prompt_length "
            f"{args.prompt_length}) and a completion (--response_length {config.response_length}):"
            f" {needed} characters. Set it to {needed} or more, or shorten the others."
        )
    own = {
        "tokenizer": {"text": digest([text])},
        "baseline": settings_of(sizes) | {"seed": config.seed},
        "grpo": settings_of(config) | {"prompt_length": args.prompt_length},
        "evaluation": {"eval_prompts": args.eval_prompts},
    }
    stages = []
    for name, settings in own.items():
        folder = run.path if name == "grpo" else run.path / name
        missing = f"Run --stage {name} first, or leave --stage out to run all."
        stages.append(Stage(name, folder, settings, args.stage in ("all", name), missing))
    return *stages, plan_stages(stages, config)


def new_model(
    sizes: BaselineConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Make a Llama with random weights."""
    # Its positions are distances, as windows from anywhere in a text need: after 200 steps of 16
    # windows of 128 a GPT-2 of the same size is at 2.20 nats where this is at 1.46.
    set_seed(seed)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=sizes.context_length,
            num_hidden_layers=sizes.n_layer,
            num_attention_heads=sizes.n_head,
            hidden_size=sizes.n_embd,
            intermediate_size=8 * sizes.n_embd // 3,
            initializer_range=INITIAL_STD,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_baseline(
    text: str,
    heldout_text: str,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    sizes: BaselineConfig,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a model from scratch on random windows of a text, and save it.

    Returns what `fit` does; "heldout_loss" in nats per character, over "heldout_characters".
    """
    model = new_model(sizes, tokenizer, config.seed)
    length, batch = sizes.context_length, config.per_device_train_batch_size
    rows = config.max_steps * batch * config.world_size
    heldout_ids = encode(heldout_text, tokenizer)
    heldout = heldout_ids[: len(heldout_ids) // length * length].view(-1, length)
    windows = [{"input_ids": window} for window in heldout.tolist()]
    trainer = Trainer(
        model,
        config,
        DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        train_dataset=RandomWindows(encode(text, tokenizer), length, rows, config.seed),
        eval_dataset=windows[:EVALUATION_WINDOWS],
    )
    trainer.add_callback(LossLog(RunFolder(config.output_dir).all_stats))
    figures = fit(trainer, tokenizer, output_dir, heldout=windows, before_training=before_training)
    return figures | {"heldout_characters": heldout.numel() - len(heldout)}


# The text


def divide_text(text: str, shortest: int, source: str | None) -> tuple[str, str]:
    """Divide a text: its beginning to train on, its last tenth to measure on, from a line on.

    Each part has at least `shortest` characters, one context. `source` names it in messages.
    """
    cut = len(text) - max(round(len(text) * HELD_OUT_FRACTION), shortest)
    line = text.rfind("\n", 0, max(cut, 0)) + 1
    cut = line if cut - line < 1000 and line >= shortest else cut
    if cut < shortest:
        raise RecipeError(
            f"--text_file: `{source}` has {len(text)} characters. One context to train on and one "
            f"held out to measure on need {2 * shortest}. Give a longer text, or lower "
            f"--context_length ({shortest})."
        )
    return text[:cut], text[cut:]


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids of a long text, (characters,): a look-up, much quicker than the tokenizer."""
    tokens = tokenizer.get_vocab()
    return torch.tensor([tokens[character] for character in text])


class RandomWindows(torch.utils.data.Dataset):
    """Windows that start anywhere in a text, the same ones for the same seed."""

    def __init__(self, ids: Tensor, length: int, count: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        self.starts = torch.randint(len(ids) - length + 1, (count,), generator=draw).tolist()
        self.ids, self.length = ids, length

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        start = self.starts[index]
        return {"input_ids": self.ids[start : start + self.length].tolist()}


def cut_prompts(
    text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int
) -> Dataset:
    """Cut prompts out of a text: whole words, from anywhere, up to the start of a word.

    The columns are `query` (text, of at most `length` characters) and `input_ids`.
    """
    draw, queries = random.Random(seed), []
    while len(queries) < count:
        start = draw.randrange(len(text) - length + 1)
        window = text[start : start + length]
        spaces = [place + 1 for place, character in enumerate(window) if character.isspace()]
        cut = window[spaces[0] : spaces[-1]] if len(spaces) > 1 else ""
        if not cut.strip():  # a script without spaces, or only spaces
            places = [p for p in range(start, start + length + 1) if starts_character(text, p)]
            cut = text[places[0] : places[-1]] if len(places) > 1 else window
        queries.append(cut)
    return Dataset.from_dict(
        {"query": queries, "input_ids": [encode(query, tokenizer).tolist() for query in queries]}
    )

"""Language models from texts: a small GPT-2, a base model trained further, or one of characters.

The model of characters is a small Llama, trained on random windows of one text.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_recipes.callbacks import LossLog
from trl_recipes.data.prompts import column_of_text
from trl_recipes.data.tokenizers import starts_character, train_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.models.loading import load_language_model, load_tokenizer
from trl_recipes.run_folder import RunFolder
from trl_recipes.settings import setting
from trl_recipes.training.fit import (
    PretrainConfig,
    fit,
    mean_token_loss,
    stage_settings,
    token_losses,
)
from trl_recipes.training.stage import Stage, digest, plan_stages, settings_of


@dataclass
class LanguageModelSizes:
    """Sizes of a GPT-2 from scratch."""

    n_layer: int = setting(2, "Transformer layers.")
    n_head: int = setting(4, "Attention heads per layer.")
    n_embd: int = setting(128, "Width; a multiple of n_head.")
    context_length: int = setting(128, "Longest row in tokens; longer texts are cut.")
    vocab_size: int = setting(4000, "Entries of the tokenizer.")

    def __post_init__(self):
        check_width("n_embd", self.n_embd, "--n_head", self.n_head, self.n_head)


def check_width(name: str, width: int, heads_name: str, heads: int, factor: int) -> None:
    """Refuse a width that is no multiple of `factor`."""
    if width % factor:
        fitting = max(factor, width - width % factor)
        raise RecipeError(
            f"--{name} ({width}) must be a multiple of {heads_name} ({heads}). Use {fitting}."
        )


def read_column(
    rows: Dataset, name: str, flag: str, source: str, advice: str = "Name one of them."
) -> list[Any]:
    """Read a column of a data set; errors name the `flag` and the `source`."""
    if name not in rows.column_names:
        raise RecipeError(
            f"{flag}: {source} has no column `{name}`. Its columns are: "
            f"{', '.join(rows.column_names)}. {advice}"
        )
    return list(rows[name][:])


def check_values(
    values: Sequence[Any], fits: Callable[[Any], bool], flag: str, source: str, fault: str
) -> None:
    """Refuse the first value of a column that does not fit; `fault` says why, and what to do."""
    for row, value in enumerate(values, 1):
        if not fits(value):
            raise RecipeError(f"{flag}: row {row} of {source} holds {value!r} {fault}")


def read_texts(rows: Dataset, column: str | None, source: str) -> list[str]:
    """Read the texts of a data set, from the first of `TEXT_COLUMNS` where none is named."""
    name = column_of_text(rows.column_names, column, source)
    texts = list(rows[name][:])
    fault = f"in `{name}`, which is no text. Fix the row, or name another column."
    check_values(texts, lambda text: isinstance(text, str), "--text_column", source, fault)
    return texts


def train_language_model(
    texts: Sequence[str],
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    heldout_texts: Sequence[str] = (),
    model_name_or_path: str | None = None,
    sizes: LanguageModelSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a GPT-2 from scratch, tokenizer included, or a base model further, and save it.

    Returns what `fit` does; "heldout_loss" in nats per token, over "heldout_tokens".
    """
    for use, part in {"train on": texts, "measure on": heldout_texts or texts}.items():
        if not any(text.strip() for text in part):
            raise RecipeError(f"All {len(part)} texts to {use} are empty. Give at least one.")
    sizes = sizes or LanguageModelSizes()
    set_seed(config.seed)
    if model_name_or_path is None:
        tokenizer = train_tokenizer(texts, sizes.vocab_size, "causal")
        tokenizer.model_max_length = sizes.context_length
        model = AutoModelForCausalLM.from_config(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=sizes.context_length,
                n_embd=sizes.n_embd,
                n_layer=sizes.n_layer,
                n_head=sizes.n_head,
                activation_function="gelu_pytorch_tanh",  # gelu_new, but one quick kernel
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    else:
        tokenizer = load_tokenizer(model_name_or_path)
        model = load_language_model(model_name_or_path, causal=True)
    model.loss_type = "ForCausalLM"  # what transformers falls back to for GPT-2, with a warning
    trainer = Trainer(
        model,
        config,
        DataCollatorForLanguageModeling(pad_token_id=0),  # any: the loss and mask go by lengths
        train_dataset=language_model_rows(texts, tokenizer, sizes.context_length),
        preprocess_logits_for_metrics=partial(token_losses, shift=True),
        compute_metrics=partial(mean_token_loss, shift=True),
    )
    heldout = language_model_rows(heldout_texts, tokenizer, sizes.context_length)
    return fit(trainer, tokenizer, output_dir, heldout=heldout, before_training=before_training)


def language_model_rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[dict[str, list[int]]]:
    """Tokenize texts, end each with eos, and cut those that are too long into windows."""
    cut = windows(texts, tokenizer, context_length, [tokenizer.eos_token_id])
    return [{"input_ids": ids} for _, ids in cut if len(ids) > 1]  # one alone predicts nothing


def windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, end: Sequence[int] = ()
) -> list[tuple[int, list[int]]]:
    """Tokenize texts, add `end`, and cut them into windows, each with the number of its text."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [
        (index, [*ids, *end][start : start + length])
        for index, ids in enumerate(encoded)
        for start in range(0, len(ids) + len(end), length)
    ]


# A model of characters, on random windows of a text


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
    if not text.strip():
        raise RecipeError("--text_file: a tenth of the text or more is blank. Give more text.")
    draw, queries = random.Random(seed), []
    while len(queries) < count:
        start = draw.randrange(len(text) - length + 1)
        window = text[start : start + length]
        spaces = [place + 1 for place, character in enumerate(window) if character.isspace()]
        cut = window[spaces[0] : spaces[-1]] if len(spaces) > 1 else ""
        if not cut.strip():  # a script without spaces, or only spaces
            places = [p for p in range(start, start + length + 1) if starts_character(text, p)]
            cut = text[places[0] : places[-1]] if len(places) > 1 else window
        queries += [cut] if cut.strip() else []
    return Dataset.from_dict(
        {"query": queries, "input_ids": [encode(query, tokenizer).tolist() for query in queries]}
    )

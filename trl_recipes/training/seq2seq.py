"""Encoder-decoders that rewrite, in the stages of ppo_seq2seq.py: pretraining, reward model, PPO.

Pretraining is on source-target pairs: a small T5 from scratch, or a model trained further. The
reward model gives one number for a source and an output, read together. It is a sequence classifier
of one label on the pretrained model's weights, and loads as any other reward model. It reads a pair
of texts (`source </s> output </s>` for T5); `reads_pairs` in its config.json tells
`RewardModelReward` to give them so.
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from trl_recipes.data.files import load_rows
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.distributed import broadcast_from_main
from trl_recipes.embedded.rewrites import rewrites
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length
from trl_recipes.models.generation import generate_responses
from trl_recipes.models.hub import resolve
from trl_recipes.models.loading import (
    load_classifier,
    load_language_model,
    load_run,
    load_tokenizer,
)
from trl_recipes.rewards import RewardFunc, RewardModelReward
from trl_recipes.rewards.models import encode_pairs, longest_input
from trl_recipes.run_folder import RunFolder
from trl_recipes.settings import setting
from trl_recipes.stats import is_number
from trl_recipes.training.fit import (
    PretrainConfig,
    fit,
    mean_token_loss,
    stage_settings,
    token_losses,
)
from trl_recipes.training.language_model import check_values, check_width, read_column
from trl_recipes.training.reward_model import RewardModelConfig, Row, score_trainer
from trl_recipes.training.stage import Stage, digest, plan_stages, settings_of

_log = logging.getLogger(__name__)

STAGES = ("pretrain", "reward", "ppo")
DRY_RUN_OUTPUTS = 64
HELD_OUT = 10  # each tenth comparison is kept to measure on

Pair = dict[str, str]  # "source" and "target"
# {"source", "output", "score"}, or {"source", "chosen", "rejected"}.
Comparison = dict[str, Any]


@dataclass
class PairArguments:
    """Where the pairs are."""

    dataset_name: str | None = setting(None, "Pairs: file, folder or hub name; else embedded.")
    source_column: str = setting("source", "Column of the sources.")
    target_column: str = setting("target", "Column of the targets.")
    eval_prompts: int = setting(256, "Held-out sources to judge by.")


@dataclass
class Seq2SeqSizes:
    """Sizes of a T5 from scratch."""

    num_layers: int = setting(2, "Layers of encoder and of decoder.")
    num_heads: int = setting(4, "Attention heads per layer.")
    hidden_size: int = setting(128, "Width; a multiple of num_heads.")
    vocab_size: int = setting(2000, "Entries of the tokenizer.")
    context_length: int = setting(64, "Most tokens of a source and of a target.")

    def __post_init__(self):
        heads = self.num_heads
        check_width("hidden_size", self.hidden_size, "--num_heads", heads, heads)


@dataclass
class StageArguments:
    """What is trained before PPO, and for how long; settings of PPO are `PPOConfig`."""

    stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "Stages to run: pretrain, reward, ppo, or some of them."},
    )
    comparisons: str | None = setting(
        None,
        "Data set of source, output and score, or of source, chosen and rejected, in place "
        "of comparisons of the pretrained model's outputs.",
    )
    score_function: str | None = setting(
        None,
        "Function that scores those outputs, as file.py:function; when left out, the "
        "embedded rewrites' own, and elsewhere the pairs' targets are preferred.",
    )
    reward_model: str | None = setting(None, "A finished reward model, in place of that stage.")
    pretrain_steps: int = setting(1600, "Steps of pretraining.")
    pretrain_batch_size: int = setting(32, "Its pairs per step.")
    pretrain_learning_rate: float | None = setting(
        None, "Its peak learning rate (default: 5e-5 from a base model of yours, else 1e-3)."
    )
    reward_outputs: int = setting(4000, "Outputs that are compared for the reward model.")
    reward_swapped: float = setting(
        0.4,
        "Fraction of these outputs that is scored once more, beside another source, so that "
        "the model learns to look at the source.",
    )
    reward_noise: float = setting(0.1, "Standard deviation of errors in the learned scores.")
    reward_steps: int = setting(800, "Steps of the reward model.")
    reward_batch_size: int = setting(32, "Its comparisons per step.")
    reward_learning_rate: float | None = setting(
        None, "Its peak learning rate (default: 5e-5 from a base model of yours, else 1e-3)."
    )

    def __post_init__(self):
        unknown = [name for name in self.stages if name not in STAGES]
        if unknown or not self.stages:
            raise RecipeError(
                f"--stages: {unknown[0] if unknown else 'nothing'!r} is no stage. Choose among "
                f"{', '.join(STAGES)}."
            )
        self.last = max(self.stages, key=STAGES.index)

    def settings(self, stage: str) -> dict[str, Any]:
        """Collect the settings of one stage: those whose names begin with its own."""
        names = [name for name in vars(self) if name.startswith(f"{stage}_")]
        return {name: getattr(self, name) for name in names if name != "reward_model"}

    def training(self, stage: str, config: TrainingArguments) -> PretrainConfig:
        """Build the Trainer's settings of one stage before PPO with `config`."""
        return (RewardModelConfig if stage == "reward" else PretrainConfig)(
            train_sampling_strategy="random" if stage == "reward" else "group_by_length",
            adam_beta2=0.99,
            save_steps=max(1, getattr(self, f"{stage}_steps") // 4),
            **stage_settings(self, stage, config),
        )


@dataclass(frozen=True)
class RewriteTexts:
    """All that is learned from: pairs, held-out pairs, sources for outputs, and comparisons."""

    pairs: list[Pair]
    held_out: list[Pair]
    sources: list[str]
    comparisons: list[Comparison] | None

    @classmethod
    def load(cls, data: PairArguments, stages: StageArguments) -> "RewriteTexts":
        """Load them, and refuse what is missing, empty or no text."""
        pairs, held_out = load_pairs(data, "train"), load_pairs(data, "test")
        compared = load_comparisons(stages.comparisons) if stages.comparisons else None
        return cls(pairs, held_out[: data.eval_prompts], load_sources(data, pairs), compared)

    def train_reward(
        self,
        start: str,
        judge: RewardFunc | None,
        stages: StageArguments,
        longest: int,
        output_dir: str | Path,
        config: RewardModelConfig,
        before_training: Callable[[], Any] | None = None,
    ) -> dict[str, float]:
        """Train a reward model on given comparisons, or on scored outputs of the model `start`."""

        def compared() -> list[Comparison]:
            count = min(stages.reward_outputs, DRY_RUN_OUTPUTS if config.check else math.inf)
            pairs, seed = self.pairs[:count], config.seed
            sources = self.sources[:count] if judge else [pair["source"] for pair in pairs]
            outputs = sampled_outputs(start, sources, longest=longest, seed=seed)
            if judge is None:
                return preferred(pairs, outputs, seed)
            swapped = swap_sources(sources, outputs, stages.reward_swapped)
            return scored(*swapped, judge, stages.reward_noise, seed)

        rows = self.comparisons or broadcast_from_main(compared)
        return train_pair_scorer(rows, start, output_dir, config, before_training=before_training)


def plan_rewrites(
    run: RunFolder,
    data: PairArguments,
    stages: StageArguments,
    sizes: Seq2SeqSizes,
    config: Any,
    model_config: Any,
    texts: RewriteTexts,
) -> tuple[Stage | None, Stage | None, Stage]:
    """Plan pretraining, the reward model and PPO; None where a named model stands for it."""
    base, wanted, advice = model_config.model_name_or_path, stages.stages, "Run that stage too"
    if stages.reward_learning_rate is None:
        stages.reward_learning_rate = 1e-3 if base is None else 5e-5
    learned_from = ("pairs", "sources", "comparisons")
    digests = {name: digest(getattr(texts, name) or []) for name in learned_from}
    pretrain = score = None
    if base is None or "pretrain" in wanted:
        own = settings_of(sizes) | stages.settings("pretrain")
        own |= {"model_name_or_path": base, "pairs": digests["pairs"], "seed": config.seed}
        missing = f"{advice}, or name a model with --model_name_or_path."
        pretrain = Stage("pretrain stage", run.pretrained, own, "pretrain" in wanted, missing)
    if stages.reward_model is None:
        own = stages.settings("reward") | digests
        own |= {"start": base, "score_function": stages.score_function}
        own |= {"response_length": config.response_length, "seed": config.seed}
        missing = f"{advice}, or name a model with --reward_model."
        score = Stage("reward stage", run.reward_model, own, "reward" in wanted, missing)
    else:
        resolve(stages.reward_model, "model", source="--reward_model")
    own = settings_of(data, stages, sizes, config, model_config) | digests
    ppo = Stage("policy", run.path, own, "ppo" in wanted)
    plan_stages([stage for stage in (pretrain, score, ppo) if stage is not None], config)
    return pretrain, score, ppo


# Texts


def load_pairs(args: PairArguments, split: str) -> list[Pair]:
    """Load source-target pairs of the split "train" or "test"; no text is empty."""
    if args.dataset_name is None:
        return rewrites("heldout" if split == "test" else split)
    rows, where = load_rows(args.dataset_name, split=split), f"{args.dataset_name} ({split})"

    def texts(flag: str, column: str) -> list[str]:
        found = read_column(rows, column, flag, where)
        fault = f"in `{column}`, which is empty or no text. Fix or delete the row."
        check_values(found, lambda t: isinstance(t, str) and t.strip() != "", flag, where, fault)
        return found

    sources = texts("--source_column", args.source_column)
    targets = texts("--target_column", args.target_column)
    return [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]


def load_sources(args: PairArguments, pairs: Sequence[Pair]) -> list[str]:
    """Load the sources to sample outputs for: of the embedded rewrites those set aside."""
    rows = load_pairs(args, "prompts") if args.dataset_name is None else pairs
    return [row["source"] for row in rows]


def load_comparisons(dataset_name: str) -> list[Comparison]:
    """Load scored outputs or preferences."""
    rows = load_rows(dataset_name, split="train")
    kinds = (("source", "output", "score"), ("source", "chosen", "rejected"))
    columns = next((kind for kind in kinds if set(kind) <= set(rows.column_names)), None)
    if columns is None or len(rows) < 2:
        raise RecipeError(
            f"--comparisons: `{dataset_name}` has {len(rows)} rows of the columns "
            f"{', '.join(rows.column_names)}. Give source, output and score, or source, chosen and "
            "rejected, in two rows or more."
        )
    for name in columns:
        fits = is_number if name == "score" else lambda value: isinstance(value, str)
        fault = f"in `{name}`. Give a {'number' if name == 'score' else 'text'}."
        check_values(rows[name][:], fits, "--comparisons", f"`{dataset_name}`", fault)
    return list(rows.select_columns(list(columns)))


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None, what: str
) -> list[list[int]]:
    """Tokenize texts, and cut those of more than `limit` tokens before the end token.

    `limit` counts special tokens; None takes any. `what`: "source" or "target", for the warning.
    """
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    long = sum(limit is not None and len(tokens) > limit for tokens in ids)
    if not long:
        return ids
    _log.warning("%d of %d %ss are cut to %d tokens.", long, len(ids), what, limit)
    return tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]


def prompt_rows(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> Dataset:
    """Make PPO's data set of sources: columns `query` and `input_ids`; see `tokenize`."""
    ids = tokenize(sources, tokenizer, limit, "source")
    return Dataset.from_dict({"query": list(sources), "input_ids": ids})


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the most tokens of a source or target; None where neither model nor tokenizer says."""
    limit = min(context_length(model.config) or math.inf, tokenizer.model_max_length)
    return int(limit) if limit < 1e9 else None


def start_seq2seq(
    model_name_or_path: str | None, texts: Sequence[str], sizes: Seq2SeqSizes, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a small T5 from scratch, tokenizer included, or load an encoder-decoder, in float32."""
    set_seed(seed)
    if model_name_or_path is not None:
        model = load_language_model(model_name_or_path, causal=False)
        return model, load_tokenizer(model_name_or_path)
    tokenizer = train_tokenizer(texts, sizes.vocab_size, "seq2seq")
    tokenizer.model_max_length = sizes.context_length
    config = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        d_model=sizes.hidden_size,
        d_kv=sizes.hidden_size // sizes.num_heads,
        d_ff=4 * sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config), tokenizer


def train_seq2seq(
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    sizes: Seq2SeqSizes,
    model_name_or_path: str | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train an encoder-decoder on pairs from scratch, or a base model further, and save it.

    Returns what `fit` does; "heldout_loss" in nats per target token, over "heldout_tokens".
    """
    texts = [text for pair in pairs for text in pair.values()]
    model, tokenizer = start_seq2seq(model_name_or_path, texts, sizes, config.seed)
    limit = longest_text(model, tokenizer)

    def tokenized(pairs: Sequence[Pair]) -> list[dict[str, list[int]]]:
        sources = tokenize([pair["source"] for pair in pairs], tokenizer, limit, "source")
        targets = tokenize([pair["target"] for pair in pairs], tokenizer, limit, "target")
        return [{"input_ids": s, "labels": t} for s, t in zip(sources, targets, strict=True)]

    trainer = Trainer(
        model,
        config,
        DataCollatorForSeq2Seq(tokenizer),
        train_dataset=tokenized(pairs),
        preprocess_logits_for_metrics=partial(token_losses, shift=False),
        compute_metrics=partial(mean_token_loss, shift=False),
    )
    rows = tokenized(heldout)
    return fit(trainer, tokenizer, output_dir, heldout=rows, before_training=before_training)


# The reward model


def sampled_outputs(start: str, sources: Sequence[str], *, longest: int, seed: int) -> list[str]:
    """Sample what an encoder-decoder, by folder or hub name, makes of each source."""
    model, tokenizer = load_run(start)
    model.to(PartialState().device)
    ids = tokenize(sources, tokenizer, longest_text(model, tokenizer), "source")
    torch.manual_seed(seed)
    queries = [torch.tensor(row) for row in ids]
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    outputs = generate_responses(model, queries, max_new_tokens=longest, batch_size=256, **ends)
    return tokenizer.batch_decode(outputs, skip_special_tokens=True)


def swap_sources(
    sources: Sequence[str], outputs: Sequence[str], fraction: float
) -> tuple[list[str], list[str]]:
    """Add a fraction of the outputs once more, beside another source."""
    swapped = round(len(outputs) * fraction)
    others = [*sources[swapped:], *sources[:swapped]][:swapped]
    return [*sources, *others], [*outputs, *outputs[:swapped]]


def scored(
    sources: Sequence[str], outputs: Sequence[str], judge: RewardFunc, noise: float, seed: int
) -> list[Comparison]:
    """Let a function score outputs, with errors as people make them, in random order.

    What it gives None is left out. `noise`: standard deviation of the errors.
    """
    scores = judge(prompts=list(sources), completions=list(outputs))
    draw = random.Random(seed)
    rows = [
        {"source": source, "output": output, "score": score + draw.gauss(0.0, noise)}
        for source, output, score in zip(sources, outputs, scores, strict=True)
        if score is not None
    ]
    return draw.sample(rows, len(rows))


def preferred(pairs: Sequence[Pair], outputs: Sequence[str], seed: int) -> list[Comparison]:
    """Prefer each pair's target to the model's output, the source, and another pair's target."""
    others = random.Random(seed).sample(range(len(pairs)), len(pairs))
    return [
        {"source": pair["source"], "chosen": pair["target"], "rejected": rejected}
        for pair, output, other in zip(pairs, outputs, others, strict=True)
        for rejected in (output, pair["source"], pairs[other]["target"])
        if rejected != pair["target"]
    ]


def train_pair_scorer(
    comparisons: Sequence[Comparison],
    start: str | Path,
    output_dir: str | Path,
    config: RewardModelConfig,
    *,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a reward model on comparisons of one kind, each tenth held out, and save it.

    `start` is the pretrained encoder-decoder. Returns what `fit` does; of the "heldout" rows
    "correlation" of logits and scores (Pearson's r), or "accuracy", the fraction of preferences
    whose chosen text wins.
    """
    set_seed(config.seed)
    model, tokenizer = _start_scorer(str(start))
    held = comparisons[1::HELD_OUT]
    rows = [row for number, row in enumerate(comparisons) if number % HELD_OUT != 1]
    trainer = score_trainer(model, tokenizer, _encode(rows, model, tokenizer), config)
    figures = fit(trainer, tokenizer, output_dir, before_training=before_training)
    reward = RewardModelReward(output_dir)

    def scores(kind: str) -> torch.Tensor:
        return torch.tensor(reward([row["source"] for row in held], [row[kind] for row in held]))

    if "score" in held[0]:
        true = torch.tensor([float(row["score"]) for row in held])
        figures["correlation"] = float(torch.corrcoef(torch.stack([scores("output"), true]))[0, 1])
    else:
        figures["accuracy"] = float((scores("chosen") > scores("rejected")).float().mean())
    return figures | {"heldout": len(held)}


def _encode(
    rows: Sequence[Comparison], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Tokenize comparisons for `score_trainer`, as `RewardModelReward` does."""
    sources, longest = [row["source"] for row in rows], longest_input(model, tokenizer)

    def ids(kind: str) -> list[list[int]]:
        found = encode_pairs(tokenizer, sources, [row[kind] for row in rows], longest)
        pairs = zip(found["input_ids"], found["attention_mask"], strict=True)
        return [row[mask.bool()].tolist() for row, mask in pairs]

    if "score" in rows[0]:
        scores = [float(row["score"]) for row in rows]
        columns = {"input_ids": ids("output"), "labels": scores}
    else:
        columns = {"chosen_ids": ids("chosen"), "rejected_ids": ids("rejected")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _start_scorer(start: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Put a new head with one label on the weights of another model."""
    model, tokenizer = load_classifier(start, new_head=True, num_labels=1)
    model.config.reads_pairs, model.config.problem_type = True, "regression"
    positions = context_length(model.config)
    longest = positions or 2 * tokenizer.model_max_length  # relative positions take any length
    tokenizer.model_max_length = min(longest, 1_000_000_000)
    return model, tokenizer

"""The stages of ppo_seq2seq.py: their settings, the texts that they learn from, and their plan."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from trl_recipes.distributed import broadcast_from_main
from trl_recipes.errors import RecipeError
from trl_recipes.models.hub import resolve
from trl_recipes.rewards import RewardFunc
from trl_recipes.run_folder import RunFolder
from trl_recipes.settings import setting
from trl_recipes.training.fit import PretrainConfig, shared_settings
from trl_recipes.training.reward_model import RewardModelConfig
from trl_recipes.training.seq2seq import (
    Pair,
    PairArguments,
    Seq2SeqSizes,
    load_pairs,
    load_sources,
    longest_text,
    prompt_rows,
    train_seq2seq,
)
from trl_recipes.training.seq2seq_reward import (
    Comparison,
    load_comparisons,
    preferred,
    sampled_outputs,
    scored,
    swap_sources,
    train_pair_scorer,
)
from trl_recipes.training.stage import Stage, digest, plan_stages, settings_of

STAGES = ("pretrain", "reward", "ppo")
DRY_RUN_OUTPUTS = 64


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
    pretrain_batch_size: int = setting(32, "Pairs in a step of it.")
    pretrain_learning_rate: float = setting(1e-3, "Its highest rate.")
    reward_outputs: int = setting(4000, "Outputs that are compared for the reward model.")
    reward_swapped: float = setting(
        0.4,
        "Fraction of these outputs that is scored once more, beside another source, so that "
        "the model learns to look at the source.",
    )
    reward_noise: float = setting(0.1, "Standard deviation of errors in the learned scores.")
    reward_steps: int = setting(800, "Steps of the reward model.")
    reward_batch_size: int = setting(32, "Comparisons in a step of it.")
    reward_learning_rate: float = setting(1e-3, "Its highest rate.")

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
        steps = getattr(self, f"{stage}_steps")
        return (RewardModelConfig if stage == "reward" else PretrainConfig)(
            max_steps=steps,
            per_device_train_batch_size=getattr(self, f"{stage}_batch_size"),
            learning_rate=getattr(self, f"{stage}_learning_rate"),
            train_sampling_strategy="random" if stage == "reward" else "group_by_length",
            adam_beta2=0.99,
            save_steps=max(1, steps // 4),
            **shared_settings(config),
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
        given = stages.comparisons
        compared = load_comparisons(given) if given else None
        return cls(pairs, held_out[: data.eval_prompts], load_sources(data, pairs), compared)

    def prompts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, too_long: str
    ) -> tuple[Dataset, Dataset]:
        """Make PPO's data sets of the sources, and of the held-out ones; see `tokenize`."""
        limits = (tokenizer, longest_text(model, tokenizer), too_long)
        held_out = [pair["source"] for pair in self.held_out]
        return prompt_rows(self.sources, *limits), prompt_rows(held_out, *limits)

    def pretrain(
        self, start: str | None, sizes: Seq2SeqSizes, output_dir: Path, config: Any, **chosen: Any
    ) -> dict[str, float]:
        """Train an encoder-decoder on the pairs; see `train_seq2seq`."""
        chosen |= {"sizes": sizes, "model_name_or_path": start}
        return train_seq2seq(self.pairs, self.held_out, output_dir, config, **chosen)

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
        """Train a reward model on given comparisons, or on outputs of the model `start`.

        Outputs, of at most `longest` tokens, are scored by a judge, or else compared with targets.
        """

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
    learned_from = ("pairs", "sources", "comparisons")
    digests = {name: digest(getattr(texts, name) or []) for name in learned_from}
    pretrain = Stage(
        "pretrain stage",
        run.pretrained,
        settings_of(sizes)
        | stages.settings("pretrain")
        | {"model_name_or_path": base, "pairs": digests["pairs"], "seed": config.seed},
        "pretrain" in wanted,
        f"{advice}, or name a model with --model_name_or_path.",
    )
    if base is not None and not pretrain.wanted:
        pretrain = None
    score = Stage(
        "reward stage",
        run.reward_model,
        stages.settings("reward")
        | digests
        | {"start": base, "score_function": stages.score_function}
        | {"response_length": config.response_length, "seed": config.seed},
        "reward" in wanted,
        f"{advice}, or name a model with --reward_model.",
    )
    if stages.reward_model is not None:
        resolve(stages.reward_model, "model", source="--reward_model")
        score = None
    own = settings_of(data, stages, sizes, config, model_config) | digests
    ppo = Stage("policy", run.path, own, "ppo" in wanted)
    plan_stages([stage for stage in (pretrain, score, ppo) if stage is not None], config)
    return pretrain, score, ppo

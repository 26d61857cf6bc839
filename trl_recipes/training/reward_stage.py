"""The first stage of a chain: a reward model from one part of the reviews, the rest for prompts."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from transformers import set_seed

from trl_recipes.data.files import load_rows
from trl_recipes.data.prompts import TEXT_COLUMNS
from trl_recipes.distributed import is_main_process
from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.reward_model import Bin, Figures, evaluate_reward_model, write_card
from trl_recipes.models.loading import load_tokenizer
from trl_recipes.report import write_report
from trl_recipes.rewards import RewardFunc, RewardModelReward, SentimentReward
from trl_recipes.run_folder import RunFolder, prepare_run
from trl_recipes.training import stage as stages
from trl_recipes.training.dry_run import rehearse
from trl_recipes.training.language_model import ClassifierSizes
from trl_recipes.training.reward_data import read_reward_data
from trl_recipes.training.reward_model import RewardModelConfig, base_model, train_reward_model

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_recipes.ppo import PPOConfig


@dataclass
class RewardStage:
    """The reward model: from what, and how it is trained."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Labelled reviews; the embedded ones when left out."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column that holds the text."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the label."})
    reward_kind: Literal["classes", "number", "pairs"] | None = field(
        default=None, metadata={"help": "What it learns; found in the columns when left out."}
    )
    reward_share: float = field(
        default=0.5, metadata={"help": "Share of the reviews that teach it; the rest are prompts."}
    )
    reward_base: str | None = field(
        default=None, metadata={"help": "Base model, or `embedded`; from scratch when left out."}
    )
    reward_epochs: float = field(default=3.0, metadata={"help": "Its passes over the rows."})
    reward_batch_size: int = field(default=16, metadata={"help": "Its rows in a step."})
    reward_learning_rate: float = field(default=1e-3, metadata={"help": "Its peak learning rate."})
    reward_context_length: int = field(
        default=128, metadata={"help": "Its longest row, in tokens; longer texts are cut."}
    )

    def __post_init__(self):
        if not 0 < self.reward_share < 1:
            raise RecipeError(
                f"--reward_share is {self.reward_share}. Give a share between 0 and 1: the reward "
                "model learns from it, the rest are prompts."
            )


def divide(rows: "Dataset", share: float, seed: int) -> "tuple[Dataset, Dataset]":
    """Divide rows by chance into two parts.

    Args:
        rows: two at least.
        share: size of the first part, between 0 and 1; neither part is empty.
        seed: of the draw.

    Returns:
        Both parts, each in the order of the rows.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    return rows.select(np.sort(order[:count])), rows.select(np.sort(order[count:]))


class LearntReward:
    """A reward function whose model is trained when all else was found fit; an error until then.

    Of the embedded reviews it learns from the split "prompts", which no other embedded model saw.

    Args:
        stage: settings of the model.
        config: of the run that it belongs to. The folder `reward` in the run's becomes a run folder
            of its own, whose `model/` is what rewards take.
        label: the class whose score is the reward.

    Attributes:
        settings: what its result depends on.
        figures: what was measured; None until `train`.

    Raises:
        RecipeError: the rows teach nothing, the base model is none, there is no such label, other
            reward functions were named, or the folder holds a reward model of other settings.
    """

    def __init__(self, stage: RewardStage, config: "PPOConfig", *, label: str):
        if config.reward_funcs:
            raise RecipeError(
                f"--reward_funcs {' '.join(map(str, config.reward_funcs))}: this recipe trains its "
                "own reward. Leave them out, or use recipes/ppo_sentiment.py."
            )
        self.run = RunFolder(Path(config.output_dir) / "reward")
        self.stage, self.label, self.seed = stage, label, config.seed
        self.source = stage.dataset_name or "the embedded reviews"
        self.figures: Figures | None = None
        self.__name__ = "reward_model"
        self._function: RewardFunc | None = None
        base = base_model(stage.reward_base)
        name = stage.dataset_name
        rows = load_rows(name, split="train" if name else "prompts")
        self._seen, _ = divide(rows, stage.reward_share, config.seed)
        self._data, self._heldout = read_reward_data(
            self._seen,
            load_rows(name, split="test"),
            self.source,
            kind=stage.reward_kind,
            text_column=stage.text_column,
            label_column=stage.label_column,
            tokenizer=load_tokenizer(base) if base else None,
            seed=config.seed,
        )
        names = getattr(self._data, "names", None)
        if names is not None and label.lower() not in [name.lower() for name in names]:
            raise RecipeError(
                f"--label: {self.source} has no label {label!r}. Its labels are: "
                f"{', '.join(names)}."
            )
        if names is None and label.upper() != "POSITIVE":
            raise RecipeError(
                f"--label {label}: a model of pairs or numbers has one score, which is higher for "
                "the better text. Leave --label out, or use --reward_kind classes."
            )
        content = (*dataclasses.astuple(self._data), *dataclasses.astuple(self._heldout))
        self.settings = stages.settings_of(stage) | {"seed": config.seed}
        self.settings["data"] = stages.digest(content)
        self._begun = stages.has_begun(self.run.path) and not config.overwrite_output_dir
        self._result = None
        if self._begun:
            self._result = stages.result_of(self.run.path, self.settings, "a reward model")
        self._overwrite = config.overwrite_output_dir
        self._config = RewardModelConfig(
            output_dir=str(self.run),
            learning_rate=stage.reward_learning_rate,
            num_train_epochs=stage.reward_epochs,
            per_device_train_batch_size=stage.reward_batch_size,
            save_steps=200,
            seed=config.seed,
            bf16=config.bf16,
            disable_tqdm=config.disable_tqdm,
            resume_from_checkpoint="true" if self._begun else None,
        )
        self._train = partial(
            train_reward_model,
            self._data,
            model_name_or_path=base,
            sizes=ClassifierSizes(vocab_size=4000, context_length=stage.reward_context_length),
        )

    def describe(self) -> str:
        """Say what the model will learn from, or that it is there."""
        if self._result is not None:
            return f"The reward model in {self.run} was trained with these settings and is taken."
        return f"The reward model learns first: {self._start} on {self._data.describe()}."

    def rehearse(self) -> str:
        """Train for a few steps and keep nothing; what is tried afterwards scores 0."""
        checked = rehearse(self._train, self._config)
        self._function = lambda prompts, completions: [0.0] * len(prompts)
        return f"The reward model: {checked}"

    @property
    def ready(self) -> bool:
        """Whether there is a model to score by; a check before training skips this one else."""
        return self._function is not None

    def unseen(self, prompts: "Dataset") -> "Dataset":
        """Keep the prompts from texts that the model does not learn from.

        Args:
            prompts: what `load_prompts` gave for the same data set and split.

        Raises:
            RecipeError: none is left.
        """
        names = (self.stage.text_column,) if self.stage.text_column else TEXT_COLUMNS
        column = next(name for name in names if name in prompts.column_names)
        seen = set(self._seen[column][:])
        kept = [row for row, text in enumerate(prompts[column][:]) if text not in seen]
        if not kept:
            raise RecipeError(
                "--reward_share: every prompt is among the texts that the reward model learns "
                "from. Lower it, or give a data set whose texts differ."
            )
        return prompts.select(kept)

    def train(self) -> Figures:
        """Train and measure the model, or take the one that is there, and score by it from now on.

        Random states are the same afterwards, whether it was trained, gone on with or taken.

        Returns:
            Its figures.
        """
        if self.figures is not None:
            return self.figures
        if self._result is None:
            self._train_and_measure()
        else:
            bins = [Bin(*entry) for entry in self._result["bins"]]
            self.figures = Figures(**self._result | {"bins": bins})
        if is_main_process():
            print(f"Reward model: {self.figures.sentences()}", flush=True)  # noqa: T201  its result
        model = str(self.run.model)
        self._function = (
            SentimentReward(model, label=self.label, score="log_odds")
            if self.figures.kind == "classes"
            else RewardModelReward(model)
        )
        set_seed(self.seed)
        return self.figures

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Score each prompt plus completion.

        Args:
            prompts: B texts.
            completions: B texts.
            **columns: what else a trainer passes; not used.

        Returns:
            B scores: the log odds of the label, or the model's one logit.
        """
        if self._function is None:
            raise RecipeError(
                f"The reward model of {self.run} is not trained yet. Call `train()` of "
                "`LearntReward` before anything is scored."
            )
        return self._function(prompts=prompts, completions=completions)

    @property
    def _start(self) -> str:
        return self.stage.reward_base or "a small ModernBERT from scratch"

    def _train_and_measure(self) -> None:
        begun = time.monotonic()
        trained = self._train(
            output_dir=self.run.model, config=self._config, before_training=self._begin
        )
        self.figures = evaluate_reward_model(self.run.model, self._heldout)
        if is_main_process():
            self.figures.plot(self.run.plots / "reliability.png")
            write_card(
                self.run.model,
                self.figures,
                base=self._start,
                source=self.source,
                rows=trained["rows"],
                seconds=time.monotonic() - begun,
            )
            stages.finish(self.run.path, self.settings, dataclasses.asdict(self.figures))
            write_report(self.run)

    @contextmanager
    def _begin(self) -> Iterator[None]:
        prepare_run(
            self.run.path, overwrite=self._overwrite, resume=self._begun, settings=(self.stage,)
        )
        stages.begin(self.run.path, self.settings)
        yield

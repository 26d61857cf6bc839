"""What is compared: the task that all runs share, and what each algorithm brings of its own."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from trl_recipes.errors import RecipeError

if TYPE_CHECKING:
    from transformers import TrainingArguments

Algorithm = Literal["ppo", "grpo", "rloo"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
NAMES = {name: name.upper() for name in ALGORITHMS}
# Settings that are the task's, so that no algorithm may have its own.
_SHARED = ("batch_size", "response_length", "temperature", "max_steps", "seed", "output_dir")
_SHARED += ("max_completion_length", "min_response_length", "lr_scheduler_type", "reward_funcs")
_SHARED += ("steps_per_generation", "generation_batch_size", "logging_steps", "total_episodes")


@dataclass(frozen=True)
class Work:
    """What is the same for every run.

    Attributes:
        tokens: to generate in training; a run ends with the batch that reaches them.
        batch: responses a step.
        response: most tokens of a response.
        shortest: tokens of the shortest prompt.
        longest: tokens of the longest prompt.
        evaluations: how often the policy is measured on held-out prompts, the start not counted.
        eval_prompts: held-out prompts.
        model: language model; None takes the embedded one.
        reward_model: sentiment classifier; None takes the embedded one.
        dataset: texts to take prompts of; None takes the embedded ones.
        label: whose probability is the reward.
    """

    tokens: int
    batch: int
    response: int
    shortest: int
    longest: int
    evaluations: int
    eval_prompts: int
    model: str | None = None
    reward_model: str | None = None
    dataset: str | None = None
    label: str = "POSITIVE"

    @property
    def most_steps(self) -> int:
        """Steps that the budget takes if every response is one token."""
        return math.ceil(self.tokens / self.batch)

    def ending(self) -> str:
        """Say when a run ends, which its trainer's description cannot know."""
        fewest = math.ceil(self.tokens / (self.batch * self.response))
        return (
            f"A run ends with the step that reaches {self.tokens} generated tokens: step {fewest} "
            "if every response has its full length, a later one the shorter they are."
        )

    def __str__(self) -> str:
        return (
            f"{self.tokens} generated tokens, {self.batch} responses a step of at most "
            f"{self.response} tokens"
        )


@dataclass(frozen=True)
class Run:
    """One run: an algorithm with a seed on the shared work.

    Attributes:
        algorithm: name of the algorithm.
        seed: of sampling, prompts and their order.
        work: what all runs share.
        settings: the algorithm's own, by the names of its configuration.
    """

    algorithm: Algorithm
    seed: int
    work: Work
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{NAMES[self.algorithm]} seed {self.seed}"

    @property
    def folder_name(self) -> str:
        """Name of the run's folder."""
        return f"{self.algorithm}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Give all that decides the run's outcome, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Run":
        """Undo `to_dict`.

        Args:
            values: what `to_dict` gave.
        """
        return cls(**values | {"work": Work(**values["work"])})


def make_runs(
    work: Work, algorithms: Sequence[str], seeds: Sequence[int], own: Mapping[str, Any]
) -> list[Run]:
    """Make every run of a comparison: each algorithm with each seed, in turn.

    Args:
        work: what they share.
        algorithms: names.
        seeds: of the runs.
        own: each algorithm's settings: a dict, JSON, or None for its defaults.

    Raises:
        RecipeError: an unknown algorithm, one or a seed given twice, or a number out of range.
    """
    for name in algorithms:
        if name not in ALGORITHMS:
            raise RecipeError(f"--algorithms: `{name}` is unknown. Use {', '.join(ALGORITHMS)}.")
    for flag, values in (("--algorithms", algorithms), ("--seeds", seeds)):
        if not values or len(set(values)) < len(values):
            shown = " ".join(map(str, values)) or "nothing"
            raise RecipeError(f"{flag} is {shown}. Give each value once, and at least one.")
    for name in ("tokens", "batch", "response", "evaluations", "eval_prompts"):
        if getattr(work, name) < 1:
            raise RecipeError(f"`{name}` is {getattr(work, name)}. It must be 1 or more.")
    if work.tokens < work.batch * work.evaluations:
        raise RecipeError(
            f"--tokens {work.tokens} is less than a token for each response of {work.evaluations} "
            f"batches of {work.batch}. Raise it, or lower --batch or --evaluations."
        )
    settings = {name: _own_settings(name, own.get(name)) for name in algorithms}
    runs = [Run(name, seed, work, settings[name]) for seed in seeds for name in algorithms]
    for run in runs:
        config_of(run, Path(run.folder_name))
    return runs


def config_of(run: Run, folder: Path, resume: bool = False) -> "TrainingArguments":
    """Make the configuration of a run's trainer.

    The learning rate stays constant, since how many steps a budget of tokens takes is known only
    at its end; `max_steps` is what responses of one token would take.

    Args:
        run: what to train.
        folder: that it writes to.
        resume: whether to go on from its newest checkpoint.

    Raises:
        RecipeError: an unknown setting, one that all runs share, or a value that is refused.
    """
    kind, flag = _config_class(run.algorithm), f"--{run.algorithm}"
    known = {setting.name for setting in dataclasses.fields(kind) if setting.init}
    for name in run.settings:
        if name in _SHARED:
            raise RecipeError(
                f"{flag}: `{name}` is the same for every algorithm. Leave it out there, and use "
                "the flags of the recipe."
            )
        if name not in known:
            raise RecipeError(
                f"{flag}: {kind.__name__} has no setting `{name}`. Mend its name; `python "
                f"recipes/{run.algorithm}_sentiment.py --help_all` lists them."
            )
    work = run.work
    shared = {
        "output_dir": str(folder),
        "seed": run.seed,
        "batch_size": work.batch,
        "response_length": work.response,
        "max_steps": work.most_steps,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "resume_from_checkpoint": "true" if resume else None,
    }
    if "min_response_length" in known:  # PPO would draw the limit of each response
        shared["min_response_length"] = None
    try:
        return kind(**{"save_steps": 10} | run.settings | shared)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{flag}: {error} Mend the settings of {NAMES[run.algorithm]}."
        ) from error


def trainer_class(algorithm: Algorithm) -> type:
    """Give the trainer of an algorithm.

    Args:
        algorithm: ppo, grpo or rloo.
    """
    import trl_recipes

    return getattr(trl_recipes, f"{NAMES[algorithm]}Trainer")


def _own_settings(name: str, given: Any) -> dict[str, Any]:
    """An algorithm's settings, which a command line gives as JSON."""
    try:
        settings = json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise RecipeError(
            f"--{name} is {given!r}, which is no JSON object. Give one such as "
            "'{\"learning_rate\": 1e-5}', or settings under this key in a YAML file."
        )
    return settings


def _config_class(algorithm: Algorithm) -> type:
    import trl_recipes

    return getattr(trl_recipes, f"{NAMES[algorithm]}Config")

"""What is trained before PPO, and for how long."""

from dataclasses import dataclass, field

from trl_recipes.errors import RecipeError

STAGES = ("pretrain", "reward", "ppo")


@dataclass
class StageArguments:
    """Settings of the stages before PPO; those of PPO are `PPOConfig`."""

    stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "Stages to run: pretrain, reward, ppo, or some of them."},
    )
    comparisons: str | None = field(
        default=None,
        metadata={
            "help": "What the reward model learns: a data set of source, output and score, or of "
            "source, chosen and rejected; made of the pretrained model's outputs when left out."
        },
    )
    score_function: str | None = field(
        default=None,
        metadata={
            "help": "Function that scores those outputs, as file.py:function; when left out, the "
            "embedded rewrites' own, and elsewhere the pairs' targets are preferred."
        },
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "A reward model that is ready, in place of that stage."}
    )
    pretrain_steps: int = field(default=1600, metadata={"help": "Steps of pretraining."})
    pretrain_batch_size: int = field(default=32, metadata={"help": "Pairs in a step of it."})
    pretrain_learning_rate: float = field(default=1e-3, metadata={"help": "Its highest rate."})
    reward_outputs: int = field(
        default=4000, metadata={"help": "Outputs that are compared for the reward model."}
    )
    reward_swapped: float = field(
        default=0.4,
        metadata={
            "help": "Share of these outputs that is scored once more, beside another source; a "
            "reward model that never sees one does not learn to look at the source."
        },
    )
    reward_noise: float = field(
        default=0.1, metadata={"help": "Spread of the errors in the scores that it learns."}
    )
    reward_steps: int = field(default=800, metadata={"help": "Steps of the reward model."})
    reward_batch_size: int = field(default=32, metadata={"help": "Comparisons in a step of it."})
    reward_learning_rate: float = field(default=1e-3, metadata={"help": "Its highest rate."})

    def __post_init__(self):
        unknown = [name for name in self.stages if name not in STAGES]
        if unknown or not self.stages:
            raise RecipeError(
                f"--stages: {unknown[0] if unknown else 'nothing'!r} is no stage. Choose among "
                f"{', '.join(STAGES)}."
            )
        for name in ("pretrain_steps", "pretrain_batch_size", "reward_steps", "reward_batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"--{name} is {getattr(self, name)}. Use 1 or more.")
        for name in ("pretrain_learning_rate", "reward_learning_rate", "reward_noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecipeError(f"--{name} is {getattr(self, name)}. Use 0 or more.")
        if not 0 <= self.reward_swapped <= 1:
            raise RecipeError(f"--reward_swapped is {self.reward_swapped}. Use a share, 0 to 1.")
        if self.reward_outputs < 20:
            raise RecipeError(
                f"--reward_outputs is {self.reward_outputs}, too few to learn from and to measure "
                "on. Use 20 or more."
            )

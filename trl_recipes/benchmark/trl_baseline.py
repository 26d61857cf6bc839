"""TRL's own PPOTrainer, set up as its users run it, to measure ours against."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import nn
from transformers import TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from trl_recipes.benchmark import models
from trl_recipes.benchmark.models import Workload

Phase = Callable[[str], AbstractContextManager]


def trl_trainer(
    work: Workload, output_dir: str, learning_rate: float, callback: TrainerCallback
) -> PPOTrainer:
    """Build TRL's trainer for batches that go through the model whole.

    Its value model is trained in full also where the policy has an adapter. bf16 autocast reaches
    it through the environment, as `accelerate launch --mixed_precision bf16` sets it, and holds for
    its update, not for its generation and its reference model.
    """
    config = PPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=work.batch,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=work.batch,
        num_mini_batches=1,
        num_ppo_epochs=work.epochs,
        response_length=work.response,
        stop_token=None,
        temperature=1.0,
        total_episodes=work.batch * (work.steps + 1),
        num_sample_generations=0,
        learning_rate=learning_rate,
        seed=work.seed,
        bf16=work.precision == "bf16",
        use_cpu=work.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return PPOTrainer(
        args=config,
        processing_class=models.tokenizer(work),
        model=models.language_model(work),
        ref_model=None,
        reward_model=models.reward_model(work),
        value_model=models.value_model(work),
        train_dataset=models.prompts(work),
        peft_config=models.lora_config(work),
        callbacks=[callback],
    )


@contextmanager
def timed_phases(trainer: PPOTrainer, phase: Phase) -> Iterator[None]:
    """Time what TRL's `train` calls before its update, by wrapping its module's functions.

    `phase` is called with "generation", "scoring" or "forward", and gives a context manager.
    """
    names: dict[str, Callable[[nn.Module], str | None]] = {
        "batch_generation": lambda model: "generation",
        "get_reward": lambda model: "scoring" if model is trainer.reward_model else "forward",
        "forward": lambda model: None if torch.is_grad_enabled() else "forward",
    }

    def wrapped(name: str, original: Callable) -> Callable:
        def call(model, *args, **kwargs):
            found = names[name](model)
            with nullcontext() if found is None else phase(found):
                return original(model, *args, **kwargs)

        return call

    timed = {name: wrapped(name, getattr(ppo_trainer, name)) for name in names}
    with patch.multiple(ppo_trainer, **timed):
        yield

"""TRL's own PPOTrainer, set up as its users run it, to measure ours against."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from trl_recipes.errors import RecipeError

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
try:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
except ImportError as error:
    raise RecipeError(
        "TRL's own PPOTrainer was taken out of TRL in 1.13. To measure ours against it, "
        "`pip install 'trl<1.13'`; `--only ours` measures ours alone."
    ) from error

Phase = Callable[[str], AbstractContextManager]


def stock_trainer(
    model: nn.Module,
    value_model: nn.Module,
    reward_model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    output_dir: str,
    batch: int,
    response: int,
    epochs: int,
    steps: int,
    learning_rate: float,
    seed: int,
    bf16: bool,
    use_cpu: bool,
    peft_config: PeftConfig | None,
    callback: TrainerCallback,
) -> PPOTrainer:
    """Build TRL's trainer for batches that go through the model whole.

    It copies the reference model itself, or takes the policy with its adapter off. Its value model
    is trained in full also where the policy has an adapter. bf16 autocast reaches it through
    accelerate alone, as `accelerate launch --mixed_precision bf16` sets it; `bf16` then says no
    more than the environment does. It holds for TRL's update, not for its generation and its
    reference model, which do not pass through what accelerate wrapped.

    Args:
        model: policy, a transformers causal model.
        value_model: a sequence classifier with one label.
        reward_model: another one.
        tokenizer: pads at the left.
        dataset: prompts, with token ids in `input_ids`.
        output_dir: folder for what TRL writes.
        batch: responses a step, in one forward and backward pass.
        response: tokens of each response; none ends early.
        epochs: optimizer steps on each batch.
        steps: PPO steps in all.
        learning_rate: of AdamW.
        seed: of order and sampling.
        bf16: whether the process was started with bf16 mixed precision.
        use_cpu: whether to leave a GPU alone.
        peft_config: adapter to train, or None.
        callback: hears of each step's end.
    """
    config = PPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=batch,
        num_mini_batches=1,
        num_ppo_epochs=epochs,
        response_length=response,
        stop_token=None,
        temperature=1.0,
        total_episodes=batch * steps,
        num_sample_generations=0,
        learning_rate=learning_rate,
        seed=seed,
        bf16=bf16,
        use_cpu=use_cpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=dataset,
        peft_config=peft_config,
        callbacks=[callback],
    )


@contextmanager
def timed_phases(trainer: PPOTrainer, phase: Phase) -> Iterator[None]:
    """Time what TRL's `train` calls before its update, without changing what it computes.

    Its module functions are wrapped: `batch_generation` is generation, `get_reward` of the reward
    model is scoring, `get_reward` of the value model and `forward` without gradients (the reference
    model) are forward passes. What remains of a step is its update.

    Args:
        trainer: of `stock_trainer`.
        phase: called with "generation", "scoring" or "forward"; a context manager around the call.
    """
    names: dict[str, Callable[[nn.Module], str | None]] = {
        "batch_generation": lambda model: "generation",
        "get_reward": lambda model: "scoring" if model is trainer.reward_model else "forward",
        "forward": lambda model: None if torch.is_grad_enabled() else "forward",
    }
    originals = {name: getattr(ppo_trainer, name) for name in names}

    def wrapped(name: str) -> Callable:
        def call(model, *args, **kwargs):
            found = names[name](model)
            with nullcontext() if found is None else phase(found):
                return originals[name](model, *args, **kwargs)

        return call

    try:
        for name in names:
            setattr(ppo_trainer, name, wrapped(name))
        yield
    finally:
        for name, function in originals.items():
            setattr(ppo_trainer, name, function)

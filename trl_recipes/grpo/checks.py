"""What GRPO and RLOO check before training, and what rewards give on the start model's samples."""

from typing import Any

import torch
from datasets import Dataset
from transformers import DefaultFlowCallback

from trl_recipes.checkpointing import find_checkpoint, random_states, set_random_states
from trl_recipes.data.conversations import is_conversation
from trl_recipes.describe import describe_check, describe_run
from trl_recipes.distributed import gather
from trl_recipes.errors import RecipeError
from trl_recipes.grpo.config import RLOOConfig
from trl_recipes.grpo.inputs import made_up_sample
from trl_recipes.models.forward import temporarily, unwrap_adapter
from trl_recipes.models.loading import check_lengths
from trl_recipes.models.sampling import generate_responses
from trl_recipes.models.sharding import is_whole
from trl_recipes.rewards.base import check_rewards, rows_to_measure
from trl_recipes.run_folder import check_disk

CHECK_STEPS = 4  # the first one warms up; the others tell how long a step takes


def check_before_training(trainer: Any) -> list[int]:
    """Check rewards, prompts, lengths and disk; return the lengths of the prompts."""
    rows = trainer.train_dataset
    if not isinstance(rows, Dataset):
        return [0]
    sample = made_up_sample(rows, trainer.processing_class)
    extras = trainer._reward_extras()
    extras |= {name: lambda *_: None for name in extras if name.startswith("log_")}
    check_rewards(trainer.rewards, trainer.args.reward_once, **sample, **extras)
    if len(rows) < trainer.args.groups:
        raise RecipeError(
            f"The data set has {len(rows)} prompts, fewer than the {trainer.args.groups} of one "
            f"batch ({trainer.args.generation_batch_size} responses, {trainer.num_generations} to "
            "each). Lower `batch_size` or give more prompts."
        )
    lengths = [len(ids) for ids in trainer._tokenize_prompts(rows["prompt"][:])[0]]
    check_lengths(max(lengths), trainer.args.response_length, trainer.model)
    check_disk(trainer.args, sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
    return lengths


def description(trainer: Any, lengths: list[int]) -> str:
    """Say in one paragraph what a run is about to do, on prompts of these lengths."""
    model = unwrap_adapter(trainer.accelerator.unwrap_model(trainer.model))
    return describe_run(trainer._name, trainer, model, lengths, trainer._number_of_steps())


def measure_rewards(trainer: Any) -> None:
    """Measure rewards on samples of the start model, and weigh them by it where asked, once.

    Responses to one prompt are compared: a function's mean cancels out, its deviation divides its
    weight. A resumed run takes its checkpoint's weights.
    """
    args, rewards = trainer.args, trainer.rewards
    wanted = rewards.wants_reference_norm(args.reward_norm)
    if not wanted or rewards.scales or find_checkpoint(args):
        return
    policy = trainer.accelerator.unwrap_model(trainer.model)
    loops = any(getattr(trainer, n, None) for n in ("tools", "environments", "rollout_func"))
    if loops or not (isinstance(trainer.train_dataset, Dataset) and is_whole(policy)):
        if args.reward_norm == "reference":
            raise RecipeError(
                "`reward_norm` is reference, which needs a data set with a length, a model "
                "that lies whole in each process, and neither tools nor environments. Use none."
            )
        return
    randomness = random_states()
    rows = rows_to_measure(len(trainer.train_dataset), args.seed, trainer.accelerator)
    inputs = [trainer.train_dataset[row] for row in rows]
    prompts = [row["prompt"] for row in inputs]
    responses = generate_responses(
        policy,
        [torch.tensor(ids) for ids in trainer._tokenize_prompts(prompts)[0]],
        pad_token_id=trainer._tokenizer.pad_token_id,
        eos_token_id=trainer._end_tokens(),
        max_new_tokens=args.response_length,
        temperature=args.temperature,
        batch_size=args.batch_size,
    )
    texts = trainer._tokenizer.batch_decode(responses, skip_special_tokens=True)
    completions = [
        [{"role": "assistant", "content": text}] if is_conversation(prompt) else text
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    raw = trainer._score(inputs, prompts, completions, [row.tolist() for row in responses])
    set_random_states(randomness)
    raw = {name: gather(values) for name, values in raw.items()}
    rewards.measure(raw, normalizes(trainer))
    for row, name in enumerate(rewards.normalization):
        trainer.reward_weights[row] /= rewards.normalization[name][1]


def normalizes(trainer: Any) -> bool:
    """Whether rewards are normalized; by default not in GRPO, which compares within groups."""
    norm, rloo = trainer.args.reward_norm, isinstance(trainer.args, RLOOConfig)
    return norm == "reference" or (rloo and trainer.rewards.wants_reference_norm(norm))


def dry_run(trainer: Any, steps_callback: type) -> str:
    """Try the first steps of `train`, write nothing, restore everything; say what was found."""
    check_before_training(trainer)
    steps, handler = trainer._number_of_steps(), trainer.callback_handler
    reference = [] if trainer.ref_model is None else trainer.ref_model.parameters()
    changed = [p for p in trainer.model.parameters() if p.requires_grad] + list(reference)
    before, randomness = [parameter.detach().clone() for parameter in changed], random_states()
    few = {"max_steps": min(CHECK_STEPS, steps), "save_strategy": "no", "eval_strategy": "no"}
    few |= {"logging_steps": 1, "resume_from_checkpoint": None}
    kept = (DefaultFlowCallback, steps_callback)  # neither trackers nor bars
    listeners = [listener for listener in handler.callbacks if isinstance(listener, kept)]
    try:
        with (
            temporarily(trainer.args, **few),
            temporarily(handler, callbacks=listeners),
            temporarily(trainer, _trying=True, log_completions=False),
        ):
            trainer._train()
        seconds = [row["step_time"] for row in trainer.all_stats]
        sample = trainer._samples and tuple(column[0] for column in trainer._samples)
    finally:
        trainer.optimizer = trainer.lr_scheduler = None
        trainer._forget()
        trainer._metrics["train"].clear()
        with torch.no_grad():
            for parameter, value in zip(changed, before, strict=True):
                parameter.copy_(value)
        set_random_states(randomness)
    return describe_check(seconds, steps, "the prompts", sample)

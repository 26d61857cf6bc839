"""Checks before training: inputs, models, and the first batch."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trl_recipes.checkpointing import find_checkpoint
from trl_recipes.describe import describe_run
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length, evaluating, response_logits, unwrap_adapter
from trl_recipes.models.loading import check_lengths
from trl_recipes.ppo.models import ActorCritic, reference_is_start
from trl_recipes.ppo.objective import Sum
from trl_recipes.ppo.rollout import Evaluation, Rollout
from trl_recipes.rewards.base import check_rewards, made_up, reward_inputs
from trl_recipes.run_folder import check_disk

logger = logging.getLogger(__name__)

NOTHING_LEFT = (
    "All %d steps of this run are done: nothing is trained. For more steps resume with a higher "
    "`max_steps`; for another run make another trainer."
)
ROUNDING = 1e-4  # nats by which float32 log-probabilities of two correct passes may differ


def check_step_inputs(given: dict[str, Sequence[Tensor]], batch_size: int) -> None:
    """Check the arguments of `PPOTrainer.step`, by name: one of each per sample."""
    for name, values in given.items():
        if not isinstance(values, list | tuple):
            raise RecipeError(f"`{name}` must be a list of tensors, got {type(values).__name__}.")
        if len(values) != batch_size:
            raise RecipeError(
                f"Expected {batch_size} {name}, one a sample (`batch_size={batch_size}`), "
                f"got {len(values)}."
            )
        for row, value in enumerate(values):
            check_tensor(name, row, value)
    for row, mask in enumerate(given.get("response_masks", [])):
        length = len(given["responses"][row])
        if len(mask) != length:
            raise RecipeError(
                f"`response_masks[{row}]` has {len(mask)} entries, but `responses[{row}]` has "
                f"{length} tokens. Give one entry a token."
            )
        if not mask.bool().any():
            raise RecipeError(f"`response_masks[{row}]` masks every token. Leave one or more in.")


def check_tensor(name: str, row: int, value: Tensor) -> None:
    """Check one row of an argument: a number in `scores`, else a 1-D tensor."""
    where = f"`{name}[{row}]`"
    if not isinstance(value, Tensor):
        raise RecipeError(f"{where} must be a tensor, got {type(value).__name__}.")
    if name == "scores":
        if value.numel() != 1 or value.dim() > 1:
            raise RecipeError(f"{where} must be one number, got shape {tuple(value.shape)}.")
        if not torch.isfinite(value).all():
            raise RecipeError(f"{where} is {value.item()}. Scores must be finite numbers.")
        return
    if value.dim() != 1:
        raise RecipeError(
            f"{where} must be one-dimensional, got shape {tuple(value.shape)}. Use `.squeeze(0)`?"
        )
    if len(value) == 0:
        advice = " Set `min_new_tokens=1` in the generation arguments." * (name == "responses")
        raise RecipeError(f"{where} has no tokens.{advice}")
    if name != "response_masks" and value.is_floating_point():
        raise RecipeError(f"{where} holds {value.dtype}. Token ids are whole numbers: `.long()`?")


def check_token_ids(queries: list[Tensor], responses: list[Tensor], model: nn.Module) -> None:
    """Check token ids against the model's vocabulary, and their number against its context."""
    check_vocabulary_ids("queries", queries, model)
    check_vocabulary_ids("responses", responses, model)
    context, together = context_length(model.config), not model.config.is_encoder_decoder
    for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
        length = len(query) + len(response) if together else max(len(query), len(response))
        if context is not None and length > context:
            raise RecipeError(
                f"Sample {row} is {length} tokens long (query {len(query)}, response "
                f"{len(response)}), but the model's context holds {context}. Shorten either."
            )


def check_vocabulary_ids(name: str, rows: Sequence[Tensor], model: nn.Module) -> None:
    """Check the token ids of the argument `name` against the model's vocabulary."""
    size = model.get_input_embeddings().weight.shape[0]
    for row, ids in enumerate(rows):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise RecipeError(
                f"`{name}[{row}]` holds token id {low if low < 0 else high}, outside the model's "
                f"vocabulary of {size}. Is the tokenizer the model's own?"
            )


def check_reference(model: nn.Module, ref_model: nn.Module) -> None:
    """Check that the reference is another model, with the policy's vocabulary."""
    if ref_model is model:
        raise RecipeError(
            "`model` and `ref_model` are the same object, so the KL penalty would always be 0. "
            "Pass `create_reference_model(model)`, or None."
        )
    size, ref_size = (m.get_output_embeddings().weight.shape[0] for m in (model, ref_model))
    if size != ref_size:
        raise RecipeError(
            f"`ref_model` has a vocabulary of {ref_size}, `model` one of {size}: their "
            "log-probabilities cannot be compared. Use a reference that shares the tokenizer."
        )


class FirstBatchCheck:
    """Compares sampling, forward passes and reference before the first update.

    `trust_sampling` says whether log-probabilities from sampling equal those of a forward pass.
    """

    def __init__(
        self, actor_critic: ActorCritic, ref_model: nn.Module | None, bf16: bool, all_sum: Sum
    ):
        policy, self.is_start = actor_critic.policy, actor_critic.start is not None
        self.policy, self.ref_model, self.all_sum = policy, ref_model, all_sum
        models = [policy] if ref_model is None else [policy, ref_model]
        dtypes = {parameter.dtype for model in models for parameter in model.parameters()}
        # half precision, or the integers of quantized weights
        self.reduced_precision = bf16 or bool(dtypes - {torch.float32, torch.float64})
        self.evaluated = self.updated = False
        self.trust_sampling: bool | None = None

    def after_evaluation(self, rollout: Rollout, evaluation: Evaluation) -> None:
        """Check on the first batch that KL to the start model is 0, and compare with sampling."""
        self.evaluated = True
        if self.is_start or reference_is_start(self.policy, self.ref_model):
            log_ratio = (evaluation.logprobs - evaluation.ref_logprobs) * rollout.loss_mask
            self.check("The reference is the start model, yet on the first batch", log_ratio)
        if rollout.logprobs is None:
            return
        off = (rollout.logprobs - evaluation.logprobs).abs().max()
        self.trust_sampling = not self.all_sum((off > ROUNDING).float())  # all processes agree
        if not (self.trust_sampling or self.reduced_precision):
            logger.warning(
                "Log-probabilities from sampling and from a forward pass differ by %.2g nats: each "
                "step takes a forward pass for them, which is safe and slower.",
                off,
            )

    def check(self, whose: str, log_ratio: Tensor) -> None:
        """Check that two log-probabilities of each token, which `whose` names, are equal."""
        off, tolerance = log_ratio.abs().max().item(), ROUNDING
        if self.reduced_precision:  # of many tokens one is always far off
            off, tolerance = log_ratio.square().mean().sqrt().item(), 0.1
        if not off <= tolerance:
            cause = explain_mismatch(self.policy, self.reduced_precision)
            what = f"{whose} log-probabilities differ by {off:.2g}"
            raise RecipeError(f"{what}; up to {tolerance:.0e} is rounding. {cause}")


@torch.no_grad()
def explain_mismatch(policy: nn.Module, reduced_precision: bool) -> str:
    """Name the first known cause for one model's log-probabilities to differ between passes."""
    model = unwrap_adapter(policy)
    for name, module in policy.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p:
            return f"Dropout is on in `{name}`: set it to 0, or leave switching it off to us."
    ids = torch.arange(1, 49, device=model.device).remainder(model.config.vocab_size).view(4, 12)
    ones = torch.ones_like(ids)
    rows = (ids[:, :4], ones[:, :4], ids[:, 4:], ones[:, 4:])
    once, again = response_logits(policy, *rows)[0], response_logits(policy, *rows)[0]
    if not torch.equal(once, again):
        return "The model draws at random: it gives one input two answers."
    with evaluating(policy):
        if not torch.equal(once, response_logits(policy, *rows)[0]):
            return "In train mode the model computes something else than in eval mode."
    dtypes = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if reduced_precision or dtypes:
        kind = "autocast" if reduced_precision else ", ".join(map(str, dtypes))
        return f"Precision: the model runs in {kind}. Try float32 (`bf16: false`)."
    alone = response_logits(policy, *(row[:1] for row in rows))[0]
    if (alone - once[: len(alone)]).abs().max() > ROUNDING:
        return "A row's log-probabilities change with the rows beside it: does the model mix rows?"
    ones[0, 6:] = 0  # two tokens of the response are left
    if (alone[:2] - response_logits(policy, *rows)[0][:2]).abs().max() > ROUNDING:
        return "Padding behind a row changes its log-probabilities: does the model look ahead?"
    return "Neither dropout, chance, precision nor padding is the cause: were weights changed?"


def check_before_training(trainer: Any) -> None:
    """Check rewards, prompts, lengths, checkpoint and disk before `train`."""
    args = trainer.args
    if trainer.rewards is None:
        raise RecipeError("`train` needs `reward_funcs`. Pass one function or a list of them.")
    if trainer.dataset is None:
        raise RecipeError("`train` needs `train_dataset`: prompts, in a column `prompt`.")
    dataset = trainer.prompts
    if len(dataset) < args.global_batch_size:
        raise too_few_prompts(len(dataset), args.batch_size)
    trainer.state.max_steps = args.num_total_batches  # rewards may divide by it
    texts, ids = made_up(dataset[:2]["query"], trainer.tokenizer)
    prompts, completions, columns = reward_inputs(dataset[:2], texts, trainer.tokenizer)
    samples = (prompts, completions, ids, columns)
    check_rewards(trainer.rewards, args.reward_once, *samples, trainer_state=trainer.state)
    trainer._next_batch()  # which a `data_collator` may not be able to make
    longest = max(len(ids) for ids in dataset["input_ids"])
    check_lengths(longest, args.response_length, trainer._policy())
    find_checkpoint(args)
    check_disk(args, sum(p.numel() for p in trainer._trained_parameters().values()))


def too_few_prompts(rows: int, batch_size: int) -> RecipeError:
    """Make the error of a data set that is smaller than a batch."""
    return RecipeError(
        f"The data set has {rows} prompts, fewer than one batch of {batch_size}. Lower "
        "`batch_size` or give more prompts."
    )


def description(trainer: Any) -> str:
    """Say in one paragraph what a run is about to do."""
    lengths = [len(ids) for ids in trainer.prompts["input_ids"]]
    steps = trainer.args.num_total_batches
    return describe_run("PPO", trainer, trainer._actor_critic(), lengths, steps)

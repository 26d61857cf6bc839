"""The hand-written loop of TRL 0.11: `generate`, `step`, `log_stats`, and what was odd in them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import decoder_start_token_id
from trl_recipes.models.sampling import generate_responses
from trl_recipes.ppo import checks, objective
from trl_recipes.ppo.rollout import Rollout, collate
from trl_recipes.ppo.statistics import score_stats

logger = logging.getLogger(__name__)

# Values that leave the policy's distribution as it is.
NEUTRAL = {
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "do_sample": True,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": 0,
}
_said: set[str] = set()


class ClassicLoop:
    """The methods of TRL 0.11's trainer that a hand-written loop calls."""

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs,
    ) -> Any:
        """Sample responses, all queries in one batch unless told otherwise.

        Args:
            query_tensor: token ids of one query, shape (query length,), or a list of them.
            length_sampler: draws the most new tokens of each response, one for each query.
            batch_size: queries generated together; None takes all.
            return_prompt: whether a causal model's query stands before its response.
            generate_ref_response: sample from the reference model too.
            **generation_kwargs: fields of `transformers.GenerationConfig`; none is needed. The
                neutral ones of the classic walkthrough (`top_k=0.0, top_p=1.0, min_length=-1`) do
                nothing; one that bends the distribution is warned about once.

        Returns:
            For one query a tensor (1, length), for a list a list of 1-D tensors of different
            lengths; a pair of these with `generate_ref_response`. An encoder-decoder's responses
            begin with its start token, as `step` expects them.
        """
        single = isinstance(query_tensor, Tensor)
        queries = [query_tensor] if single else list(query_tensor)
        for row, query in enumerate(queries):
            checks.check_tensor("query_tensor", row, query)
        settings = complete_settings(generation_kwargs, self._generation_defaults())
        limit = settings.pop("max_new_tokens")
        if length_sampler is not None:
            limit = [int(length_sampler()) for _ in queries]

        def sample(model: nn.Module) -> Any:
            with self._autocast():
                responses = generate_responses(
                    model, queries, max_new_tokens=limit, batch_size=batch_size, **settings
                )
            if self.is_encoder_decoder:
                responses = self._with_start_token(responses)
            elif return_prompt:
                pairs = zip(queries, responses, strict=True)
                responses = [torch.cat([query.to(row.device), row]) for query, row in pairs]
            return responses[0].unsqueeze(0) if single else responses

        with self._gathered():
            response = sample(self._policy())
        if not generate_ref_response:
            return response
        with self._reference() as ref_model:
            return response, sample(ref_model)

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Train on one batch of sampled responses.

        Args:
            queries: token ids, each of shape (query length,).
            responses: token ids, each of shape (response length,); an encoder-decoder's begin with
                its start token, as `generate` returns them.
            scores: one number each.
            response_masks: 1 at response tokens to train on, 0 at others, each as long as its
                response; None trains on all of them.

        Returns:
            Statistics under the keys of TRL 0.11.4; `trl_recipes.stats.STAT_KEYS` explains them.
        """
        checks.check_step_inputs(queries, responses, scores, response_masks, self.config.batch_size)
        checks.check_token_ids(queries, responses, self._policy())
        rollout = self._collate(queries, responses, response_masks)
        scores = torch.stack([score.detach().float().reshape(()) for score in scores])
        return self._step(rollout, scores, self._classic_quirks())

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, list],
        rewards: Sequence[Tensor],
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Log what `step` returned to the run folder and to trackers.

        `stats` gets `env/reward_mean` and `env/reward_std` of the raw scores `rewards`; those of
        `columns_to_log` that are in `batch` are written with the samples.
        """
        scores = torch.stack([torch.as_tensor(r).float().reshape(()) for r in rewards]).tolist()
        stats |= score_stats(scores, {}, self.current_device, self._all_sum)
        self.state.global_step += 1
        self.state.episode += self.config.global_batch_size
        samples = {name: [""] * len(scores) for name in ("query", "response")}
        samples |= {name: list(batch[name]) for name in columns_to_log if name in batch}
        self._record(stats, samples | {"score": scores})

    def save_pretrained(self, save_directory: str) -> None:
        """Save as `save_model` does; the classic name."""
        self.save_model(save_directory)

    def _collate(self, queries, responses, response_masks=None) -> Rollout:
        """Pad the batch; an encoder-decoder's start token moves out of the responses."""
        masks = response_masks
        if self.is_encoder_decoder:
            start = decoder_start_token_id(self._policy().config)
            for row, response in enumerate(responses):
                if response[0] != start or len(response) < 2:
                    raise RecipeError(
                        f"`responses[{row}]` must begin with the decoder's start token ({start}) "
                        "and hold at least one more. Pass what `generate` returned."
                    )
            responses = [response[1:] for response in responses]
            masks = masks and [mask[1:] for mask in masks]
        rollout = collate(queries, responses, masks, self.tokenizer.pad_token_id)
        rollout = Rollout(*(field.to(self.current_device) for field in rollout[:5]))
        skips_first = self.is_encoder_decoder and masks is None and self._classic_quirks()
        return without_first_token(rollout) if skips_first else rollout

    def _classic_quirks(self) -> bool:
        """Whether a hand-written loop computes what TRL 0.11.4 computed where it was wrong."""
        return self.config.trl_0_11_quirks is not False

    def _with_start_token(self, responses: list[Tensor]) -> list[Tensor]:
        start = decoder_start_token_id(self._policy().config)
        return [nn.functional.pad(response, (1, 0), value=start) for response in responses]


def complete_settings(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Complete what a caller of `generate` gave, and warn once about sampling that is bent.

    The neutral arguments of the classic walkthrough (`min_length=-1, top_k=0.0, top_p=1.0,
    eos_token_id=-1`) are understood in silence.
    """
    settings = defaults | given
    if settings["eos_token_id"] == -1:  # the classic way to say: never stop
        settings["eos_token_id"] = None
    bent = {}
    for name in NEUTRAL.keys() & settings.keys():
        if settings[name] == NEUTRAL[name] or (name.startswith("min_") and settings[name] <= 0):
            settings.pop(name)
        else:
            bent[name] = settings[name]
    if bent:
        _warn(
            f"generate was given {bent}: responses are not drawn from the policy itself, so their "
            "KL can turn negative. Fine for looking, wrong for training."
        )
    if settings["temperature"] != defaults["temperature"]:
        _warn(
            f"generate was given temperature {settings['temperature']}, but log-probabilities use "
            f"the config's {defaults['temperature']}. Set `temperature` there."
        )
    return settings


def _warn(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)


def without_first_token(rollout: Rollout) -> Rollout:
    """Leave the first token out of the loss, as TRL 0.11.4 did with an encoder-decoder's."""
    only = rollout.response_mask.sum(1) == 1
    loss_mask = rollout.loss_mask.clone()
    loss_mask[:, 0] = only
    return rollout._replace(loss_mask=loss_mask)


def advantages_with_padding(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    padding: Tensor,
    gamma: float,
    lam: float,
    all_sum: objective.Sum,
) -> tuple[Tensor, Tensor]:
    """Compute advantages and returns (B, R) as TRL 0.11.4 did with `whiten_rewards`.

    There, padding is whitened too; `padding` is how much each response had, (B,).
    """
    rewards = objective.whiten_with_padding(rewards, mask, padding, all_sum)
    width = values.shape[1]
    values = nn.functional.pad(values, (0, rewards.shape[1] - width))
    advantages, returns = objective.generalized_advantages(rewards, values, gamma, lam)
    return advantages[:, :width], returns[:, :width]

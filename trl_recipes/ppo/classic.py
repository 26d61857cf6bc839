"""The hand-written loop of TRL 0.11: `generate`, `step`, `log_stats`, and their quirks."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase, StopStringCriteria

from trl_recipes.callbacks import upload_model
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import decoder_start_token_id, pad_rows
from trl_recipes.models.generation import generate_responses
from trl_recipes.models.loading import check_lengths
from trl_recipes.ppo import checks
from trl_recipes.ppo.overridable import OverridableParts
from trl_recipes.ppo.rollout import Rollout, collate, sample
from trl_recipes.ppo.statistics import score_stats
from trl_recipes.run_folder import begin_run

# Values that leave the policy's distribution, or what `generate` returns, as it is.
_AT_ZERO = ("top_k", "min_p", "no_repeat_ngram_size", "min_length", "min_new_tokens")
_AT_ZERO += ("encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff", "diversity_penalty")
_AT_ONE = ("top_p", "typical_p", "repetition_penalty", "encoder_repetition_penalty")
_AT_ONE += ("length_penalty", "guidance_scale", "num_beams", "num_beam_groups", "use_cache")
NEUTRAL = dict.fromkeys(_AT_ZERO, 0) | dict.fromkeys(_AT_ONE, 1)
# Arguments of transformers' `generate` that are not fields of its configuration, and are passed on.
CALLED = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria")
# What leaves the distribution as it is, whatever its value, or is looked at on its own.
HARMLESS = ("max_length", "max_new_tokens", "max_time", "stopping_criteria", "num_return_sequences")
HARMLESS += ("do_sample", "temperature", "pad_token_id", "bos_token_id", "eos_token_id")
HARMLESS += ("use_cache", "cache_implementation", "cache_config", "max_cache_len")
HARMLESS += ("compile_config", "disable_compile", "prefill_chunk_size", "renormalize_logits")
# Fields of its configuration that ask for more than token ids.
MORE = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions")
MORE += ("output_hidden_states",)
# Methods of TRL 0.11's trainer that `step` does not call, so that overriding them has no effect.
NOT_CALLED = ("batched_forward_pass", "prepare_model_inputs", "train_minibatch", "gather_stats")
NOT_CALLED += ("record_step_stats", "_early_stop", "_generate_batched")


class ClassicLoop(OverridableParts):
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
        """Sample responses to token ids: of one query, shape (query length,), or of a list.

        `length_sampler` draws the most new tokens of each response; `batch_size` of them are
        generated together, by default all. What else transformers' `generate` takes is passed on,
        warned about where it bends the distribution, or refused.

        Returns a tensor (1, length) for one query, a list of 1-D tensors for a list; a pair of
        these with `generate_ref_response`. An encoder-decoder's responses begin with its start
        token, as `step` expects them; others with their query where `return_prompt`.
        """
        single = isinstance(query_tensor, Tensor)
        defaults = self._generation_defaults()
        settings = complete_settings(generation_kwargs, defaults, self.tokenizer)
        copies = settings.pop("num_return_sequences")
        queries = [query_tensor] if single else list(query_tensor)
        queries = [query for query in queries for _ in range(copies)]
        limits = self._limits(queries, settings, length_sampler)

        def returned(responses: list[Tensor]) -> Any:
            if self.is_encoder_decoder:
                responses = self._with_start_token(responses)
            elif return_prompt:
                pairs = zip(queries, responses, strict=True)
                responses = [torch.cat([query.to(row.device), row]) for query, row in pairs]
            pad = defaults["pad_token_id"]
            return pad_rows(responses, pad, "right")[0] if single else responses

        with self._sampling():
            response = returned(self._sample(queries, limits, batch_size, settings))
        if not generate_ref_response:
            return response
        chosen = {"max_new_tokens": limits, "batch_size": batch_size} | settings
        with self._reference() as ref_model, self._autocast():
            return response, returned(generate_responses(ref_model, queries, **chosen))

    def _limits(self, queries: list[Tensor], settings: dict, length_sampler) -> list[int]:
        """Take the most new tokens of each response out of the settings, and check the queries."""
        if not queries:
            raise RecipeError("`query_tensor` is an empty list. Give at least one query.")
        for row, query in enumerate(queries):
            checks.check_tensor("query_tensor", row, query)
        checks.check_vocabulary_ids("query_tensor", queries, self._policy())
        longest, limit = settings.pop("max_length", None), int(settings.pop("max_new_tokens"))
        given = f"`max_new_tokens` {limit}" if longest is None else f"`max_length` {longest}"
        if length_sampler is not None:
            limits, given = [int(length_sampler()) for _ in queries], "0 of `length_sampler`"
        elif longest is not None:  # which counts the prompt, or the decoder's start token
            before = [1 if self.is_encoder_decoder else len(query) for query in queries]
            limits = [int(longest) - length for length in before]
        else:
            limits = [limit] * len(queries)
        if min(limits) < 1:
            raise RecipeError(f"{given} leaves no token for a response. Raise it.")
        for query, most in zip(queries, limits, strict=True):
            check_lengths(len(query), most, self._policy())
        return limits

    def _sample(self, queries, limits, batch_size, settings: dict[str, Any]) -> list[Tensor]:
        """Sample from the policy; keep what is known of tokens from its whole distribution."""
        tokens = {name: settings[name] for name in ("pad_token_id", "eos_token_id", "temperature")}
        if settings.keys() != {*tokens, "do_sample"} or not settings["do_sample"]:
            chosen = {"max_new_tokens": limits, "batch_size": batch_size} | settings
            with self._gathered(), self._autocast():
                return generate_responses(self._policy(), queries, **chosen)
        if self._drawn_from != self._weights_version():
            self._drawn.clear()
        responses = []
        size = batch_size or len(queries)
        for start in range(0, len(queries), size):
            part = [query.to(self.current_device) for query in queries[start : start + size]]
            most = limits[start : start + size]
            rollout = sample(
                self._policy(), part, self.vllm_generation, max_new_tokens=most, **tokens
            )
            responses += rollout.response_rows()
            if rollout.logprobs is not None and tokens["temperature"] == self.config.temperature:
                known = zip(rollout.logprobs, rollout.hidden, strict=True)
                for key, row in zip(_contents(rollout), known, strict=True):
                    self._drawn[key] = tuple(x[: len(key[1])] for x in row)
        while len(self._drawn) > self.config.batch_size:
            self._drawn.pop(next(iter(self._drawn)))
        self._drawn_from = self._weights_version()
        return responses

    def _weights_version(self) -> int:
        # grows with each change of a weight in place
        return sum(parameter._version for parameter in self._policy().parameters())

    def _recall(self, rollout: Rollout) -> Rollout:
        """Restore what `generate` knew of these tokens, if it drew them all from these weights."""
        known = [self._drawn.get(key) for key in _contents(rollout)]
        stale = self._drawn_from != self._weights_version() or any(x is None for x in known)
        self._drawn.clear()
        if self._all_sum(torch.tensor(float(stale), device=self.current_device)):
            return rollout
        logprobs, hidden = (pad_sequence(x, batch_first=True) for x in zip(*known, strict=True))
        return rollout._replace(logprobs=logprobs, hidden=hidden)

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Train on one batch of sampled responses, and return statistics under TRL 0.11.4's keys.

        Queries and responses are token ids of shape (length,), as `generate` returns them, scores
        one number each. Of a response the tokens with a 1 in `response_masks` are trained on, by
        default all.
        """
        queries, responses, scores, response_masks = self._step_safety_checker(
            self.config.batch_size, queries, responses, scores, response_masks
        )
        checks.check_token_ids(queries, responses, self._policy())
        self._begin_in_folder()
        rollout = self._recall(self._collate(queries, responses, response_masks))
        return self._step(rollout, torch.stack(scores), self._classic_quirks())

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, list],
        rewards: Sequence[Tensor],
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Log what `step` returned to the run folder and to trackers.

        `stats` gets mean and deviation of the raw scores `rewards`; the `columns_to_log` of `batch`
        are written with the samples.
        """
        missing = [name for name in columns_to_log if name not in {*batch, "query", "response"}]
        if missing:
            raise RecipeError(
                f"`columns_to_log` names {missing[0]!r}, which `batch` does not hold. It holds "
                f"{', '.join(batch)}."
            )
        self._begin_in_folder()
        scores = torch.stack([torch.as_tensor(r).float().reshape(()) for r in rewards]).tolist()
        stats |= score_stats(scores, {}, self.current_device, self._all_sum)
        self.state.global_step += 1
        self.state.episode += self.config.global_batch_size
        samples = {name: [""] * len(scores) for name in ("query", "response")}
        samples |= {name: list(batch[name]) for name in columns_to_log if name in batch}
        self.log(self._record(stats, samples | {"score": scores}, columns_to_log))

    def _begin_in_folder(self, by_hand: bool = True) -> None:
        if self.state.global_step > 0:
            return
        if by_hand and self.args.saves and self.args.resume_from_checkpoint:
            raise RecipeError(
                "`resume_from_checkpoint` is for `train`: a hand-written loop goes on with the "
                "model that `save_pretrained` wrote. Leave it out."
            )
        begin_run(self.args)

    # Saving

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **hub: Any
    ) -> str | None:
        """Save policy, value head, tokenizer and a model card; `hub` is for `push_to_hub`."""
        self.save_model(str(save_directory), _internal_call=push_to_hub)
        self.create_model_card(save_directory)
        if push_to_hub:
            repo_id = hub.pop("repo_id", Path(save_directory).name)
            return self.push_to_hub(repo_id, **hub)
        return None

    def push_to_hub(
        self,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        dataset_name: str | None = None,
        **upload: Any,
    ) -> str | None:
        """Upload what `save_pretrained` writes to the hub, and return the commit's address.

        `dataset_name` goes to the model card, `upload` to `HfApi.upload_folder` (`commit_message`,
        `revision`, `create_pr`).
        """
        with TemporaryDirectory() as folder:
            self.save_model(folder, _internal_call=True)
            self.create_model_card(folder, dataset_name=dataset_name)
            if self.accelerator.is_main_process:
                return upload_model(self.args, folder, repo_id, token, private, **upload)
        return None

    def evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what transformers' trainers do here: PPO has no loss of held-out texts."""
        advice = "Let `trl_recipes.evaluation.compare` or recipes/compare.py judge its answers"
        raise RecipeError(f"`evaluate` is no method of {type(self).__name__}. {advice}.")

    def create_model_card(
        self, path: str | Path, model_name: str = "TRL Model", dataset_name: str | None = None
    ) -> None:
        """Write a README.md for the model's page on the hub."""
        if self.accelerator.is_main_process:
            kind = type(self.value_head_model).__name__
            tags = "tags: [trl_recipes, ppo]" + f"\ndatasets: [{dataset_name}]" * bool(dataset_name)
            Path(path).mkdir(parents=True, exist_ok=True)
            (Path(path) / "README.md").write_text(
                f"---\nlibrary_name: transformers\n{tags}\n---\n\n# {model_name}"
                f"\n\nTrained by PPO. `trl_recipes.{kind}` reads it with its value head.\n"
            )

    def _check_classic(self, ref_model: nn.Module | None, num_shared_layers: int | None) -> None:
        """Warn where TRL 0.11 warned, and refuse what `step` would ignore."""
        if self.dataset is None:
            text = "No dataset was given: set `batch_size` to the number of samples of each `step`."
            warnings.warn(text, stacklevel=3)
        if ref_model is not None and num_shared_layers is not None:
            text = "`num_shared_layers` means nothing with a reference model: no layer is shared."
            warnings.warn(text, stacklevel=3)
        name = type(self).__name__
        for method in filter(self._overrides, NOT_CALLED):
            raise RecipeError(
                f"{name} overrides `{method}`, which `step` does not call. Override "
                "`compute_rewards`, `_kl_penalty`, `compute_advantages` or `loss`."
            )
        of_kl = any(map(self._overrides, ("compute_rewards", "_kl_penalty")))
        if of_kl and self.config.kl_penalty == "full":
            raise RecipeError(
                f"{name} overrides how the KL becomes rewards, but with `kl_penalty='full'` it "
                "comes ready from each forward pass. Choose another one."
            )
        if self.training_data_collator is not None:
            rows = self._padded([torch.arange(1, 4), torch.tensor([4])])
            if rows["input_ids"][rows["attention_mask"].bool()].tolist() != [1, 2, 3, 4]:
                raise RecipeError(
                    "`training_data_collator` changes the tokens that it pads, which `step` does "
                    "not do. Change them before `step`."
                )

    def _collate(self, queries, responses, response_masks=None) -> Rollout:
        """Pad the batch; a decoder's start token, if it is there, moves out of the responses."""
        masks = response_masks
        if self.is_encoder_decoder:
            start = decoder_start_token_id(self._policy().config)
            first = [int(response[0] == start) for response in responses]
            for row, response in enumerate(responses):
                if len(response) == first[row]:
                    raise RecipeError(
                        f"`responses[{row}]` holds the decoder's start token ({start}) alone. Pass "
                        "what `generate` returned."
                    )
            responses = [response[n:] for response, n in zip(responses, first, strict=True)]
            masks = masks and [mask[n:] for mask, n in zip(masks, first, strict=True)]
        rollout = collate(queries, responses, masks, self.tokenizer.pad_token_id)
        rollout = Rollout(*(field.to(self.current_device) for field in rollout[:5]))
        skips_first = self.is_encoder_decoder and masks is None and self._classic_quirks()
        return without_first_token(rollout) if skips_first else rollout

    def _classic_quirks(self) -> bool:
        # of a hand-written loop, which by default computes what TRL 0.11.4 computed
        return self.config.trl_0_11_quirks is not False

    def _with_start_token(self, responses: list[Tensor]) -> list[Tensor]:
        start = decoder_start_token_id(self._policy().config)
        return [nn.functional.pad(response, (1, 0), value=start) for response in responses]


class _TooFew:
    """The loader of a data set that is smaller than a batch: empty, and an error to go through."""

    def __init__(self, rows: int, batch_size: int):
        self.rows, self.batch_size = rows, batch_size

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator:
        raise checks.too_few_prompts(self.rows, self.batch_size)


def loader_of(loaders: list, dataset: Any, batch_size: int) -> Any:
    """Return the loader of a data set, if there is one, or what says that it is too small."""
    if loaders and len(dataset) < batch_size:
        return _TooFew(len(dataset), batch_size)
    return loaders[0] if loaders else None


def _contents(rollout: Rollout) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    ids = (rollout.queries, rollout.query_mask, rollout.responses, rollout.response_mask)
    rows = zip(*(x.tolist() for x in ids), strict=True)
    return [(tuple(q[: sum(nq)]), tuple(r[: sum(nr)])) for q, nq, r, nr in rows]


def _without_config(given: dict[str, Any]) -> dict[str, Any]:
    """Merge a `generation_config` into the arguments, which win; leave out those that are None."""
    given = dict(given)
    if (config := given.pop("generation_config", None)) is not None:
        chosen = config.to_diff_dict() if isinstance(config, GenerationConfig) else dict(config)
        chosen.pop("transformers_version", None)
        given = {name: value for name, value in chosen.items() if name[0] != "_"} | given
    return {k: v for k, v in given.items() if v is not None or k == "eos_token_id"}


def complete_settings(
    given: dict[str, Any], defaults: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Complete the arguments of `generate`, and warn where they change the distribution.

    Returns what `generate_responses` takes, with `num_return_sequences` and maybe `max_length`.
    """
    given = _without_config(given)
    tokenizer = given.pop("tokenizer", tokenizer)
    known = {*CALLED, *vars(GenerationConfig())} - {n for n in MORE if given.get(n)}
    for name in sorted(given.keys() - known):
        raise RecipeError(
            f"`generate` has no use for `{name}`: it takes queries without padding and the fields "
            "of GenerationConfig, and returns token ids. `trainer.model.generate` is transformers'."
        )
    settings = {"do_sample": True, "num_return_sequences": 1} | defaults | given
    if "max_new_tokens" in given:
        settings.pop("max_length", None)
    if settings["eos_token_id"] == -1:  # the classic way to say: never stop
        settings["eos_token_id"] = None
    if strings := settings.pop("stop_strings", None):
        stops = StopStringCriteria(tokenizer, strings)
        settings["stopping_criteria"] = [*settings.get("stopping_criteria", ()), stops]
    bent = {}
    for name, value in list(settings.items()):
        least = name in NEUTRAL and name.startswith("min_") and value <= 0
        if least or (name in NEUTRAL and value == NEUTRAL[name]):
            settings.pop(name)
        elif name not in HARMLESS and value is not False:
            bent[name] = value
    if not settings["do_sample"]:
        bent["do_sample"], settings["temperature"] = False, defaults["temperature"]
    temperature = settings["temperature"]
    if temperature <= 0:
        raise RecipeError(
            f"`temperature` is {temperature}: it must be greater than 0. For the most likely token "
            "each time give `do_sample=False`."
        )
    alone = settings["num_return_sequences"] != 1 or "stopping_criteria" in settings
    if alone and settings.get("num_beams", 1) > 1:
        raise RecipeError(
            "`num_beams` goes with neither `num_return_sequences` nor `stopping_criteria` or "
            "`stop_strings`: a beam cannot end alone. Choose one."
        )
    if bent:
        warnings.warn(
            f"generate was given {bent}: responses are not drawn from the policy itself, so their "
            "KL can turn negative. Fine for looking, wrong for training.",
            stacklevel=3,
        )
    if temperature != defaults["temperature"]:
        warnings.warn(
            f"generate was given temperature {temperature}, but log-probabilities use the config's "
            f"{defaults['temperature']}. Set `temperature` there.",
            stacklevel=3,
        )
    return settings


def without_first_token(rollout: Rollout) -> Rollout:
    """Leave the first token out of the loss, as TRL 0.11.4 did with an encoder-decoder's."""
    only = rollout.response_mask.sum(1) == 1
    loss_mask = rollout.loss_mask.clone()
    loss_mask[:, 0] = only
    return rollout._replace(loss_mask=loss_mask)

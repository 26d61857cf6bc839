"""Sampling responses from a language model, batched, and loading what a run saved."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from trl_recipes.models.checks import check_complete, check_language_model, check_vocabulary
from trl_recipes.models.forward import unwrap_adapter
from trl_recipes.models.loading import loading, resolve
from trl_recipes.models.padding import pad_rows
from trl_recipes.models.sampling import can_sample, evaluating, sample_responses


class RowLengths(StoppingCriteria):
    """Ends each row of a batch at a length of its own.

    Args:
        start: columns that stand before the first sampled token.
        lengths: most tokens to sample, (B,).
    """

    def __init__(self, start: int, lengths: Tensor):
        self.start = start
        self.lengths = lengths

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        """Say which rows are done, (B,).

        Args:
            input_ids: prompts and what was sampled so far, (B, columns).
            scores: transformers', not used.
            **kwargs: transformers', not used.
        """
        return (input_ids.shape[1] - self.start) >= self.lengths


@torch.no_grad()
def generate_responses(
    model: nn.Module,
    queries: Sequence[Tensor],
    *,
    pad_token_id: int,
    eos_token_id: int | list[int] | None,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    do_sample: bool = True,
    batch_size: int | None = None,
    **generation_kwargs,
) -> list[Tensor]:
    """Continue each query, sampling from the model's whole distribution unless told otherwise.

    The model's own generation settings (top-k, repetition penalty, forced tokens ...) are set
    aside: a log-probability is only that of the sampled token when nothing bends the distribution.

    Args:
        model: transformers causal or encoder-decoder model, or the PEFT model around one.
        queries: token ids, each of shape (query length,).
        pad_token_id: fills the gaps; attention masks hide it.
        eos_token_id: ends a response; None never ends one early.
        max_new_tokens: most tokens a response has: one number, or one for each query.
        temperature: of the sampling distribution.
        do_sample: False takes the most likely token each time.
        batch_size: queries generated together; None takes all.
        **generation_kwargs: further fields of `transformers.GenerationConfig`.

    Returns:
        Responses on the model's device, each of shape (response length,): the sampled tokens alone,
        the ending one included, without query, padding or a decoder's start token.
    """
    device = next(model.parameters()).device
    limits = [max_new_tokens] * len(queries) if isinstance(max_new_tokens, int) else max_new_tokens
    tokens = {"pad_token_id": pad_token_id, "eos_token_id": eos_token_id}
    if do_sample and not generation_kwargs and can_sample(model):

        def sample(chunk: list[Tensor], lengths: Sequence[int]) -> list[Tensor]:
            chosen = {"max_new_tokens": lengths, "temperature": temperature}
            return sample_responses(model, chunk, **tokens, **chosen).rows()

    else:
        settings = GenerationConfig(do_sample=do_sample, **tokens)
        if do_sample:
            settings.update(temperature=temperature, top_k=0, top_p=1.0)
        settings.update(**generation_kwargs)

        def sample(chunk: list[Tensor], lengths: Sequence[int]) -> list[Tensor]:
            return _generate(model, chunk, torch.tensor(lengths, device=device), settings)

    responses: list[Tensor] = []
    size = batch_size or len(queries)
    for start in range(0, len(queries), size):
        chunk = [query.to(device) for query in queries[start : start + size]]
        responses += sample(chunk, limits[start : start + size])
    return responses


def _generate(model, queries, lengths, settings: GenerationConfig) -> list[Tensor]:
    """Let transformers generate one padded batch, with these settings in place of the model's."""
    language_model = unwrap_adapter(model)
    encoder_decoder, own = (
        language_model.config.is_encoder_decoder,
        language_model.generation_config,
    )
    side = "right" if encoder_decoder else "left"
    ids, mask = pad_rows(queries, settings.pad_token_id, side)
    before = 1 if encoder_decoder else ids.shape[1]
    settings.max_new_tokens = int(lengths.max())
    language_model.generation_config = GenerationConfig(
        decoder_start_token_id=own.decoder_start_token_id, bos_token_id=own.bos_token_id
    )
    try:
        with evaluating(language_model):
            output = language_model.generate(
                ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([RowLengths(before, lengths)]),
            )
    finally:
        language_model.generation_config = own
    sampled = output[:, before:]
    ends = _ends(sampled, lengths, settings.eos_token_id)
    return [row[:end] for row, end in zip(sampled, ends.tolist(), strict=True)]


def _ends(sampled: Tensor, lengths: Tensor, eos_token_id) -> Tensor:
    """Length of each response: up to its own limit, or to the first end token before it, (B,)."""
    lengths = lengths.clamp(max=sampled.shape[1])
    if eos_token_id is None:
        return lengths
    stops = torch.isin(sampled, torch.as_tensor(eos_token_id, device=sampled.device))
    first = torch.where(stops.any(1), stops.float().argmax(1) + 1, sampled.shape[1])
    return torch.minimum(lengths, first)


def load_tokenizer(
    name: str | Path, *, trust_remote_code: bool = False, source: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name: run folder, model folder or hub name.
        trust_remote_code: whether code that it brings along may run.
        source: where the name came from, for messages; --model_name_or_path when None.

    Raises:
        RecipeError: there is no such model, or no tokenizer with it.
    """
    name = resolve(str(name), "model", source=source)
    with loading(name, "model", part="tokenizer", source=source):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_run(
    path: str | Path, *, source: str | None = None, **kwargs
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load what a run saved, or any model, as a plain transformers model in eval mode.

    Args:
        path: a run folder (its `model/` is taken), a model folder, or a hub name.
        source: where the path came from, for messages; --model_name_or_path when None.
        **kwargs: passed to `from_pretrained` of the model; `trust_remote_code` counts for its
            tokenizer too.

    Returns:
        The model, its adapter included where it has one, and its tokenizer.

    Raises:
        RecipeError: there is no such model, it is no language model, or its tokenizer is another's.
    """
    name = resolve(str(path), "model", source=source)
    trusted = {"trust_remote_code": kwargs.pop("trust_remote_code", False)}
    tokenizer = load_tokenizer(name, source=source, **trusted)
    with loading(name, "model", source=source):
        adapter = (Path(name) / "adapter_config.json").is_file()
        base = PeftConfig.from_pretrained(name).base_model_name_or_path if adapter else name
        base = resolve(base, "model", source=f"the base model of `{name}`") if adapter else name
        config = AutoConfig.from_pretrained(base, **trusted)
        check_language_model(config, base)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        settings = {"dtype": "float32", "use_safetensors": True} | trusted | kwargs
        model, info = auto.from_pretrained(base, output_loading_info=True, **settings)
        check_complete(info, base)
        if adapter:
            model = PeftModel.from_pretrained(model, name)
    check_vocabulary(tokenizer, model)
    return model.eval(), tokenizer

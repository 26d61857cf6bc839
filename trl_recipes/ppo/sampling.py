"""Generation arguments of the classic walkthrough in today's form."""

import logging

from transformers import PreTrainedTokenizerBase

from trl_recipes.ppo.config import PPOConfig

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


def generation_settings(given: dict, config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Complete what a caller of `generate` gave, and warn once about sampling that is bent.

    The neutral arguments of the classic walkthrough (`min_length=-1, top_k=0.0, top_p=1.0,
    eos_token_id=-1`) are understood in silence.

    Args:
        given: fields of `transformers.GenerationConfig`.
        config: gives temperature, response length and stop token where the caller did not.
        tokenizer: gives the ids of pad and end token.
    """
    settings = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id if config.stop_token else None,
        "max_new_tokens": config.response_length,
        "temperature": config.temperature,
        **given,
    }
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
    if settings["temperature"] != config.temperature:
        _warn(
            f"generate was given temperature {settings['temperature']}, but log-probabilities use "
            f"the config's {config.temperature}. Set `temperature` there."
        )
    return settings


def _warn(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)

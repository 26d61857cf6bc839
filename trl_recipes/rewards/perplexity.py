"""How well a language model foresees a text, as a reward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from trl_recipes.models.forward import context_length
from trl_recipes.models.padding import pad_rows
from trl_recipes.models.sampling import evaluating
from trl_recipes.rewards.scorer import batches_by_length, load_language_model
from trl_recipes.rewards.text import full_texts


class PerplexityReward:
    """Minus the perplexity of prompt plus completion under a causal language model.

    The perplexity is exp of the model's own loss on the text alone: minus the mean log-probability
    of its tokens after the first. A text of one token is read after the model's begin token.

    Alone it invites one dull sentence said again and again: add a `RepetitionPenalty`.

    Args:
        model: None for the embedded language model; a folder or hub name; or a ready model, which
            stays where it is. It should not be the model in training, or it judges itself.
        tokenizer: of a ready model; loaded by the model's name when None.
        log: minus the logarithm instead, which is minus the loss, in nats a token: it does not let
            a few odd texts outweigh all others.
        batch_size: texts in one forward pass.
        name: the name in logs; `perplexity` or `log_perplexity` when None.
        trust_remote_code: run the code that comes with the model.

    Raises:
        RecipeError: there is no such model, or it is an encoder-decoder.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        log: bool = False,
        batch_size: int = 32,
        name: str | None = None,
        trust_remote_code: bool = False,
    ):
        self.model, self.tokenizer = load_language_model(
            model, tokenizer, "PerplexityReward", trust_remote_code=trust_remote_code
        )
        self.log = log
        self.batch_size = batch_size
        self.__name__ = name or ("log_perplexity" if log else "perplexity")

    @torch.inference_mode()
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any
    ) -> list[float | None]:
        """Score each prompt plus completion.

        Args:
            prompts: B texts or conversations.
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B values: at most -1 (at most 0 with `log`); None for an empty text. Tokens beyond the
            model's context are left out.
        """
        rows = [self._token_ids(text) for text in full_texts(prompts, completions)]
        values: list[float | None] = [None] * len(rows)
        with evaluating(self.model):
            for batch in batches_by_length(rows, self.batch_size):
                scored = [index for index in batch if len(rows[index]) > 1]
                losses = self._losses([rows[index] for index in scored]) if scored else []
                for index, loss in zip(scored, losses, strict=True):
                    values[index] = -(loss if self.log else torch.tensor(loss).exp().item())
        return values

    def _token_ids(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) == 1 and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        return torch.tensor(ids[: context_length(self.model.config)], dtype=torch.long)

    def _losses(self, rows: list[torch.Tensor]) -> list[float]:
        """The model's loss on each row, in nats a token."""
        ids, mask = pad_rows(rows, 0, side="right")
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        nll = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        counts = mask[:, 1:].sum(1)
        return ((nll * mask[:, 1:]).sum(1) / counts).tolist()

"""Best-of-n sampling: the responses that a score prefers, without any training."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from trl_recipes.errors import RecipeError


class BestOfNSampler:
    """Samples `sample_size` responses to each query and keeps the `n_candidates` best.

    TRL 0.11's class. `queries_to_scores` is called once a query with the decoded texts, query
    included, and returns one number each; `length_sampler` draws the most new tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], Sequence[float]],
        length_sampler: Callable[[], int],
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ):
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise RecipeError(f"`tokenizer` must be a tokenizer, got {type(tokenizer).__name__}.")
        if not hasattr(model, "generate"):
            raise RecipeError(f"`model` must be able to generate, got {type(model).__name__}.")
        if not 0 < n_candidates <= sample_size:
            raise RecipeError(
                f"`n_candidates` ({n_candidates}) must lie between 1 and `sample_size` "
                f"({sample_size})."
            )
        if seed is not None:
            set_seed(seed)
        self.model, self.tokenizer = model, tokenizer
        self.queries_to_scores, self.length_sampler = queries_to_scores, length_sampler
        self.sample_size, self.n_candidates = sample_size, n_candidates
        self.gen_config = generation_config

    def generate(
        self,
        tokenized_query: list[int] | Tensor | list[Tensor] | list[list[int]],
        skip_special_tokens: bool = True,
        device: str | torch.device | None = None,
        **generation_kwargs,
    ) -> list[list[str]]:
        """Texts of the best responses to each query, best first."""
        single = isinstance(tokenized_query[0], int) or (
            isinstance(tokenized_query, Tensor) and tokenized_query.dim() == 1
        )
        best = []
        for query in [tokenized_query] if single else tokenized_query:
            queries = torch.as_tensor(query, device=device).reshape(1, -1)
            generated = self.model.generate(
                queries.repeat(self.sample_size, 1),
                attention_mask=torch.ones_like(queries).repeat(self.sample_size, 1),
                max_new_tokens=self.length_sampler(),
                generation_config=self.gen_config,
                **generation_kwargs,
            )
            texts = self.tokenizer.batch_decode(generated, skip_special_tokens=skip_special_tokens)
            scores = torch.as_tensor(self.queries_to_scores(texts), dtype=torch.float32)
            best.append([texts[i] for i in scores.topk(self.n_candidates).indices])
        return best

"""Whether short sequences may stand in one line of a batch, in the place of padding."""

import inspect

import torch
from torch import Tensor, nn

from trl_recipes.models.forward import response_logits, unwrap_adapter
from trl_recipes.models.sampling import evaluating


def can_share_lines(model: nn.Module) -> bool:
    """Whether a model keeps sequences apart that stand in one line, by their positions alone.

    transformers lets attention end where `position_ids` start anew, for the models whose masks it
    makes itself. The model is asked, not a list of names: changing the first sequence of a line
    must not change a bit of the second, and each must come out as it does alone.

    Args:
        model: transformers language model, or the PEFT model around one.
    """
    language_model = unwrap_adapter(model)
    config = language_model.config
    accepted = inspect.signature(language_model.forward).parameters
    if config.is_encoder_decoder or "position_ids" not in accepted:
        return False
    device = language_model.get_input_embeddings().weight.device
    ids = torch.arange(27, device=device).view(3, 9) % (config.vocab_size - 1)
    # 4, 4 and 8 tokens, without each last: the first two share a line
    queries, responses = ids[:, :3], ids[:, 3:]
    response_mask = torch.ones_like(responses)
    response_mask[:2, 2:] = 0

    def logits(share_lines: bool) -> Tensor:
        rows = (queries, torch.ones_like(queries), responses, response_mask)
        return response_logits(model, *rows, share_lines=share_lines)[0]

    with torch.no_grad(), evaluating(language_model):
        alone, shared = logits(False), logits(True)
        queries = torch.cat([queries[:1] + 1, queries[1:]])
        changed = logits(True)
    tolerance = (1e-3 if language_model.dtype == torch.float32 else 0.1) * alone.std()
    close = (shared - alone).abs().max() <= tolerance
    return bool(close) and changed[2:].equal(shared[2:]) and not changed[:2].equal(shared[:2])

"""ActorCritic: one trunk, two heads, for causal and encoder-decoder models alike."""

import torch
from torch import Tensor, nn

from trl_recipes.models.forward import response_logits


class ActorCritic(nn.Module):
    """A language model and a value head that share one run of the trunk.

    Args:
        policy: transformers model with a language-model head, or the PEFT model around it.
        value_head: maps hidden states (B, R, H) to (B, R, 1); kept in float32.

    Attributes:
        pack: whether short sequences stand in one line; set where the policy was found fit.
    """

    def __init__(self, policy: nn.Module, value_head: nn.Module):
        super().__init__()
        self.policy = policy
        self.value_head = value_head
        self.config = policy.config
        self.pack = False

    def forward(
        self, queries: Tensor, query_mask: Tensor, responses: Tensor, response_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of the N response tokens alone, row after row.

        Args:
            queries: token ids, (B, Q).
            query_mask: 1 at query tokens, (B, Q).
            responses: token ids, (B, R).
            response_mask: 1 at response tokens, (B, R).

        Returns:
            logits: float32, (N, V); each of the response token at its place.
            values: float32, (N,); each of the state before that token.
        """
        rows = (queries, query_mask, responses, response_mask)
        logits, hidden = response_logits(self.policy, *rows, pack=self.pack)
        return logits, self.values_of(hidden)

    def values_of(self, hidden: Tensor) -> Tensor:
        """Values of the states that the trunk's last hidden states (..., H) stand for, (...).

        Args:
            hidden: of any number of states, H wide.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, also those that are plain numbers (BART, layer drop).

    Dropout makes the probability ratio differ from 1 before the first update. Unlike `eval()`, this
    leaves train mode on, which gradient checkpointing needs.

    Args:
        model: changed in place, its configuration too.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)

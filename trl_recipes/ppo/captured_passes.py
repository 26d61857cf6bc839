"""Passes of an update as CUDA graphs: a GPU ends small ones before Python has launched them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trl_recipes.models.cuda_graphs import captured
from trl_recipes.ppo.rollout import Rollout, Targets

COLUMNS = 8  # batches are padded to multiples of this many, so that few shapes come up
READ = 5  # fields of a rollout that a pass reads: its ids and masks

Run = Callable[..., tuple]


class CapturedPasses:
    """Forward and backward passes over rows of a batch, one graph for each shape.

    `run` is the trainer's pass over rows; with `padded` it asks nothing of the device.
    `most_tokens` is the largest pass.
    """

    def __init__(self, run: Run, model: nn.Module, most_tokens: int):
        self.run, self.model, self.most_tokens = run, model, most_tokens
        self.written_in: list = []
        self.passes: dict[tuple[int, ...], _Pass] = {}
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []

    def load(
        self, rollout: Rollout, targets: Targets, size: int, *settings: float
    ) -> "_Pass | None":
        """Take a batch, and give what runs passes over `size` of its rows; None: not worth it.

        Weights that were replaced, frozen or thawed, and other `settings`, start new graphs.
        """
        weights = [(p.data_ptr(), p.requires_grad) for p in self.model.parameters()]
        if self.written_in != [weights, settings]:
            self.written_in, self.passes, self.gradients = [weights, settings], {}, []
        widths = rollout.queries.shape[1], rollout.responses.shape[1]
        shape = (len(rollout.queries), size, *(-(-width // COLUMNS) * COLUMNS for width in widths))
        if size * sum(shape[2:]) > self.most_tokens:
            return None
        if shape not in self.passes:
            self.passes[shape] = _Pass(self, *shape)
        found = self.passes[shape]
        found.load(rollout, targets)
        return None if found.refused else found

    def put_gradients_back(self) -> None:
        """Let passes add to the same tensors after each optimizer step, which has let them go."""
        gone = [(p, gradient) for p, gradient in self.gradients if p.grad is not gradient]
        for parameter, gradient in gone:
            gradient.zero_() if parameter.grad is None else gradient.copy_(parameter.grad)
            parameter.grad = gradient


class _Pass:
    """Passes of one shape: run as they are at first, then captured, then replayed."""

    def __init__(self, owner: CapturedPasses, batch: int, size: int, query: int, response: int):
        device = next(owner.model.parameters()).device
        self.owner, self.replay, self.refused = owner, None, False
        widths = (query, query, response, response, response)
        ids = [torch.zeros(batch, n, dtype=torch.long, device=device) for n in widths]
        self.rollout = Rollout(*ids)
        self.targets = Targets(*torch.zeros(len(Targets._fields), batch, response, device=device))
        self.rows = torch.zeros(size, dtype=torch.long, device=device)
        self.token_count = torch.ones((), device=device)
        self.results: tuple[Tensor, ...] = ()

    def load(self, rollout: Rollout, targets: Targets) -> None:
        """Copy a batch to where the passes read it, with masked columns at its right."""
        places = (*self.rollout[:READ], *self.targets)
        for place, field in zip(places, (*rollout[:READ], *targets), strict=True):
            padding = (0, place.shape[1] - field.shape[1])
            place.copy_(F.pad(field, padding), non_blocking=True)

    def __call__(self, rows: Tensor, token_count: Tensor) -> tuple[Tensor, ...]:
        """Add the gradients of these rows, (N,); return sums over tokens, and their ratios."""
        self.rows.copy_(rows)
        self.token_count.copy_(token_count)
        self.owner.put_gradients_back()
        if not self.results:
            self.results = self._run()
            parameters = self.owner.model.parameters()
            self.owner.gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        else:
            if _on_gpu(rows) and not (self.replay or self.refused):
                self.replay = captured(self._step, rows.device, "updates of this model")
                self.refused = self.replay is None
            (self.replay or self._step)()
        return tuple(result.clone() for result in self.results)

    def _run(self) -> tuple[Tensor, ...]:
        rows = Rollout(*(field[self.rows] for field in self.rollout[:READ]))
        old = Targets(*(target[self.rows] for target in self.targets))
        return self.owner.run(rows, old, self.token_count, padded=True)[:2]

    def _step(self) -> None:
        for place, result in zip(self.results, self._run(), strict=True):
            place.copy_(result)


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda

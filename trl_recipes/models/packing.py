"""Batches of sequences of different lengths: padded, grouped by length, packed."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Tensor], pad_token_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Stack B sequences, padded on the "left" or "right": ids and mask of tokens, (B, longest).

    The mask comes from the lengths, so padding may use any token id.
    """
    device = rows[0].device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    columns = torch.arange(int(lengths.max()), device=device)
    first = lengths.max() - lengths if side == "left" else torch.zeros_like(lengths)
    mask = (columns >= first[:, None]) & (columns < (first + lengths)[:, None])
    ids = torch.full(mask.shape, pad_token_id, dtype=torch.long, device=device)
    ids[mask] = torch.cat([row.to(device) for row in rows]).long()
    return ids, mask.long()


def token_places(mask: Tensor, device: torch.device) -> Tensor:
    """Number the places where a mask is 1, (N,); with one on the host nothing waits for a GPU."""
    places = mask.flatten().nonzero()[:, 0]
    return places.to(device, non_blocking=True)


def tokens_of(ids: Tensor, mask: Tensor) -> Tensor:
    """Give the token ids (B, R) where a mask is 1, row after row, (N,)."""
    return ids.flatten()[token_places(mask, ids.device)]


def unpack(values: Tensor, mask: Tensor) -> Tensor:
    """Put one value per token (N,), row after row, where the mask (B, R) is 1; gaps hold 0."""
    places = token_places(mask, values.device)
    return values.new_zeros(mask.numel()).index_copy(0, places, values).view(mask.shape)


def length_groups(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Split rows into groups that are padded apart, so that short ones do not pay for long ones.

    Of all ways to cut the rows in order of length, the cheapest: each group costs its rows times
    its longest, and `pass_cost` tokens for one more pass. The longest group comes first.
    """
    ladder = sorted(set(lengths))
    rows_up_to = {length: sum(other <= length for other in lengths) for length in ladder}
    # cheapest way to cover the rows up to each length, and the length at which its last group ends
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    rows_up_to[0] = 0
    for length in ladder:
        best[length] = min(
            (cost + (rows_up_to[length] - rows_up_to[below]) * length + pass_cost, below)
            for below, (cost, _) in best.items()
        )
    groups, top = [], ladder[-1]
    while top:
        below = best[top][1]
        groups.append([row for row, length in enumerate(lengths) if below < length <= top])
        top = below
    return groups


def bin_pack(lengths: Sequence[int]) -> list[list[int]]:
    """Pack rows into few lines of the longest's length: first fit, falling order (Johnson 1973)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    lines: list[list[int]] = []
    left: list[int] = []  # tokens that still fit each line
    for row in order:
        line = next((i for i, room in enumerate(left) if room >= lengths[row]), len(lines))
        if line == len(lines):
            lines.append([])
            left.append(lengths[order[0]])
        lines[line].append(row)
        left[line] -= lengths[row]
    return lines


def packed_starts(lines: list[list[int]], lengths: Tensor, width: int) -> Tensor:
    """Give the place where each row begins when lines of a width follow one another, (B, 1)."""
    rows = [row for line in lines for row in line]
    taken = lengths[rows].cumsum(0) - lengths[rows]  # before each, over all lines
    counts = torch.tensor([len(line) for line in lines])
    firsts = (counts.cumsum(0) - counts).to(lengths.device)
    line_of = torch.arange(len(lines)).repeat_interleave(counts).to(lengths.device)
    starts = torch.empty_like(lengths)
    starts[rows] = line_of * width + taken - taken[firsts][line_of]
    return starts[:, None]

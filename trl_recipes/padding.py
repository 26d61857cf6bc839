"""Stacking sequences of different lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Tensor], pad_token_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Stack sequences; the mask comes from their lengths, so padding may use any token id.

    Args:
        rows: token ids, each of shape (length,).
        pad_token_id: fills the gaps.
        side: "left" or "right", where the gaps are.

    Returns:
        ids and mask (1 at tokens, 0 in gaps), both int64 of shape (len(rows), longest).
    """
    device = rows[0].device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    columns = torch.arange(int(lengths.max()), device=device)
    first = lengths.max() - lengths if side == "left" else torch.zeros_like(lengths)
    mask = (columns >= first[:, None]) & (columns < (first + lengths)[:, None])
    ids = torch.full(mask.shape, pad_token_id, dtype=torch.long, device=device)
    ids[mask] = torch.cat([row.to(device) for row in rows]).long()
    return ids, mask.long()

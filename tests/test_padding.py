"""Padding: rows and masks, and the cheapest way to cut rows by length."""

import itertools

import pytest
import torch

from trl_recipes.models.packing import bin_pack, length_groups, pad_rows, unpack


def test_masks_come_from_lengths_though_padding_is_a_token():
    rows = [torch.tensor([5, 9]), torch.tensor([9])]
    for side, ids in (("left", [[5, 9], [9, 9]]), ("right", [[5, 9], [9, 9]])):
        stacked, mask = pad_rows(rows, 9, side)
        assert stacked.tolist() == ids
        assert mask.tolist() == [[1, 1], [0, 1] if side == "left" else [1, 0]]


def test_unpack_puts_tokens_back_and_lets_the_gradient_through():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    values = torch.arange(1.0, 7.0, requires_grad=True)
    rows = unpack(values, mask)
    assert rows.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    (rows * torch.arange(9.0).view(3, 3)).sum().backward()
    assert values.grad.tolist() == [0, 1, 3, 6, 7, 8]


def cost(groups, lengths, pass_cost):
    return sum(len(g) * max(lengths[row] for row in g) + pass_cost for g in groups)


def cheapest(lengths, pass_cost):
    """Every way to cut the sorted rows, tried."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best = float("inf")
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        groups, group = [], [order[0]]
        for row, cut in zip(order[1:], cuts, strict=True):
            if cut:
                groups, group = [*groups, group], []
            group.append(row)
        best = min(best, cost([*groups, group], lengths, pass_cost))
    return best


@pytest.mark.parametrize("pass_cost", [0, 3, 10, 100])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_is_cheaper(seed, pass_cost):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (9,), generator=generator).tolist()
    groups = length_groups(lengths, pass_cost)
    assert sorted(itertools.chain(*groups)) == list(range(9))
    assert cost(groups, lengths, pass_cost) == cheapest(lengths, pass_cost)


def test_equal_rows_stay_together_and_the_longest_group_comes_first():
    assert length_groups([7] * 5, 0) == [[0, 1, 2, 3, 4]]
    assert length_groups([2, 50, 2, 49], 5) == [[1, 3], [0, 2]]


@pytest.mark.parametrize("seed", range(20))
def test_lines_hold_every_row_once_and_are_near_the_fewest(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (16,), generator=generator).tolist()
    lines = bin_pack(lengths)
    assert sorted(itertools.chain(*lines)) == list(range(16))
    sums = [sum(lengths[row] for row in line) for line in lines]
    assert max(sums) == max(lengths)
    fewest = -(-sum(lengths) // max(lengths))  # no packing needs less room than its tokens
    assert len(lines) <= 11 / 9 * fewest + 1


def test_rows_of_one_length_have_a_line_each():
    assert bin_pack([5, 5, 5]) == [[0], [1], [2]]
    assert bin_pack([3, 9, 6, 1]) == [[1], [2, 0], [3]]

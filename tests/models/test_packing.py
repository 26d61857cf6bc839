"""Padding, length groups and packing: the cheapest layout, and never another result."""

import itertools

import pytest
import torch
from architectures import ARCHITECTURES, UNUSUAL, VOCAB, gpt2
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny_grpo import tiny

from trl_recipes.models.forward import (
    bin_pack,
    can_pack,
    length_groups,
    pad_rows,
    response_logits,
    unpack,
)

MODELS = ARCHITECTURES | UNUSUAL
FIT = {"gpt2", "llama", "qwen2", "gpt_neox", "gemma2"}


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


def batch(seed=0):
    """Sequences of 4 to 20 tokens: 8 of them, which lines of the longest hold in fewer."""
    generator = torch.Generator().manual_seed(seed)

    def rows(lengths):
        ids = [torch.randint(2, VOCAB, (length,), generator=generator) for length in lengths]
        return pad_rows(ids, 0, "right")

    return *rows([3, 1, 6, 2, 1, 4, 5, 2]), *rows([5, 2, 14, 1, 3, 9, 7, 1])


@pytest.mark.parametrize("name", sorted(FIT))
@torch.no_grad()
def test_a_shared_line_changes_no_logits(name):
    model = tiny(name).eval()
    sizes = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    alone, shared = (response_logits(model, *batch(), pack=share) for share in (False, True))
    assert sizes[0] == (8, 19)
    assert sizes[1] == (4, 19)  # 58 tokens
    for shared_values, values in zip(shared, alone, strict=True):
        torch.testing.assert_close(shared_values, values, rtol=0, atol=5e-5)


def test_a_shared_line_changes_no_gradient():
    gradients = []
    for pack in (False, True):
        model = tiny().eval()
        logits, _ = response_logits(model, *batch(), pack=pack)
        logits.log_softmax(-1)[:, 5].mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for shared, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_itself_says_whether_it_is_fit(name, dtype):
    model = tiny(name).to(dtype).train()
    assert can_pack(model) == (name in FIT)
    assert model.training


def test_both_attentions_and_an_adapter_are_fit_and_a_prefix_that_all_tokens_read_is_not():
    for attention in ("eager", "sdpa"):
        assert can_pack(gpt2(attn_implementation=attention))
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    assert can_pack(get_peft_model(gpt2(), lora))
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert not can_pack(get_peft_model(gpt2(), prefix))


def test_a_model_without_masks_of_its_own_is_unfit():
    """One whose attention reads over the border, though it takes positions."""

    class Careless(type(gpt2())):
        def forward(self, input_ids=None, position_ids=None, attention_mask=None, **kwargs):
            given = {"input_ids": input_ids, "position_ids": position_ids} | kwargs
            return super().forward(attention_mask=torch.ones_like(input_ids), **given)

    assert not can_pack(Careless(gpt2().config))

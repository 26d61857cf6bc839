"""Sequences in one line come out as they do alone, or the model is found unfit."""

import pytest
import torch
from architectures import ARCHITECTURES, UNUSUAL, VOCAB, gpt2
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from trl_recipes.models.forward import can_pack, response_logits
from trl_recipes.models.packing import pad_rows

MODELS = ARCHITECTURES | UNUSUAL
FIT = {"gpt2", "llama", "qwen2", "gpt_neox", "gemma2"}


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
    torch.manual_seed(0)
    model = MODELS[name]().eval()
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
        torch.manual_seed(0)
        model = gpt2().eval()
        logits, _ = response_logits(model, *batch(), pack=pack)
        logits.log_softmax(-1)[:, 5].mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for shared, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_itself_says_whether_it_is_fit(name, dtype):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).train()
    assert can_pack(model) == (name in FIT)
    assert model.training


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_kinds_of_attention_are_fit(attention):
    torch.manual_seed(0)
    assert can_pack(gpt2(attn_implementation=attention))


def test_an_adapter_is_fit_and_a_prefix_that_all_tokens_read_is_not():
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    assert can_pack(get_peft_model(gpt2(), lora))
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert not can_pack(get_peft_model(gpt2(), prefix))


def test_a_model_without_masks_of_its_own_is_unfit():
    """One whose attention reads over the border, though it takes positions."""

    class Careless(type(gpt2())):
        def forward(self, input_ids=None, position_ids=None, attention_mask=None, **kwargs):
            mask = torch.ones_like(input_ids)
            return super().forward(
                input_ids=input_ids, position_ids=position_ids, attention_mask=mask, **kwargs
            )

    torch.manual_seed(0)
    model = Careless(gpt2().config)
    assert not can_pack(model)

"""A head of an odd vocabulary, multiplied with rows of zeros, against the plain product."""

import pytest
import torch
import torch.nn.functional as F

from trl_recipes.models.forward import _AlignedHead


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_gradients_are_those_of_the_plain_product(dtype, frozen):
    torch.manual_seed(0)
    hidden, upstream = torch.randn(1, 5, 16, requires_grad=True), torch.randn(1, 5, 13)
    weight = torch.randn(13, 16, requires_grad=not frozen)
    given = [hidden] if frozen else [hidden, weight]
    aligned = _AlignedHead.apply(hidden, weight, dtype)
    plain = F.linear(hidden.to(dtype), weight.to(dtype))
    assert aligned.equal(plain)
    gradients = [torch.autograd.grad((x.float() * upstream).sum(), given) for x in (aligned, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert one.dtype == torch.float32

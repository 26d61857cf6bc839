"""Weights that are laid out anew give the products of the plain ones, and leave these alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from trl_recipes.models import sampling as packing
from trl_recipes.models.forward import _AlignedHead
from trl_recipes.models.sampling import packed_weights


@pytest.fixture
def every_layer(monkeypatch):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch comes without oneDNN")
    monkeypatch.setattr(packing, "SMALLEST", 1)


packs = pytest.mark.usefixtures("every_layer")


def layers():
    torch.manual_seed(0)
    conv = Conv1D(40, 24)
    nn.init.normal_(conv.bias)
    bare = nn.Linear(24, 40, bias=False)
    return {"linear": nn.Linear(24, 40), "without bias": bare, "GPT-2's": conv}


def exact(layer, inputs):
    weight = layer.weight.double() if isinstance(layer, Conv1D) else layer.weight.double().t()
    bias = 0 if layer.bias is None else layer.bias.double()
    return inputs.double() @ weight + bias


@packs
@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("shape", [(1, 24), (16, 24), (3, 5, 24)])
@torch.no_grad()
def test_packed_weights_give_the_same_product(name, shape):
    layer, inputs = layers()[name], torch.randn(shape)
    with packed_weights(layer):
        assert "forward" in vars(layer)
        product = layer(inputs)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), exact(layer, inputs), rtol=1e-5, atol=1e-5)


@packs
@pytest.mark.parametrize("name", layers())
@torch.no_grad()
def test_autocast_packs_in_its_precision(name):
    layer, inputs = layers()[name], torch.randn(4, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = layer(inputs)
        with packed_weights(layer):
            packed = layer(inputs)
    assert packed.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(packed, plain, rtol=2**-7, atol=2**-7)


@packs
@torch.no_grad()
def test_after_the_block_a_layer_sees_its_new_weights():
    layer, inputs = nn.Linear(24, 40), torch.randn(2, 24)
    with pytest.raises(KeyError), packed_weights(layer):
        raise KeyError
    assert "forward" not in vars(layer)
    layer.weight.zero_()
    assert layer(inputs).equal(layer.bias.expand(2, 40))


@packs
def test_layers_that_are_not_plain_or_small_and_large_models_stay_as_they_are(monkeypatch):
    class Quantized(nn.Linear):
        pass

    changed = nn.Linear(24, 40)
    changed.forward = lambda inputs: inputs
    own = changed.forward
    model = nn.Sequential(Quantized(24, 40), nn.Linear(24, 40).half(), changed, nn.LayerNorm(24))
    with packed_weights(model):
        assert ["forward" in vars(layer) for layer in model] == [False, False, True, False]
    assert changed.forward is own
    layer = nn.Linear(24, 40)
    for name, value in (("SMALLEST", 24 * 40 + 1), ("MOST", 24 * 40 - 1)):
        with monkeypatch.context() as patched:
            patched.setattr(packing, name, value)
            with packed_weights(layer):
                assert "forward" not in vars(layer)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_an_odd_vocabulary_and_gradients_are_those_of_the_plain_product(dtype, frozen):
    torch.manual_seed(0)
    hidden, upstream = torch.randn(1, 5, 16, requires_grad=True), torch.randn(1, 5, 13)
    weight = torch.randn(13, 16, requires_grad=not frozen)
    given = [hidden] if frozen else [hidden, weight]
    # padded with rows of zeros, for speed
    aligned = _AlignedHead.apply(hidden, weight, dtype)
    plain = F.linear(hidden.to(dtype), weight.to(dtype))
    assert aligned.equal(plain)
    gradients = [torch.autograd.grad((x.float() * upstream).sum(), given) for x in (aligned, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert one.dtype == torch.float32

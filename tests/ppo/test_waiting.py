"""The epochs never wait for a GPU, but where transformers asks whether a mask is all ones."""

import traceback

import pytest
import torch
from test_trainer import build, rollout_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trl_recipes.ppo.trainer import PPOTrainer

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}


class OnDevice(TorchDispatchMode):
    """Follows what is computed from some tensors, as if these lay on a GPU; notes who asks it."""

    def __init__(self, tensors):
        self.theirs = {id(tensor): tensor for tensor in tensors}  # kept, so that no id comes again
        self.asked = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        output = func(*args, **(kwargs or {}))
        if any(id(x) in self.theirs for x in given):
            masks = [x for x in given if x.dtype == torch.bool and "index" in str(func)]
            if func.overloadpacket.__name__ in WAITS or masks:
                frames = traceback.extract_stack()[:-1]
                ours = [
                    f for f in frames if "trl_recipes/" in f.filename or "/tests/" in f.filename
                ]
                direct = not any("transformers/masking_utils" in f.filename for f in frames)
                self.asked.append((str(func), ours[-1].name, direct))
            for x in tree_leaves(output):
                if isinstance(x, torch.Tensor):
                    self.theirs[id(x)] = x
        return output


@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_epochs_ask_the_device_once_at_their_end(name, pack, monkeypatch):
    trainer = build(name, mini_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=1.0)
    trainer._actor_critic().pack = pack and name == "gpt2"
    asked, optimize, tolist = [], PPOTrainer._optimize, torch.Tensor.tolist

    def watched(self, rollout, targets, quirks):
        host = {n: getattr(rollout, n).clone() for n in ("query_mask", "response_mask")}
        rollout = rollout._replace(**host)  # on a CPU one tensor with the mask of the loss
        device = [*self.model.parameters(), *targets]
        device += [rollout.queries, rollout.responses, rollout.loss_mask]
        with OnDevice(device) as mode:

            def noted(tensor):
                if id(tensor) in mode.theirs:
                    mode.asked.append(("tolist", "", True))
                return tolist(tensor)

            monkeypatch.setattr(torch.Tensor, "tolist", noted)
            result = optimize(self, rollout, targets, quirks)
        asked.extend(mode.asked)
        return result

    inputs = rollout_of(trainer)
    trainer.step(*inputs)  # the first batch is checked
    monkeypatch.setattr(PPOTrainer, "_optimize", watched)
    trainer.step(*inputs)
    assert [entry for entry in asked if entry[2]] == [("tolist", "", True)]
    assert len(asked) > 1 or name == "t5"  # transformers asks at each pass: the counting counts

"""What one process of test_memory.py runs: some steps of PPO, and one line of JSON of what is held.

python tests/models/held_memory.py '{"rank": null, "frozen": 4, ...}'
"""

import ctypes
import gc
import itertools
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from architectures import ppo_trainer

from trl_recipes.models.adapters import kept_by

STEPS = 2


def status(field):
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def most_allocated(run):
    """Most bytes that torch holds at a time beyond what it held before `run`, by its own count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def main(shape, plan):
    torch.manual_seed(0)
    config = GPT2Config(**shape, bos_token_id=0, eos_token_id=0, n_positions=128)
    dtype = torch.float32 if plan["frozen"] == 4 else torch.bfloat16
    model = GPT2LMHeadModel(config).to(dtype)
    weights = size_of(model.parameters())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most that was held is forgotten
    before = status("VmRSS")
    adapter = LoraConfig(r=plan["rank"], target_modules=["c_attn"], task_type="CAUSAL_LM")

    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    query = [[1] * plan["query"]] * 64
    chosen = {"batch_size": plan["batch"], "mini_batch_size": plan["micro_batch"]}
    chosen |= {"gradient_accumulation_steps": plan["batch"] // plan["micro_batch"]}
    chosen |= {"response_length": plan["response"], "min_response_length": None, "ppo_epochs": 1}
    chosen |= {"stop_token": None, "max_steps": STEPS, "use_cpu": True}
    chosen |= {"activation_checkpointing": plan["checkpointing"]}
    more = {"peft_config": adapter if plan["rank"] else None}
    trainer = ppo_trainer(model, length, query, more=more, **chosen)
    gradients = []

    def note(*_):
        held = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        gradients.append(size_of(held))

    trainer.optimizer.optimizer.register_step_pre_hook(note)
    trainer.train()
    peak = status("VmHWM") - before + weights
    states = trainer.optimizer.state_dict()["state"].values()
    moments = [tensor for state in states for tensor in state.values() if tensor.dim()]
    reference = [] if trainer.ref_model is None else list(trainer.ref_model.parameters())
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    kept = kept_by(trainer._actor_critic(), trainer.ref_model)
    held = {
        "weights": size_of(trainer.model.parameters()),
        "gradients": gradients[-1],
        "moments": size_of(moments),
        "reference": size_of(reference),
        "trained": sum(p.numel() for p in trained),
        "kept": kept._asdict(),
        "process": peak,
        "allocated": size_of([*trainer.model.parameters(), *reference, *moments])
        + most_allocated(lambda: trainer._train_on(*trainer._collect(trainer._next_batch()))),
    }
    print(json.dumps(held))


if __name__ == "__main__":
    main(*(json.loads(word) for word in sys.argv[1:]))

"""Imported first in a process on a CPU: accelerate then does what it does on a GPU, over gloo.

On a CPU accelerate passes over FSDP and DeepSpeed without a word.
"""

import os

from accelerate import DistributedType, PartialState

if os.environ.keys() & {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}:
    os.environ["ACCELERATE_USE_CPU"] = "false"
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

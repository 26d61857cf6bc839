"""Two processes under accelerate launch, over gloo, as tests start them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ACCELERATE = Path(sys.executable).with_name("accelerate")
CONFIG = ROOT / "recipes" / "accelerate" / "two_cpu_processes.yaml"
LAUNCH = [ACCELERATE, "launch", "--config_file", CONFIG]  # as the README has it
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PLAIN = "launch --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
PLAIN += " --main_process_port 0"
FSDP = "--use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false"
FSDP += " --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"
WAYS = {
    "whole": "--multi_gpu",
    "sharded": FSDP,
    "FSDP": f"{FSDP} --fsdp_state_dict_type FULL_STATE_DICT",
    "ZeRO-2": "--use_deepspeed --zero_stage 2",
    "ZeRO-3": "--use_deepspeed --zero_stage 3 --zero3_save_16bit_model true",
}


def launch(script, *words, way=None, timeout=300, **environment):
    """What a script in two processes wrote to stderr; both must end well."""
    command = LAUNCH if way is None else [ACCELERATE, *PLAIN.split(), *WAYS[way].split()]
    done = subprocess.run(
        [*command, script, *words],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr

"""recipes/accelerate/*.yaml: what Accelerate's own launcher makes of each, and of each line."""

from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from launching import launcher_and_environment, parsed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
BF16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}
FSDP2 |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
FSDP2 |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
ZERO2 = ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO3 = ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}
ZERO3 |= {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
CPUS = {"ACCELERATE_MIXED_PRECISION": "no", "CUDA_VISIBLE_DEVICES": "-1,-1", "OMP_NUM_THREADS": "4"}
# File: processes, launcher, and what the environment of a process says.
PROMISED = {
    "one_gpu": (1, "simple", BF16 | {"ACCELERATE_USE_CPU": "False"}),
    "several_gpus": (8, "multi", BF16),
    "fsdp2": (8, "multi", BF16 | FSDP2),
    "deepspeed_zero2": (8, "deepspeed", BF16 | ZERO2),
    "deepspeed_zero3": (8, "deepspeed", BF16 | ZERO3),
    "several_machines": (32, "multi", BF16),
    "two_cpu_processes": (2, "multi", CPUS),
}


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_every_file_is_promised_something_and_stands_in_the_docs():
    assert {path.stem for path in FOLDER.iterdir()} == set(PROMISED)
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert [name for name in PROMISED if f"recipes/accelerate/{name}.yaml" not in page] == []


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.usefixtures("eight_cores")
def test_accelerate_reads_each_file_and_starts_what_it_promises(name):
    path = FOLDER / f"{name}.yaml"
    processes, launcher, environment = PROMISED[name]
    load_config_from_file(str(path))  # raises where a key is unknown
    args = parsed("--config_file", path, "--main_process_ip", "10.0.0.1", "--machine_rank", "3")
    found, given = launcher_and_environment(args)
    assert found == launcher
    assert args.num_processes == processes
    assert {key: given.get(key) for key in environment} == environment
    if name == "several_machines":
        assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("4", "8", 3)
        assert args.rdzv_endpoint == "10.0.0.1:29500"


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.usefixtures("eight_cores")
def test_no_line_of_a_file_is_dead(name, tmp_path):
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    known = vars(parsed("--config_file", FOLDER / f"{name}.yaml"))

    def outcome(settings):
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(settings))
        try:
            args = parsed("--config_file", path)
        except (ValueError, TypeError) as error:
            return str(error)
        kept = (args.num_machines, args.num_processes, args.main_process_port, args.use_cpu)
        return kept, launcher_and_environment(args)

    for key, value in values.items():
        shorter = [{k: v for k, v in values.items() if k != key}]
        if isinstance(value, dict):  # a section: each of its lines
            assert value.keys() <= known.keys()
            cut = ({k: v for k, v in value.items() if k != inner} for inner in value)
            shorter = [values | {key: section} for section in cut]
        for less in shorter:
            assert outcome(less) != outcome(values), (key, less)

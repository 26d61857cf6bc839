"""PPOConfig: the settings of TRL 0.11, on transformers' TrainingArguments."""

import argparse
import json
import math
import sys
import warnings
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from transformers import TrainingArguments

from trl_recipes.errors import RecipeError
from trl_recipes.settings import TrainingSettings, divide_exactly, setting

KL_PENALTIES = ("kl", "abs", "mse", "full", "k3")

# Names of TRL 0.11 that no longer do anything, and why. Scripts may read all of them back.
WITHOUT_MEANING = {
    "steps": "TRL never read it; your loop decides, or `max_steps` for train()",
    "tracker_project_name": "trackers of `report_to` take their project from the environment",
    "tracker_kwargs": "trackers of `report_to` take their settings from the environment",
    "accelerator_kwargs": "give them to `accelerate launch`",
    "project_kwargs": "the run folder is `output_dir`",
    "push_to_hub_if_best_kwargs": "use `push_to_hub`",
    "compare_steps": "it belonged to push_to_hub_if_best_kwargs",
    "is_encoder_decoder": "the trainer reads it from the model",
    "is_peft_model": "the trainer reads it from the model",
}

# Settings of TRL 1.12's PPOConfig that are refused, and what to write in their place.
REFUSED = {
    "sft_model_path": "give the model as `model`, on the command line --model_name_or_path",
    "reward_model_path": "name the model in `reward_funcs`, on the command line --reward_funcs",
    "ds3_gather_for_generation": "PPO trains under FSDP2 (recipes/accelerate/fsdp2.yaml) in the "
    "place of DeepSpeed, and always gathers",
    "kl_estimator": "use `kl_penalty`, whose `kl` is k1",
    "ref_adapter_name": "give the reference model as `ref_model`",
    "model_adapter_name": "the active adapter is trained, so use `model.set_adapter`",
    "num_sample_generations": "`log_samples` says how many samples are written at each step",
    "micro_batch_size": "`mini_batch_size` is that of one process",
    "local_batch_size": "use `batch_size`, which is that of one process",
    "local_mini_batch_size": "use `mini_batch_size`, which is that of one process",
    "world_size": "the launcher says how many processes there are",
    "backward_batch_size": "it is mini_batch_size * gradient_accumulation_steps",
    "global_batch_size": "it is batch_size times the number of processes",
    "global_backward_batch_size": "it is backward_batch_size times the number of processes",
}

# Settings of transformers that PPO does not honor when they differ from their default.
NOT_HONORED = {
    "auto_find_batch_size": "set `mini_batch_size`",
    "data_seed": "`seed` decides the order of prompts too",
    "debug": "a gradient that is not finite is counted, and ends the run when it comes thrice",
    "enable_jit_checkpoint": "SIGTERM writes a checkpoint anyway",
    "eval_on_start": "PPO does not evaluate while it trains; judge prompts with `compare`",
    "ignore_data_skip": "a resumed run goes on with the prompts that come next",
    "include_num_input_tokens_seen": "the statistics `tokens/...` tell lengths",
    "label_smoothing_factor": "the loss is PPO's",
    "neftune_noise_alpha": "noise in the embeddings would change every probability ratio",
    "save_only_model": "a checkpoint holds all that a resume needs; use `save_model`",
    "torch_compile": "rows of changing length would be compiled again and again",
    "torch_empty_cache_steps": "use `optimize_device_cache`",
    "train_sampling_strategy": "prompts come shuffled, by `seed`",
    "use_liger_kernel": "the loss needs the logits, which its head does not keep",
}
_DEFAULTS = (None, [], False)  # what YAML and transformers make of some: "no" and ""
# Values of others that PPO, which does not evaluate, has nothing to go by for.
_NEEDS_EVALUATION = (
    ("save_strategy", "best"),
    ("lr_scheduler_type", "greedy"),
    ("lr_scheduler_type", "reduce_lr_on_plateau"),
)
_told: set[str] = set()


# Declares a name of TRL 0.11, which no help shows and no recipe takes as a flag.
_classic = partial(setting, help=argparse.SUPPRESS)


@dataclass
class _ClassicNames:
    """Fields that scripts of TRL 0.11 set and read back."""

    exp_name: str = _classic(Path(sys.argv[0]).stem)
    task_name: str | None = _classic(None)
    model_name: str = _classic("gpt2")
    query_dataset: str = _classic("stanfordnlp/imdb")
    reward_model: str = _classic("sentiment-analysis:lvwerra/distilbert-imdb")
    dataset_num_proc: int | None = _classic(None)
    steps: int = _classic(20000)
    tracker_project_name: str = _classic("trl")
    tracker_kwargs: dict | str | None = _classic(None)
    accelerator_kwargs: dict | str | None = _classic(None)
    project_kwargs: dict | str | None = _classic(None)
    push_to_hub_if_best_kwargs: dict | str | None = _classic(None)
    compare_steps: int = _classic(1)
    is_encoder_decoder: bool | None = _classic(None)
    is_peft_model: bool | None = _classic(None)
    optimize_cuda_cache: bool | None = _classic(None)

    def __post_init__(self):
        for entry in fields(_ClassicNames):
            value = getattr(self, entry.name)
            if entry.name.endswith("_kwargs"):  # JSON on a command line
                value = json.loads(value) if isinstance(value, str) else value or {}
                setattr(self, entry.name, value)
        for name, reason in WITHOUT_MEANING.items():
            if getattr(self, name) not in (getattr(_ClassicNames, name), {}) and name not in _told:
                _told.add(name)
                warnings.warn(f"`{name}` no longer means anything: {reason}.", stacklevel=4)
        super().__post_init__()

    @property
    def total_ppo_epochs(self) -> int:
        return math.ceil(self.steps / self.batch_size)

    # Samples in one optimizer step of one process, in one step of PPO of all, and in one optimizer
    # step of all.

    @property
    def backward_batch_size(self) -> int:
        return self.mini_batch_size * self.gradient_accumulation_steps

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * (self.world_size or 1)

    @property
    def global_backward_batch_size(self) -> int:
        return self.backward_batch_size * (self.world_size or 1)


@dataclass
class PPOConfig(_ClassicNames, TrainingSettings, TrainingArguments):
    """Settings of [`PPOTrainer`]: those of TRL 0.11, and every field of `TrainingArguments`.

    Where both names of one thing are given (`ppo_epochs` and `num_ppo_epochs`) they must agree;
    afterwards both hold the value. Batch sizes count samples of one process, and
    `gradient_accumulation_steps` the passes that make one optimizer step, as in TRL 0.11. Written
    the way of TRL 1.12 (`per_device_train_batch_size` without `batch_size`), it says how many
    passes make one batch, and is turned into ours.
    """

    # fields of its own are refused on the command line alone
    refused: ClassVar[dict[str, str]] = {
        "model_name": "on the command line it is --model_name_or_path",
        **WITHOUT_MEANING,
        **REFUSED,
        "trust_remote_code": "give it to `from_pretrained`, and pass the model that this loads",
    }

    # The batch: samples of one process.
    num_mini_batches: int | None = setting(
        None, "Optimizer steps per epoch over the batch (default 1, or what the sizes give)."
    )
    ppo_epochs: int | None = setting(None, "Passes over each batch (default 4).")
    num_ppo_epochs: int | None = setting(None, "TRL 1.12's name of ppo_epochs (default 4).")

    total_episodes: int | None = setting(
        None, "Responses in all (default: num_train_epochs times the data set)."
    )
    num_total_batches: int | None = setting(None, "PPO steps in all; the trainer works it out.")
    local_rollout_forward_batch_size: int | None = setting(
        None,
        "Sequences in one forward pass that needs no gradient (default 64, of small models on a "
        "GPU more).",
    )

    # The response.
    min_response_length: int | None = setting(
        4,
        "Shortest limit drawn for a response, up to response_length; none: always response_length.",
    )
    stop_token: Literal["eos"] | None = setting(
        "eos", "What ends a response: eos (any end token of the tokenizer or model), or none."
    )
    stop_token_id: int | None = setting(
        None, "Id of the token that ends a response, in place of stop_token."
    )
    missing_eos_penalty: float | None = setting(
        None, "Taken from the score of a response without an end token (default: nothing)."
    )

    # Sampling by vLLM, as in TRL's GRPOConfig; the server's settings, and those of vLLM beside us.
    use_vllm: bool = setting(False, "Let vLLM sample the responses (docs/distributed.md).")
    vllm_mode: str = setting("colocate", "vLLM in the training processes (colocate), or server.")
    vllm_model_impl: str = setting("vllm", "Whose model code vLLM runs: vllm, transformers, auto.")
    vllm_server_base_url: str | None = setting(None, "Server's address (default: host and port).")
    vllm_server_host: str = setting("0.0.0.0", "Host of the vLLM server.")
    vllm_server_port: int = setting(8000, "Port of the vLLM server.")
    vllm_server_timeout: float = setting(240.0, "Seconds to wait for the vLLM server.")
    vllm_group_port: int = setting(51216, "Port over which the vLLM server gets the weights.")
    vllm_gpu_memory_utilization: float = setting(0.3, "Fraction of each GPU's memory for vLLM.")
    vllm_max_model_length: int | None = setting(None, "vLLM's context (default: the model's).")
    vllm_tensor_parallel_size: int = setting(1, "GPUs over which vLLM spreads one model.")
    vllm_enable_sleep_mode: bool = setting(False, "Free vLLM's memory during the update.")

    # The objective.
    init_kl_coef: float | None = setting(None, "KL coefficient at the start (default 0.2).")
    kl_coef: float | None = setting(None, "TRL 1.12's name of init_kl_coef (default 0.2).")
    kl_penalty: str = setting("kl", "KL penalty per token: kl (log ratio), abs, mse, full or k3.")
    adap_kl_ctrl: bool = setting(True, "Adapt the KL coefficient so that the KL nears target.")
    target: float = setting(6.0, "KL per sequence that the adaptive controller aims at, in nats.")
    horizon: float = setting(10000.0, "Episodes over which the adaptive controller acts.")
    ratio_threshold: float = setting(
        10.0, "An optimizer step whose mean probability ratio exceeds this is skipped and counted."
    )
    early_stopping: bool = setting(False, "Leave a batch's epochs once the policy moved too far.")
    target_kl: float = setting(1.0, "early_stopping leaves at 1.5 times this, in nats per token.")
    max_grad_norm: float | None = setting(None, "Clip gradients to this norm (default: none).")

    cliprange: float = setting(0.2, "The probability ratio is clipped to 1 plus or minus this.")
    cliprange_value: float = setting(0.2, "Values are clipped to plus or minus this of the old.")
    vf_coef: float = setting(0.1, "Weight of the value loss.")
    gamma: float = setting(1.0, "Discount of rewards, per token.")
    lam: float = setting(0.95, "Lambda of the generalized advantages.")
    whiten_rewards: bool = setting(False, "Whiten the rewards of tokens.")

    # Scores.
    use_score_scaling: bool = setting(False, "Divide scores by their running standard deviation.")
    use_score_norm: bool = setting(False, "With use_score_scaling, subtract the running mean.")
    score_clip: float | None = setting(None, "Clip scores to plus or minus this (default: none).")

    trl_0_11_quirks: bool | None = setting(
        None,
        "Compute what TRL 0.11.4 computed where it was wrong: clip gradients at the first "
        "optimizer step alone, let padding into whitened rewards, leave an encoder-decoder's first "
        "token out (default: in a hand-written loop, which then gives TRL's figures; not in "
        "train()).",
    )

    # Precision, memory and what is seen.
    optimize_device_cache: bool = setting(False, "Empty the device's cache after each step.")
    # transformers' parser takes the second of these for a flag
    log_with: list[str] | str | None = setting(None, "TRL 0.11's name of report_to.")

    forward_batch_size: int | None = setting(None, "Old name of mini_batch_size.")

    # A flag of recipes alone: scripts of TRL 0.11 have one of their own.
    trust_remote_code: bool = field(
        default=False,
        init=False,
        metadata={"help": "Run code that a model from the hub brings along."},
    )

    def __post_init__(self):
        if self.optimize_cuda_cache is not None:
            self.optimize_device_cache = self.optimize_cuda_cache
        if self.log_with is not None:
            self._read_log_with()
        super().__post_init__()

    def _read_log_with(self) -> None:
        both = (self.log_with, self.report_to)
        ours, theirs = ([name] if isinstance(name, str) else [*(name or ())] for name in both)
        self.log_with, self.report_to = ours, None if theirs in ([], ["none"]) else theirs
        self._unite("log_with", "report_to")

    def _unite_names(self) -> None:
        super()._unite_names()
        self._unite("ppo_epochs", "num_ppo_epochs", default=4)
        self._unite("init_kl_coef", "kl_coef", default=0.2)

    def _check(self) -> None:
        super()._check()
        self._check_choice("kl_penalty", KL_PENALTIES)
        self._check_choice("vllm_mode", ("colocate", "server"))
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in NOT_HONORED and value not in (entry.default, *_DEFAULTS):
                raise RecipeError(
                    f"`{entry.name}` ({value!r}) is not for PPO: {NOT_HONORED[entry.name]}. Leave "
                    "it out."
                )
        for name, value in _NEEDS_EVALUATION:
            if getattr(self, name) == value:
                raise RecipeError(
                    f"`{name}` {value!r} goes by an evaluation, which PPO does not do while it "
                    "trains. Choose another one."
                )
        shortest = self.min_response_length
        if shortest is not None and not 1 <= shortest <= self.response_length:
            raise RecipeError(
                f"`min_response_length` ({shortest}) must lie between 1 and `response_length` "
                f"({self.response_length})."
            )

    def _resolve_batch(self) -> None:
        """Work out batch, optimizer step and forward pass from whichever sizes were given."""
        accumulate = self.gradient_accumulation_steps or 1
        forward_batch_size = self.forward_batch_size
        self._unite("mini_batch_size", "forward_batch_size")
        self.forward_batch_size = forward_batch_size  # an old name stays as it was given
        trl_sizes = self.batch_size is None and self.mini_batch_size is None
        self._unite("mini_batch_size", "per_device_train_batch_size")
        if trl_sizes and self.mini_batch_size is not None:
            self.batch_size = self.mini_batch_size * accumulate
            names = ("gradient_accumulation_steps", "num_mini_batches")
            accumulate = divide_exactly(accumulate, self.num_mini_batches, *names)
        if self.batch_size is None:
            self.batch_size = 128
        if self.mini_batch_size is None:
            names = ("batch_size", "gradient_accumulation_steps * num_mini_batches")
            parts = accumulate * (self.num_mini_batches or 1)
            self.mini_batch_size = divide_exactly(self.batch_size, parts, *names)
        self.gradient_accumulation_steps = accumulate
        names = ("batch_size", "mini_batch_size * gradient_accumulation_steps")
        steps = divide_exactly(self.batch_size, self.backward_batch_size, *names)
        if self.num_mini_batches not in (None, steps):
            raise RecipeError(
                f"`num_mini_batches` is {self.num_mini_batches}, but batch_size "
                f"{self.batch_size} in optimizer steps of {self.backward_batch_size} makes "
                f"{steps}. Leave one of them out (None in `dataclasses.replace`)."
            )
        self.num_mini_batches = steps
        self.per_device_train_batch_size = self.mini_batch_size

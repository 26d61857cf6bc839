"""Turn what users pass to PPOTrainer into what transformers' constructor expects."""

import math
import os
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation

from trl_recipes.checkpointing import find_checkpoint
from trl_recipes.data.prompts import check_form
from trl_recipes.diagnostics import Alarms, ppo_alarms
from trl_recipes.distributed import gather
from trl_recipes.errors import RecipeError
from trl_recipes.models import adapters, forward, loading
from trl_recipes.models.sampling import prepare_device
from trl_recipes.models.sharding import check_fsdp_loading, wrap_by_layer
from trl_recipes.ppo.captured_passes import CapturedPasses
from trl_recipes.ppo.checks import check_reference
from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.models import (
    ActorCritic,
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    create_reference_model,
)
from trl_recipes.rewards.base import rows_to_measure

# Arguments of TRL 1.12's PPOTrainer, and of older ones, that are refused, and what to do.
_REFUSED = {
    "value_model": "values come from a value head on the policy; leave it out",
    "eval_dataset": "PPO does not evaluate while it trains; judge held-out prompts with `compare`",
    "policy": "give it as `model`",
    "ref_policy": "give it as `ref_model`",
    "reward_processing_classes": "give `RewardModelReward(model, tokenizer)` in `reward_funcs`",
}


def check_launch(config: PPOConfig, dataset: Any, others: dict[str, Any]) -> None:
    """Refuse what this trainer cannot train with; raises TypeError for an unknown argument."""
    for name, value in others.items():
        if name not in _REFUSED:
            raise TypeError(f"PPOTrainer got an unexpected keyword argument '{name}'")
        if value is not None:
            raise RecipeError(f"`{name}` is TRL's, and no argument here: {_REFUSED[name]}.")
    check_form(dataset, "train_dataset")
    if not isinstance(config, PPOConfig):
        raise RecipeError(
            f"`config` must be a trl_recipes.PPOConfig, got {type(config).__module__}."
            f"{type(config).__name__}. Change the import."
        )
    if config.eval_strategy != "no":
        raise RecipeError(
            f"`eval_strategy` is {config.eval_strategy.value!r}, but {_REFUSED['eval_dataset']}."
        )
    check_fsdp_loading()
    if config.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise RecipeError(
            "PPO does not train under DeepSpeed, which takes the optimizer step within the "
            "backward pass: PPO decides afterwards whether the step would do harm (see "
            "`ratio_threshold`). FSDP2 spreads the same over the GPUs: launch with "
            "`--config_file recipes/accelerate/fsdp2.yaml`."
        )
    launched = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    version = os.environ.get("FSDP_VERSION", "1") if launched else "2"
    version = str((config.fsdp_plugin_args or {}).get("fsdp_version", version))
    if version != "2":
        raise RecipeError(
            f"PPO trains under FSDP version 2, not {version}. Launch with `fsdp_version: 2`, as "
            "in recipes/accelerate/fsdp2.yaml."
        )


def one_of(first_name: str, first: Any, second_name: str, second: Any) -> Any:
    """Return whichever of two names of one argument was given."""
    if first is not None and second is not None and first is not second:
        raise RecipeError(
            f"`{first_name}` and `{second_name}` are two names of one argument and differ. "
            "Give one."
        )
    return second if first is None else first


def pair_of(model: nn.Module, optimizer: Any, lr_scheduler: Any, optimizers: tuple) -> tuple:
    """Return optimizer and scheduler, given one by one or as transformers has them."""
    given = one_of("optimizer", optimizer, "optimizers[0]", optimizers[0])
    adapters.check_trained(model, given)
    schedule = one_of("lr_scheduler", lr_scheduler, "optimizers[1]", optimizers[1])
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise RecipeError(
            "`lr_scheduler`: ReduceLROnPlateau goes by an evaluation, which PPO does not do while "
            "it trains. Pass another one."
        )
    return adapters.with_own_schedule(given, schedule)


def model_and_tokenizer(
    model: str | Path | nn.Module | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load or wrap a model so that it has a value head, and load its tokenizer if none is given."""
    wrapped = model
    if isinstance(model, str | Path):
        wrapped = _class_for(loading.load_config(model)).from_pretrained(model)
    elif not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise RecipeError(
            f"`model` must be a name, a folder, or a language model, got {type(model).__name__}."
        )
    else:
        inner = forward.unwrap_adapter(getattr(model, "pretrained_model", model))
        loading.check_language_model(inner.config, type(inner).__name__)
        if not hasattr(model, "v_head"):
            wrapped = _class_for(model.config).from_pretrained(model)
    return wrapped, loading.fitting_tokenizer(tokenizer, model, wrapped.pretrained_model)


def _class_for(config: Any) -> type:
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLMWithValueHead
    return AutoModelForCausalLMWithValueHead


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, policy: nn.Module) -> list[int]:
    """List every token that ends a text: the tokenizer's, and those of a chat model's turns."""
    own = forward.unwrap_adapter(policy).generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return [i for i in dict.fromkeys([tokenizer.eos_token_id, *own]) if i is not None]


def stop_token_ids(
    config: PPOConfig, tokenizer: PreTrainedTokenizerBase, policy: nn.Module
) -> list[int]:
    """List every token that ends a response in this run."""
    stop = config.stop_token_id
    if stop is None:
        return eos_token_ids(tokenizer, policy) if config.stop_token else []
    size = policy.get_input_embeddings().num_embeddings
    if not 0 <= stop < size:
        raise RecipeError(
            f"`stop_token_id` is {stop}, outside the model's vocabulary of {size}. Give the id of "
            "one of its tokens."
        )
    return [stop]


def build_models(
    config: PPOConfig,
    value_head_model: nn.Module,
    ref_model: nn.Module | None,
    num_shared_layers: int | None,
    peft_config: Any,
) -> tuple[ActorCritic, nn.Module | None]:
    """Put policy and value head into one model, fit for training, beside its reference model."""
    policy = value_head_model.pretrained_model
    peft_config = adapters.select_trainable(policy, config.trainable, peft_config)
    if num_shared_layers is not None:  # before they are shared
        to_float32(policy, keep_frozen=False)
    if ref_model is None and num_shared_layers is not None:
        ref_model = create_reference_model(policy, num_shared_layers)
    elif ref_model is not None:
        if isinstance(ref_model, str | Path):
            ref_model = loading.load_language_model(ref_model, source="`ref_model`")
        ref_model = getattr(ref_model, "pretrained_model", ref_model)
        check_reference(policy, ref_model)
    if peft_config is not None:
        policy = get_peft_model(policy, peft_config)
    is_peft_model = isinstance(policy, PeftModel)
    if ref_model is None and not is_peft_model:
        ref_model = create_reference_model(policy)
    # the user's own object saves what was trained
    value_head_model.pretrained_model = policy
    value_head_model.is_peft_model = is_peft_model
    adapters.keep_base(policy)
    actor_critic = ActorCritic(value_head_model)
    if ref_model is None:
        actor_critic.start = adapters.StartModel(policy)
    spare_embedding_gradient(policy)
    for model in filter(None, (actor_critic, ref_model)):
        forward.switch_off_chance(model)
        fuse_activations(model)
    to_float32(policy, keep_frozen=is_peft_model)
    value_head_model.v_head.float()
    if config.activation_checkpointing:  # renamed in transformers 5.23
        enable = getattr(policy, "activation_checkpointing_enable", None)
        (enable or policy.gradient_checkpointing_enable)(config.gradient_checkpointing_kwargs)
        policy.enable_input_require_grads()
    if ref_model is not None:
        ref_model.requires_grad_(False).eval()
    return actor_critic.train(), ref_model


def to_float32(policy: nn.Module, keep_frozen: bool) -> None:
    """Turn trained weights into float32 master weights; without `keep_frozen` the others too."""
    for parameter in policy.parameters():
        if parameter.requires_grad or (not keep_frozen and parameter.is_floating_point()):
            parameter.data = parameter.data.float()


@contextmanager
def as_transformers_expects(
    config: PPOConfig, policy: nn.Module, dataset: Sized | None
) -> Iterator[None]:
    """Work out the number of steps, and undo what transformers' constructor should not do.

    It would create the run folder before all is checked, and switch the cache off in what is saved.
    """
    batch = config.global_batch_size
    if config.max_steps > 0:
        config.total_episodes = config.max_steps * batch
    elif config.total_episodes is None:
        config.total_episodes = int(
            config.num_train_epochs * (batch if dataset is None else len(dataset))
        )
    config.num_total_batches = max(math.ceil(config.total_episodes / batch), 1)
    config.total_episodes = config.num_total_batches * batch
    own = {"use_cache": policy.config.use_cache} if hasattr(policy.config, "use_cache") else {}
    with forward.temporarily(config, saves=False), forward.temporarily(policy.config, **own):
        yield


def pass_cost(policy: nn.Module, device_type: str) -> int:
    """Estimate what a forward and backward pass costs besides its tokens, in tokens."""
    # adding up gradients takes as long as a few dozen tokens, whatever the model's size; starting
    # the kernels takes a fixed time: more tokens, the smaller the model and the faster the device
    started = 2e8 if device_type == "cpu" else 3e11  # parameters times tokens, measured
    return round(32 + started / policy.num_parameters())


def small_pass(policy: nn.Module, device_type: str, bf16: bool) -> int:
    """Give the tokens of a pass that a GPU ends before Python has launched it; 0 on a CPU."""
    if device_type != "cuda" or PartialState().num_processes > 1:
        return 0
    tokens = (1e12 if bf16 else 3e11) / policy.num_parameters()  # measured on an H100
    return round(tokens)


def captured_passes(trainer: Any, most_tokens: int) -> CapturedPasses | None:
    """Prepare the update's passes to become CUDA graphs, where the model can be captured."""
    fits = forward.unwrap_adapter(trainer._policy())._can_compile_fullgraph  # as transformers says
    if not (most_tokens and fits) or trainer.config.activation_checkpointing:
        return None
    return CapturedPasses(trainer._pass, trainer.model, most_tokens)


def fuse_activations(model: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel instead of eight, to the same values."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def spare_embedding_gradient(model: nn.Module) -> None:
    """Add a tied embedding's few rows of gradient to the head's, without a tensor of zeros."""
    state = PartialState()  # what averages gradients takes no sparse ones, nor does a CUDA graph
    if state.num_processes > 1 or state.device.type == "cuda":
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, nn.Embedding) and embedding.weight is getattr(head, "weight", None):
        embedding.sparse = True  # the sum with the head's gradient is dense


def prepare_accelerator(accelerator: Accelerator, policy: nn.Module) -> None:
    """Refuse float16, and configure how a model is spread over the processes."""
    if accelerator.mixed_precision == "fp16":
        raise RecipeError(
            "float16 mixed precision is refused: the probability ratio needs more than it "
            "resolves. Launch with `--mixed_precision bf16`, or without."
        )
    prepare_device(accelerator.device)
    wrap_by_layer(policy, accelerator)
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.mixed_precision_policy = None


def start_vllm(trainer: Any) -> Any:
    """Start the [`VLLMSampler`] that the configuration asks for, or find its server; else None."""
    args = trainer.config
    if not args.use_vllm:
        return None
    from trl_recipes.models.vllm_sampling import VLLMSampler  # imports vLLM

    names = [entry.name for entry in fields(args) if entry.name.startswith("vllm_")]
    settings = {name.removeprefix("vllm_"): getattr(args, name) for name in names}
    settings["max_num_seqs"] = args.batch_size * args.vllm_tensor_parallel_size
    settings["trust_remote_code"] = args.trust_remote_code
    return VLLMSampler(trainer.policy_model, trainer.accelerator, trainer.tokenizer, **settings)


def both_can_pack(policy: nn.Module, reference: nn.Module) -> bool:
    """Whether short sequences may stand in one line of a batch, for policy and reference alike."""
    forward.check_causal(policy)
    return forward.can_pack(policy) and (reference is policy or forward.can_pack(reference))


def alarms(config: PPOConfig) -> Alarms:
    """Make the alarms that watch a run of this configuration."""
    held_to = ("batch_size", "response_length", "min_response_length")
    settings = {name: getattr(config, name) for name in held_to}
    stop_token = config.stop_token or config.stop_token_id
    steps = config.num_total_batches
    return Alarms(partial(ppo_alarms, stop_token=stop_token, steps=steps, **settings))


def measure_rewards(trainer: Any) -> None:
    """Measure rewards on samples of the start model where they are to be normalized, once."""
    rewards, args = trainer.rewards, trainer.args
    ready = all(getattr(func, "ready", True) for func in rewards.reward_funcs)
    wanted = ready and rewards.wants_reference_norm(args.reward_norm)
    if not wanted or rewards.normalization or find_checkpoint(args):
        return
    batch = trainer.prompts[rows_to_measure(len(trainer.prompts), args.seed, trainer.accelerator)]
    _, responses = trainer.generate(
        [torch.as_tensor(ids, device=trainer.current_device) for ids in batch["input_ids"]],
        trainer._length_sampler(),
        batch_size=trainer.config.batch_size,
        return_prompt=False,
        generate_ref_response=True,
    )
    texts = trainer.tokenizer.batch_decode(responses, skip_special_tokens=True)
    _, raw = trainer._score([row.tolist() for row in responses], texts, batch)
    rewards.measure({name: gather(values) for name, values in raw.items()}, normalize=True)

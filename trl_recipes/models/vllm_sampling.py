"""Sampling by vLLM, through TRL's class for it, for PPO, GRPO and RLOO."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

from trl_recipes.checkpointing import random_states, set_random_states
from trl_recipes.distributed import gather
from trl_recipes.errors import RecipeError
from trl_recipes.models.hub import is_gguf


class VLLMSampler(VLLMGeneration):
    """TRL's class, that a CPU can use too, and that leaves base weights and random states alone."""

    def _init_vllm(self) -> None:
        """Start vLLM, or find its server; a RecipeError says why it cannot."""
        reason = None
        if self.model.config.is_encoder_decoder:
            reason = "vLLM samples from causal models, and this one is an encoder-decoder"
        elif self.mode == "server" and self.accelerator.device.type == "cpu":
            reason = "a server gets the weights from GPU to GPU, and there is none: use colocate"
        elif self.mode == "colocate" and not self.model.name_or_path:
            reason = "vLLM loads the model by its name, and it has none: save it, and load it again"
        elif self.mode == "colocate" and is_gguf(Path(self.model.name_or_path)):
            reason = "vLLM would keep the GGUF file's quantization: give the model as a folder"
        if reason is not None:
            raise RecipeError(f"`use_vllm`: {reason}.")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # no trainer sends telemetry
        randomness = random_states()  # vLLM seeds every generator of this process
        try:
            super()._init_vllm()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise RecipeError(f"`use_vllm`: vLLM did not start. {error}") from error
        set_random_states(randomness)

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        """Give the policy's weights under vLLM's names, an adapter merged into them."""
        adapted = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        base = [p for m in adapted for p in m.get_base_layer().parameters(recurse=False)]
        before = [parameter.detach().clone() for parameter in base]
        yield from super()._iter_named_params()
        for parameter, value in zip(base, before, strict=True):
            parameter.data.copy_(value)  # merging and unmerging leaves rounding

    def sync_weights(self) -> None:
        """Give the policy's weights to vLLM.

        On a CPU vLLM packs weights, so that they have to be loaded together; it forgets to pack a
        head anew that is tied to the embedding.
        """
        if self.mode != "colocate" or self.accelerator.device.type != "cpu":
            super().sync_weights()
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        weights = {"weights_iterator": self._iter_named_params()}
        self.llm.collective_rpc("reload_weights", kwargs=weights)
        model = self.llm.llm_engine.model_executor.driver_worker.model_runner.model
        for module in model.modules():
            if isinstance(module, ParallelLMHead):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        self.llm.reset_prefix_cache()

    def sample(
        self, queries: Sequence[Tensor], limits: Sequence[int], *, eos_token_id, temperature, **_
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Draw a response to each query from the policy as it is now: ids and log-probabilities."""
        self.sync_weights()
        self.temperature = temperature
        self.max_completion_length = max(gather(list(limits)))  # a server samples for all processes
        self.generation_kwargs = {"ignore_eos": True, "stop_token_ids": eos_token_id or []}
        _, ids, logprobs, _ = self.generate([query.tolist() for query in queries], None, 1)
        device = queries[0].device
        rows = list(zip(ids, logprobs, limits, strict=True))  # drawn up to one limit for all
        responses = [torch.tensor(row[:limit], device=device) for row, _, limit in rows]
        # one number a token; None where vLLM has nan
        known = [[torch.nan if p is None else p for (p,) in row[:limit]] for _, row, limit in rows]
        return responses, [torch.tensor(row, device=device) for row in known]

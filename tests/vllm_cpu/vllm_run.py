"""A short run that vLLM samples: vllm_run.py KIND FOLDER [STEP SIGNAL] [resume]."""

import functools
import os
import sys

os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_HOST_IP="127.0.0.1")
import trl.generation.vllm_generation as generation

from trl_recipes import (
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    RLOOConfig,
    RLOOTrainer,
    language_model,
)
from trl_recipes.errors import RunStopped

KINDS = {
    "ppo": (PPOConfig, PPOTrainer, {"ppo_epochs": 4, "mini_batch_size": 16, "vf_coef": 1.0}),
    "grpo": (GRPOConfig, GRPOTrainer, {"num_generations": 8, "beta": 0.0}),
    "rloo": (RLOOConfig, RLOOTrainer, {"num_generations": 8, "beta": 0.0}),
}
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 2**26}
PROMPTS = ["The film", "A dull plot", "My brother", "The costumes are", "I liked", "Nobody", "It"]


def trainer_of(kind, folder=None, reward=None, model=None, prompts=PROMPTS, **settings):
    """A trainer, of the embedded model unless told otherwise, that a small vLLM samples."""
    if not isinstance(generation.LLM, functools.partial):
        generation.LLM = functools.partial(generation.LLM, **SMALL)
    config_class, trainer_class, own = KINDS[kind]
    own = own | {"batch_size": 32, "learning_rate": 1e-3, "max_steps": 6, "use_vllm": True}
    config = config_class(
        output_dir=folder,
        save_steps=2,
        disable_tqdm=True,
        report_to="none",
        **own | settings,
    )
    return trainer_class(
        args=config,
        model=model or str(language_model()),
        reward_funcs=reward or letters,
        train_dataset=[{"prompt": prompt} for prompt in prompts * 10],
    )


def letters(completions, **_):
    """How often the letter a stands in a completion."""
    return [float(text.count("a")) for text in completions]


def main(kind, folder, *words):
    words, resume = list(words), "resume" in words

    def reward(completions, trainer_state, **_):
        if len(words) > 1 and trainer_state.global_step == int(words[0]):
            os.kill(os.getpid(), int(words[1]))
        return letters(completions)

    trainer = trainer_of(kind, folder, reward, resume_from_checkpoint=resume or None)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RunStopped as stopped:
        sys.exit(stopped.exit_code)

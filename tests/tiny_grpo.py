"""Tiny models, prompts and rewards for the tests of GRPO and RLOO."""

import numpy as np
import torch
from architectures import ARCHITECTURES, OTHERS, UNUSUAL, VOCAB
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_recipes import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, load_stats

KINDS = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


def word_tokenizer(**more):
    """A tokenizer of whole words: `w5` is token 5; 0 ends a text and pads."""
    vocabulary = {"<end>": 0} | {f"w{i}": i for i in range(1, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<end>", "pad_token": "<end>"} | more
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def prompts(count=7, seed=0, **columns):
    """Prompts of one to four words, with an `id` each."""
    generator = torch.Generator().manual_seed(seed)
    texts = [
        " ".join(f"w{i}" for i in torch.randint(2, VOCAB, (1 + n % 4,), generator=generator))
        for n in range(count)
    ]
    return Dataset.from_dict({"query": texts, "id": list(range(count))} | columns)


def variety(completions, **_):
    """How many different words a response has."""
    return [float(len(set(text.split()))) for text in completions]


def noisy(completions, **_):
    """The same, with noise of the generator that users draw from."""
    return [value + float(np.random.rand()) for value in variety(completions)]


def at_call(number, what):
    """The noisy reward, which does something at one of its calls."""
    calls = iter(range(100))

    def reward(completions, **_):
        if next(calls) == number:
            what()
        return noisy(completions)

    reward.__name__ = noisy.__name__
    return reward


def tiny(name="gpt2", seed=0):
    torch.manual_seed(seed)
    return (ARCHITECTURES | UNUSUAL | OTHERS)[name]()


def build(kind="grpo", model=None, rewards=variety, data=None, tokenizer=None, more=None, **config):
    """A trainer of a tiny model; `more` goes to the trainer, the rest to its configuration."""
    config_class, trainer_class = KINDS[kind]
    settings = {"batch_size": 8, "num_generations": 4, "response_length": 6, "max_steps": 3}
    settings |= {"learning_rate": 1e-2, "disable_tqdm": True, "reward_norm": "none"} | config
    return trainer_class(
        model=tiny() if model is None else model,
        reward_funcs=rewards,
        args=config_class(**settings),
        train_dataset=prompts() if data is None else data,
        processing_class=tokenizer or word_tokenizer(),
        **(more or {}),
    )


def weights(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def assert_same_run(first, second, folders):
    """Two runs ended with the same weights, and their folders hold the same rows and samples."""
    assert same(weights(first), weights(second))
    whole, gone_on = (without_times(load_stats(folder)) for folder in folders)
    assert whole == gone_on == without_times(second.all_stats)
    assert [row["step"] for row in whole] == list(range(1, first.state.global_step + 1))
    samples = [(folder / "samples.jsonl").read_text() for folder in folders]
    assert samples[0] == samples[1]


def without_times(rows):
    timed = ("time/", "step_time")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]

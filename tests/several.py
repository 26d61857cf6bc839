"""What each process of tests/test_several_processes.py does: some trainings, one after another.

accelerate launch --config_file recipes/accelerate/two_cpu_processes.yaml tests/several.py FOLDER
"""

import asyncio
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch
from architectures import ARCHITECTURES, VOCAB, ppo_trainer
from safetensors.torch import save_file
from tiny_grpo import build, noisy, prompts, weights, without_times
from tiny_models import SENTENCES

from trl_recipes import RecipeError
from trl_recipes import distributed as processes
from trl_recipes.errors import RunStopped
from trl_recipes.rewards import Rewards
from trl_recipes.rewards.base import score_part
from trl_recipes.stats import load_stats
from trl_recipes.training.fit import PretrainConfig
from trl_recipes.training.language_model import LanguageModelSizes, train_language_model
from trl_recipes.training.reward_data import Labeled, Pairs
from trl_recipes.training.reward_model import ClassifierSizes, RewardModelConfig, train_reward_model
from trl_recipes.training.seq2seq import Seq2SeqSizes, train_pair_scorer, train_seq2seq

RANK, PROCESSES = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
GLOBAL_BATCH, STEPS = 16, 3
PROBE = torch.arange(24).view(2, 12) % VOCAB


def given_responses(step, rows):
    """Responses of one to six words for rows of the whole batch, whoever has them."""
    made = []
    for row in rows:
        draw = torch.Generator().manual_seed(1000 * step + row)
        length = int(torch.randint(1, 7, (1,), generator=draw))
        made.append(torch.randint(2, VOCAB, (length,), generator=draw).tolist())
    return made


def update(kind, folder, **settings):
    """Steps on given responses: what is logged, and what the model has become."""
    seen, steps = [], iter(range(100))

    def reward(prompts, completions, id, **_):
        seen.append([*zip(prompts, completions, id, strict=True)])
        words = [len(set(text.split())) for text in completions]
        return [count + 0.1 * number for count, number in zip(words, id, strict=True)]

    size = GLOBAL_BATCH // PROCESSES
    settings = {"mini_batch_size": 4, "max_grad_norm": 1.0} | settings
    # Adam divides by a gradient's size: where that is rounding alone, epsilon keeps it from a step
    settings |= {"batch_size": size, "max_steps": STEPS, "adam_epsilon": 1e-5}
    trainer = build(kind, rewards=reward, **settings)

    def given(prompt_ids, *_, **__):
        responses = given_responses(next(steps), range(RANK * size, RANK * size + size))
        return (responses, None) if kind == "grpo" else responses

    trainer._generate_single_turn = given
    trainer.train()
    found = weights(trainer)
    with torch.no_grad():
        found["logits"] = trainer.accelerator.unwrap_model(trainer.model)(PROBE).logits
    rows = without_times(trainer.all_stats)
    return found, {"rows": rows, "seen": seen[1:]}  # the first were made up to check the reward


def spell(completions, words, **_):
    """A reward of None for some, with a column of the data set."""
    pairs = zip(completions, words, strict=True)
    return [None if len(text) < 9 else float(len(text) + word) for text, word in pairs]


async def patient(prompts, completions, **_):
    """An asynchronous one."""
    await asyncio.sleep(0.001)
    pairs = zip(prompts, completions, strict=True)
    return [float(len(prompt) - len(text)) for prompt, text in pairs]


def counted(function, calls):
    """The same function, which notes what it was called with."""

    def noting(**arguments):
        calls.append([*zip(arguments["prompts"], arguments["completions"], strict=True)])
        return function(**arguments)  # of an asynchronous one what is awaited

    noting.__name__ = function.__name__
    return noting


def ppo(rewards, metrics=None, folder=None, columns=None, **settings):
    torch.manual_seed(0)
    model = ARCHITECTURES["gpt2"]()
    chosen = {"batch_size": GLOBAL_BATCH // PROCESSES // 2, "ppo_epochs": 1, "learning_rate": 3e-3}
    chosen |= {"response_length": 6, "save_steps": 2, "reward_norm": "none", "max_steps": STEPS}
    data = {"input_ids": torch.randint(2, VOCAB, (40, 3)).tolist()} | (columns or {})
    more = {"metrics": metrics}
    return ppo_trainer(model, rewards, data, folder, more=more, **chosen | settings)


def group(kind, rewards, metrics=None, **settings):
    more = {"metrics": metrics}
    data = prompts(9, words=list(range(9)))
    return build(kind, rewards=rewards, data=data, more=more, **settings)


def run_of(kind, rewards, path, **settings):
    """A trainer that leaves its run in a folder."""
    if kind == "ppo":
        return ppo(rewards, folder=path, **settings)
    return group(kind, rewards, output_dir=str(path), **settings)


def once(kind, folder):
    """The same run with rewards in each process and once for all: rows, and who was called."""
    told = {}
    for name, reward_once in (("each", False), ("once", True)):
        calls = {"spell": [], "patient": [], "unique": []}
        unique = lambda completions, **_: [float(len(set(text))) for text in completions]  # noqa: E731
        unique.__name__ = "unique"
        functions = [counted(f, calls[f.__name__]) for f in (spell, patient, unique)]
        settings = {"reward_once": reward_once, "reward_weights": [1.0, 0.5]}
        if kind == "ppo":
            columns = {"words": list(range(40))}
            trainer = ppo(functions[:2], metrics=functions[2:], columns=columns, **settings)
        else:
            trainer = group(kind, functions[:2], metrics=functions[2:], **settings)
        trainer.train()
        told[name] = {"rows": without_times(trainer.all_stats), "calls": calls}
    return {}, told


def failing(kind, folder, reward_once=False, fails_in=1):
    """A reward that raises in one process at the second step; what each process makes of it."""
    calls = iter(range(100))

    def picky(completions, **_):
        if next(calls) == 2 and fails_in == RANK:  # once checked, then the second step
            raise ValueError(f"out of paper in {RANK}")
        return [float(len(text)) for text in completions]

    path, told = folder / "failing", {}
    trainer = run_of(kind, picky, path, reward_once=reward_once, save_steps=50)
    try:
        trainer.train()
    except RecipeError as error:
        told["error"] = str(error)
    processes.gather([0])  # all have written
    told["checkpoints"] = sorted(p.name for p in path.glob("checkpoints/*"))
    return {}, told


def stopped(kind, folder):
    """One process is told to end at the second step; what each makes of it."""
    calls = iter(range(100))

    def until(completions, **_):
        if next(calls) == 2 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return [float(len(text)) for text in completions]

    told = {}
    try:
        long(kind, until, folder / "run").train()
    except RunStopped as stop:
        told = {"said": str(stop), "code": stop.exit_code}
    processes.gather([0])  # all have written
    told["checkpoints"] = sorted(p.name for p in (folder / "run").glob("checkpoints/*"))
    return {}, told


def long(kind, rewards, path, **settings):
    """A trainer of four steps, of as many prompts whatever the number of processes."""
    if kind != "ppo":
        settings |= {"batch_size": GLOBAL_BATCH // PROCESSES, "num_generations": 4}
    return run_of(kind, rewards, path, max_steps=4, save_steps=50, **settings)


def resumed(kind, folder):
    """A run left alone, and one that went on from its checkpoint: weights and rows of both."""
    found, told = {}, {}
    settings = {"save_steps": 2, "max_steps": 4, "learning_rate": 1e-3}
    for name in ("whole", "stopped"):
        path = folder / name
        trainer = run_of(kind, noisy, path, **settings)
        trainer.train()
        if name == "stopped":
            processes.broadcast_from_main(partial(damage, path))
            trainer = run_of(kind, noisy, path, resume_from_checkpoint="true", **settings)
            trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        found |= {f"{name}.{key}": value.clone() for key, value in model.items()}
        told[name] = without_times(load_stats(path)) if RANK == 0 else []
    return found, told


def damage(run):
    """As if the run had been killed while it wrote its last checkpoint."""
    last = max(run.glob("checkpoints/*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in last.iterdir():
        if path.suffix == ".json":
            path.unlink()


TEXTS = [f"{text} {i}" for i in range(8) for text in SENTENCES]
QUIET = {"per_device_train_batch_size": 4, "disable_tqdm": True}


def language_model(folder):
    config = PretrainConfig(output_dir=str(folder), max_steps=6, **QUIET)
    sizes = LanguageModelSizes(n_layer=1, n_head=2, n_embd=16, vocab_size=300)
    return trained(lambda: train_language_model(TEXTS, folder / "model", config, sizes=sizes))


def reward_model(data, folder):
    config = RewardModelConfig(output_dir=str(folder), max_steps=6, **QUIET)
    sizes = ClassifierSizes(num_layers=1, num_heads=2, hidden_size=16, vocab_size=300, dropout=0.1)
    return trained(lambda: train_reward_model(data, folder / "model", config, sizes=sizes))


CLASSES = Labeled(TEXTS, [i % 2 for i in range(len(TEXTS))], ("BAD", "GOOD"))
NUMBERS = Labeled(TEXTS, [float(i % 3) for i in range(len(TEXTS))], None)


def rewriter(folder):
    """An encoder-decoder from scratch, then a reward model of either kind on it."""
    pairs = [{"source": text, "target": text[::-1][:20]} for text in TEXTS]
    sizes = Seq2SeqSizes(num_layers=1, num_heads=2, hidden_size=16, vocab_size=300)

    def settings(kind, name):
        return kind(output_dir=str(folder / name), adam_beta2=0.99, max_steps=5, **QUIET)

    def pretrained():
        config = settings(PretrainConfig, "lm")
        return train_seq2seq(pairs, pairs[:4], folder / "start", config, sizes=sizes)

    scores = [{"source": t, "output": t[:9], "score": float(i % 5)} for i, t in enumerate(TEXTS)]
    chosen = [{"source": t, "chosen": t[:9], "rejected": t[3:]} for t in TEXTS]
    found, told = trained(pretrained)
    for name, rows in (("scores", scores), ("preferences", chosen)):
        args = (rows, folder / "start", folder / name, settings(RewardModelConfig, f"{name}-run"))
        model, _ = trained(partial(train_pair_scorer, *args))
        found |= {f"{name}.{key}": value for key, value in model.items()}
    return found, told


def trained(train):
    """What a training on transformers' Trainer leaves in this process's own model."""
    import transformers

    kept, ours = [], transformers.Trainer.__init__

    def init(self, *args, **kwargs):
        ours(self, *args, **kwargs)
        kept.append(self)

    transformers.Trainer.__init__ = init
    try:
        told = train()
    finally:
        transformers.Trainer.__init__ = ours
    model = kept[-1].accelerator.unwrap_model(kept[-1].model)
    return {name: value.clone() for name, value in model.state_dict().items()}, told


def conversations(folder):
    """Parts of different sizes, of messages, scored once."""
    calls = []

    def polite(prompts, completions, completion_ids, mood, **_):
        calls.append([prompts, completions, completion_ids, mood])
        lengths = [float(len(completion[0]["content"])) for completion in completions]
        return [None if m == "bad" else n for m, n in zip(mood, lengths, strict=True)]

    mine = [[0], [1, 2]][RANK]
    message = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    scores, raw = score_part(
        Rewards(polite),
        True,
        [message("user", f"question {i}") for i in mine],
        [message("assistant", "word " * i) for i in mine],
        [[i] * i for i in mine],
        {"mood": [["bad", "good", "bad"][i] for i in mine]},
    )
    return {}, {"scores": scores, "raw": raw, "calls": calls}


OVER_BOTH = {"num_generations": 16, "loss_type": "grpo", "scale_rewards": "batch"}
UPDATES = {"grpo": {}, "grpo, groups over both": OVER_BOTH, "rloo": {}}
UPDATES["grpo, batches used twice"] = {"num_iterations": 2}
ONCE = {"reward_once": True, "fails_in": 0}
CASES = {f"{kind}, once": partial(once, kind) for kind in ("ppo", "grpo", "rloo")}
for kind in ("ppo", "grpo"):
    CASES[f"{kind}, failing"] = partial(failing, kind)
    CASES[f"{kind}, failing once"] = partial(failing, kind, **ONCE)
    CASES[f"{kind}, stopped"] = partial(stopped, kind)
    CASES[f"{kind}, resumed"] = partial(resumed, kind)
CASES |= {"classes": partial(reward_model, CLASSES), "numbers": partial(reward_model, NUMBERS)}
CASES |= {"pairs": partial(reward_model, Pairs(TEXTS, TEXTS[::-1])), "rewriter": rewriter}
CASES |= {"language model": language_model, "conversations": conversations}
CASES |= {name: partial(update, name.partition(",")[0], **more) for name, more in UPDATES.items()}


def run(folder, names):
    """Run cases in this process; what they found and told goes to a folder for each."""
    for name in names:
        own = folder / name.replace(", ", "-")
        own.mkdir(parents=True, exist_ok=True)
        found, told = CASES[name](own)
        found = {key: value.detach().contiguous().clone() for key, value in found.items()}
        save_file(found, own / f"found-{RANK}.safetensors")
        (own / f"told-{RANK}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    processes.init_process()
    run(Path(sys.argv[1]), sys.argv[2:] or CASES)
    processes.let_go()

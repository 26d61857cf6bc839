"""Train the two embedded models, each in a process of its own.

A process apart leaves alone what is global in the caller's: random states, accelerate's state
(which would be stuck on the CPU) and the processes of a distributed launch. It also is quicker:
one thread for each model uses two cores better than two threads for one small model, and makes the
weights independent of the number of cores.
"""

import os
import subprocess
import sys
from pathlib import Path

MODELS = ("language_model", "sentiment_classifier")
TEXTS = 16_000  # of the training split: what there is time for
_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
_LAUNCHER_VARIABLES = ("ACCELERATE_", "FSDP_", "PMI_", "OMPI_", "MV2_")


def build(folder: Path, share: float = 1.0) -> None:
    """Train both models at once.

    Args:
        folder: where to put them, as `language_model` and `sentiment_classifier`.
        share: how much of the training text to use; less is quicker and worse.

    Raises:
        RuntimeError: a training failed; the message ends with what it printed.
    """
    folder.mkdir(parents=True)
    logs = {name: folder / f"{name}.log" for name in MODELS}
    processes = {}
    try:
        for name, log in logs.items():
            command = [sys.executable, "-m", __name__, name, str(folder / name), str(share)]
            with log.open("wb") as output:
                processes[name] = subprocess.Popen(
                    command, env=_environment(), stdout=output, stderr=subprocess.STDOUT
                )
        for name, process in processes.items():
            if process.wait() != 0:
                tail = logs[name].read_text(errors="replace")[-2000:]
                raise RuntimeError(f"building the embedded {name} failed:\n{tail}")
    finally:
        for process in processes.values():  # an error or Ctrl-C leaves none behind
            process.kill()
            process.wait()
    for log in logs.values():
        log.unlink()


def _environment() -> dict[str, str]:
    """The caller's environment without its launcher, for one thread on the CPU."""
    dropped = _LAUNCH_VARIABLES + _LAUNCHER_VARIABLES
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    package = Path(__file__).parents[2]
    paths = [str(package), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # glibc gives large blocks back and asks for them anew each step, a tenth of the time
        "MALLOC_MMAP_THRESHOLD_": "1000000000",
        "MALLOC_TRIM_THRESHOLD_": "1000000000",
    }


def train(name: str, folder: Path, share: float) -> None:
    """Train one of `MODELS` in this process; the settings were chosen by trial.

    Args:
        name: one of `MODELS`.
        folder: for model and tokenizer.
        share: how much of the training text to use; less is quicker and worse.
    """
    import torch

    from trl_recipes.embedded.corpus import write_reviews
    from trl_recipes.training.classifier import ClassifierSizes, train_classifier
    from trl_recipes.training.fit import PretrainConfig
    from trl_recipes.training.language_model import LanguageModelSizes, train_language_model

    torch.set_num_threads(1)
    rows = write_reviews()["train"]
    texts = [row["text"] for row in rows[: round(TEXTS * share)]]
    labels = [row["label"] for row in rows[: round(TEXTS * share)]]
    language_model = name == "language_model"
    config = PretrainConfig(
        output_dir=str(folder),
        learning_rate=2e-3 if language_model else 1e-3,
        per_device_train_batch_size=8 if language_model else 12,  # few texts want many small steps
        adam_beta2=0.99,
        seed=0,
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    if language_model:
        sizes = LanguageModelSizes(n_layer=2, n_head=4, n_embd=128, vocab_size=2000)
        train_language_model(texts, folder, config, sizes=sizes)
    else:
        sizes = ClassifierSizes(dropout=0.0, vocab_size=2000, fragments_per_text=1)
        train_classifier(texts, labels, folder, config, sizes=sizes)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))

"""recipes/grpo_shouting.py: its stages, with a tiny text and tiny sizes through the real recipe."""

import json
import os
import random
import signal

import pytest
import torch
from chains import assert_same_weights, contents, result_of
from launching import run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_recipes import load_stats
from trl_recipes.callbacks import LossLog
from trl_recipes.data.files import read_text
from trl_recipes.data.tokenizers import character_tokenizer
from trl_recipes.rewards import UppercaseReward
from trl_recipes.training.language_model import BaselineConfig, divide_text, encode, new_model

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 24}
WORDS = ["--prompt_length", "8", "--response_length", "16", "--eval_prompts", "32"]
WORDS += ["--baseline_steps", "120", "--max_steps", "12", "--batch_size", "32", "--beta", "0.01"]
WORDS += ["--learning_rate", "5e-3", "--num_generations", "8", "--save_steps", "3"]
WORDS += ["--use_cpu", "true", "--disable_tqdm", "true"]
WORDS += [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]


def launch(text_file, folder, *more):
    """The recipe as its command line runs it, in this process; its exit code."""
    files = ["--text_file", text_file, "--output_dir", folder]
    try:
        run_here("grpo_shouting.py", *files, *WORDS, *more)
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """Lines that are mostly soft and sometimes loud, so that loudness can be learned."""
    draw = random.Random(0)
    words = ["rain", "snow", "wind", "sun", "moon"]
    lines = [" ".join(draw.choice(words) for _ in range(4)) + "\n" for _ in range(500)]
    lines = [line.upper() if draw.random() < 0.2 else line for line in lines]
    path = tmp_path_factory.mktemp("text") / "weather.txt"
    path.write_text("".join(lines), newline="")
    return path


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "loud"
    assert launch(text_file, folder) == 0
    return folder


def test_it_learns_to_shout_on_held_out_prompts(finished):
    found = json.loads((finished / "comparison.json").read_text())
    before, after = (found["models"][name]["uppercase"] for name in ("baseline", "GRPO"))
    assert before["n"] == after["n"] == 32
    assert after["mean"] - after["half_width_95"] > before["mean"] + before["half_width_95"]
    responses = [row["response"] for row in found["models"]["GRPO"]["responses"]]
    shares = UppercaseReward()(completions=responses)
    assert sum(shares) / 32 == pytest.approx(after["mean"])


def test_every_stage_leaves_its_result(finished):
    for name in ("tokenizer", "baseline", ".", "evaluation"):
        assert result_of(finished / name) is not None
    for name in ("plots/training.png", "baseline/plots/training.png"):
        assert (finished / name).stat().st_size > 10_000
    told = result_of(finished / "evaluation")["told"]
    assert "n = 32 responses of each model" in told
    assert "GRPO: " in told
    assert "pairs of words are distinct" in told
    assert [row["step"] for row in load_stats(finished)] == list(range(1, 13))


def test_model_and_tokenizer_load_like_any_other(finished, text_file):
    text = read_text(text_file, "")
    for folder in (finished / "baseline" / "model", finished / "model"):
        tokenizer, model = (
            kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForCausalLM)
        )
        assert tokenizer.decode(tokenizer(text[:300])["input_ids"]) == text[:300]
        sizes = (model.config.num_hidden_layers, model.config.num_attention_heads)
        assert (*sizes, model.config.max_position_embeddings) == (1, 2, 24)
        assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)


def test_the_baselines_losses_fall_and_are_those_of_the_held_out_text(finished, text_file):
    rows = load_stats(finished / "baseline")
    heldout = [row["loss/heldout"] for row in rows if "loss/heldout" in row]
    train = [row["loss/train"] for row in rows if "loss/train" in row]
    assert len(heldout) == 8
    assert heldout[-1] < heldout[0]
    assert train[-1] < train[0]
    # by hand: one window after another, one character after another
    model = AutoModelForCausalLM.from_pretrained(finished / "baseline" / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "tokenizer")
    _, text = divide_text(read_text(text_file, ""), 24, "")
    windows = encode(text, tokenizer)[: len(text) // 24 * 24].view(-1, 24)[:128]
    nats = []
    with torch.no_grad():
        for window in windows:
            logprobs = model(window[None]).logits[0].log_softmax(-1)
            nats += [-float(logprobs[i - 1, window[i]]) for i in range(1, 24)]
    assert sum(nats) / len(nats) == pytest.approx(heldout[-1], abs=1e-4)


def test_again_nothing_is_done_again(finished, text_file, capfd):
    before = contents(finished)
    assert launch(text_file, finished) == 0
    assert contents(finished) == before
    out = capfd.readouterr().out
    assert "tokenizer: there, baseline: there, grpo: there, evaluation: there" in out
    assert "n = 32 responses of each model" in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--n_embd", "64"], "`{folder}/baseline` holds the baseline of other settings: "
         "n_embd was 32 and is 64."),
        (["--beta", "0.5"], "`{folder}` holds the grpo of other settings: beta was 0.01"),
        (["--eval_prompts", "16"], "holds the evaluation of other settings"),
        (["--text_file", "other.txt"], "the tokenizer of other settings: text was"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_nothing_is_lost(
    finished, text_file, flags, says, capfd, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_bytes(text_file.read_bytes().replace(b"rain", b"hail"))
    before = contents(finished)
    assert launch(text_file, finished, *flags) == 2
    assert contents(finished) == before
    assert says.format(folder=finished) in capfd.readouterr().err


def test_a_stopped_run_ends_as_one_that_was_left_alone(
    finished, text_file, tmp_path, monkeypatch, capfd
):
    folder = tmp_path / "loud"

    def stop_after(kind, method, step):
        """SIGTERM to this process, once, when training is there."""
        own = getattr(kind, method)

        def stopping(self, args, state, control, **kwargs):
            own(self, args, state, control, **kwargs)
            if state.global_step == step:
                monkeypatch.setattr(kind, method, own)
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(kind, method, stopping)

    stop_after(LossLog, "on_log", 60)
    assert launch(text_file, folder) == 143
    assert not (folder / "model").exists()
    from trl_recipes.grpo.trainer import _Steps

    stop_after(_Steps, "on_step_end", 5)
    assert launch(text_file, folder, "--resume_from_checkpoint", "true") == 143
    assert "baseline: resume" in capfd.readouterr().out
    assert (folder / "checkpoints" / "checkpoint-5").is_dir()
    assert launch(text_file, folder) == 0
    assert_same_weights(folder, finished, "baseline/model", "model")
    steps = [[row["step"] for row in load_stats(path)] for path in (folder, folder / "baseline")]
    assert steps[0] == list(range(1, 13))
    assert steps[1] == [row["step"] for row in load_stats(finished / "baseline")]


def test_a_check_writes_nothing_and_the_seed_decides_the_first_weights(text_file, tmp_path, capfd):
    assert launch(text_file, tmp_path / "loud", "--check", "true") == 0
    assert not (tmp_path / "loud").exists()
    out = capfd.readouterr().out
    assert "120 steps" in out
    assert "12 steps" in out
    tokenizer, sizes = character_tokenizer("abc"), BaselineConfig(**SIZES)
    first, same, other = (new_model(sizes, tokenizer, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)

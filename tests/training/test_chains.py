"""Recipes of several stages as users run them, with tiny models; figures are measured elsewhere."""

import functools
import json
import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch
from launching import Recipe, run_here
from safetensors.torch import load_file
from tiny_grpo import same, without_times
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl import ModelConfig

from trl_recipes import PPOConfig, load_stats
from trl_recipes.callbacks import LossLog
from trl_recipes.data.files import load_rows, read_text
from trl_recipes.data.prompts import PromptArguments
from trl_recipes.data.tokenizers import character_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.judges import mood_judges
from trl_recipes.grpo.trainer import _Steps
from trl_recipes.rewards import UppercaseReward
from trl_recipes.run_folder import RunFolder
from trl_recipes.training import seq2seq
from trl_recipes.training.language_model import BaselineConfig, divide_text, encode, new_model
from trl_recipes.training.reward_model import LearnedReward, RewardArguments, divide

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 24}
FLAGS = {
    "rlhf": """--model_name_or_path {gpt2} --dataset_name {reviews} --max_steps 4 --batch_size 8
 --eval_prompts 8 --response_length 6 --reward_context_length 32 --reward_epochs 2
 --save_steps 1""",
    "grpo_shouting": """--text_file {text} --prompt_length 8 --response_length 16
 --eval_prompts 32 --baseline_steps 120 --max_steps 12 --batch_size 32 --beta 0.01
 --learning_rate 5e-3 --num_generations 8 --save_steps 3 --use_cpu true """
    + " ".join(f"--{name} {value}" for name, value in SIZES.items()),
    "ppo_seq2seq": """--hidden_size 16 --num_layers 1 --num_heads 2 --pretrain_steps 8
 --pretrain_batch_size 8 --reward_outputs 40 --reward_steps 4 --reward_batch_size 8
 --max_steps 2 --batch_size 8 --mini_batch_size 8 --ppo_epochs 1 --response_length 8
 --eval_prompts 8""",
}
# Models that the stages leave, and what plain transformers loads them as.
MODELS = {
    "rlhf": {"reward": AutoModelForSequenceClassification, ".": AutoModelForCausalLM},
    "grpo_shouting": {"baseline": AutoModelForCausalLM, ".": AutoModelForCausalLM},
    "ppo_seq2seq": {
        "pretrained": AutoModelForSeq2SeqLM,
        "reward_model": AutoModelForSequenceClassification,
        ".": AutoModelForSeq2SeqLM,
    },
}
PICTURES = {
    "rlhf": ["plots/overoptimization_vader.png", "reward/plots/reliability.png"],
    "grpo_shouting": ["baseline/plots/training.png"],
    "ppo_seq2seq": [],
}
each = pytest.mark.parametrize("name", FLAGS)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_gpt2):
    """A model, labeled reviews, some of them twice, and lines of which a fifth is loud."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("data")
    moods = ("dull", "awful", "poor"), ("wonderful", "lovely", "great")
    mood = lambda i: draw.choice(moods[i % 2])  # noqa: E731
    texts = [f"The acting was {mood(i)} and the plot kept me awake." for i in range(140)]
    texts += [f"It is {mood(i)}, said number {i}." for i in range(60)]
    splits = ["test"] * 20 + ["train"] * 180
    rows = [{"text": t, "label": i % 2, "split": splits[i]} for i, t in enumerate(texts)]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weather = ["rain", "snow", "wind", "sun", "moon"]
    lines = [" ".join(draw.choice(weather) for _ in range(4)) + "\n" for _ in range(500)]
    lines = [line.upper() if draw.random() < 0.2 else line for line in lines]
    (folder / "weather.txt").write_text("".join(lines), newline="")
    return {"gpt2": tiny_gpt2, "reviews": folder / "reviews.jsonl", "text": folder / "weather.txt"}


@pytest.fixture(scope="module")
def words_of(files):
    """Gives the flags of a recipe."""
    return lambda name: [*FLAGS[name].format(**files).split(), "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def run(words_of):
    """Runs a recipe in this process, into a folder, and gives its exit code."""

    def run_one(name, folder, *more):
        try:
            run_here(f"{name}.py", *words_of(name), "--output_dir", folder, *more)
        except SystemExit as end:
            return end.code
        return 0

    return run_one


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """Gives the folder of a recipe that was never stopped."""

    @functools.cache
    def folder_of(name):
        folder = tmp_path_factory.mktemp(name) / "run"
        assert run(name, folder) == 0
        return folder

    return folder_of


def rows_of(folder):
    return without_times(load_stats(folder))


def result_of(folder):
    return json.loads((folder / "stage.json").read_text())["result"]


def contents(folder, pattern="*"):
    paths = (path for path in folder.rglob(pattern) if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def assert_same_weights(name, ours, theirs):
    for part in MODELS[name]:
        paths = (folder / part / "model" / "model.safetensors" for folder in (ours, theirs))
        assert same(*map(load_file, paths))


# What is true of each


@each
def test_each_stage_leaves_its_result_and_a_model_that_plain_transformers_loads(name, finished):
    folder = finished(name)
    for part, kind in MODELS[name].items():
        assert result_of(folder / part) is not None
        kind.from_pretrained(folder / part / "model")
    for picture in ["plots/training.png", *PICTURES[name]]:
        assert (folder / picture).stat().st_size > 10_000
    steps = {"rlhf": 4, "grpo_shouting": 12, "ppo_seq2seq": 2}[name]
    assert [row["step"] for row in load_stats(folder)] == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("name", "pattern", "told"),
    [
        ("rlhf", "*.safetensors", ["judge .vader.", "Reward model: held-out accuracy"]),
        (
            "grpo_shouting",
            "*",
            ["tokenizer: there, baseline: there, grpo: there, evaluation: there", "n = 32 resp"],
        ),
        (
            "ppo_seq2seq",
            "*.[sj]*[ls]",  # weights and rows
            [
                r"run/pretrained: .*; there already, with the same settings",
                r"run/reward_model: .*; there already, with the same settings",
                "rewrite_quality",
            ],
        ),
    ],
)
def test_again_nothing_is_done_again(name, pattern, told, finished, run, capfd):
    before = contents(finished(name), pattern)
    assert run(name, finished(name)) == 0
    assert contents(finished(name), pattern) == before
    out = capfd.readouterr().out
    assert [words for words in told if not re.search(words, out)] == []


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("rlhf", "--reward_epochs 1", "reward model of other settings: reward_epochs was 2"),
        ("rlhf", "--reward_share 0.4", "the reward model of other settings: data was"),
        ("rlhf", "--learning_rate 0.5", "policy of other settings: learning_rate was left out"),
        ("rlhf", "--label HAPPY", "no label 'HAPPY'. Its labels are: NEGATIVE, POSITIVE"),
        ("rlhf", "--reward_share 1", "--reward_share is 1.0. Give a fraction between 0"),
        ("rlhf", "--reward_funcs LengthPenalty", "--reward_funcs LengthPenalty: this recipe trai"),
        (
            "grpo_shouting",
            "--n_embd 64",
            "/baseline` holds the baseline of other settings: n_embd ",
        ),
        ("grpo_shouting", "--beta 0.5", "`{folder}` holds the grpo of other settings: beta was 0."),
        ("grpo_shouting", "--eval_prompts 16", "holds the evaluation of other settings"),
        ("grpo_shouting", "--text_file other.txt", "the tokenizer of other settings: text was"),
        ("ppo_seq2seq", "--pretrain_steps 9", "pretrain_steps was"),
        ("ppo_seq2seq", "--stages reward --reward_noise 0.5", "reward_noise was"),
        ("ppo_seq2seq", "--init_kl_coef 0.7", "init_kl_coef was"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(
    name, flags, says, finished, run, files, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_bytes(files["text"].read_bytes().replace(b"rain", b"hail"))
    before = contents(finished(name))
    assert run(name, finished(name), *flags.split()) == 2
    assert contents(finished(name)) == before
    assert says.format(folder=finished(name)) in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rlhf", ["The reward model: Checked", "nothing"]),
        ("grpo_shouting", ["120 steps", "12 steps"]),
        ("ppo_seq2seq", ["Checked with 8 steps", "Checked with 4 steps", "ratio 1 before"]),
    ],
)
def test_a_check_tries_every_stage_and_writes_nothing(name, told, run, tmp_path, capfd):
    assert run(name, tmp_path / "run", "--check", "true") == 0
    out = capfd.readouterr().out
    assert [words for words in told if words not in out] == []
    assert not (tmp_path / "run").exists()


# rlhf.py


def test_a_reward_model_is_trained_and_the_judge_is_logged_and_not_optimized(finished):
    folder = finished("rlhf")
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "reward" / "model")
    assert scorer.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    card = (folder / "reward" / "model" / "README.md").read_text()
    assert f"{result_of(folder / 'reward')['rows']} rows" in card
    row = rows_of(folder)[0]
    assert row["env/reward_mean"] == pytest.approx(row["rewards/reward_model/mean"], abs=1e-5)
    assert "metrics/vader/mean" in row
    assert not [key for key in row if "classifier" in key]  # it knows other reviews


def test_a_finished_chain_generates_and_its_yaml_says_the_same_as_its_flags(finished, run, capsys):
    folder, task = finished("rlhf"), ["--task", "generate", "--prompt", "The plot"]
    assert run("rlhf", folder, *task) == 0
    shown = capsys.readouterr().out
    assert shown.count("> The plot ...") == 3
    run_here("rlhf.py", "--config", folder / "config.yaml", *task)
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("moment", ["reward", pytest.param("policy", marks=pytest.mark.slow)])
def test_a_killed_chain_ends_as_one_that_was_left_alone(moment, finished, run, words_of, tmp_path):
    folder = tmp_path / "run"
    chain = Recipe("rlhf.py", *words_of("rlhf"), "--output_dir", folder)
    begun = {"reward": "reward/stage.json", "policy": "checkpoints/checkpoint-1"}[moment]
    chain.wait_until((folder / begun).exists)
    chain.send_signal(signal.SIGKILL)
    assert chain.finish().returncode == -signal.SIGKILL
    assert run("rlhf", folder) == 0
    assert rows_of(folder) == rows_of(finished("rlhf"))
    assert_same_weights("rlhf", folder, finished("rlhf"))


def test_what_the_reward_model_learns_from_is_no_prompt(files, tmp_path):
    reviews = str(files["reviews"])
    rows = load_rows(reviews)
    seen, rest = divide(rows, 0.3, seed=0)
    assert (len(seen), len(rest)) == (54, 126)
    assert sorted([*seen["text"], *rest["text"]]) == sorted(rows["text"])
    assert seen["text"][:] != rows["text"][:54]  # drawn
    config = PPOConfig(output_dir=str(tmp_path), disable_tqdm=True)
    data = PromptArguments(dataset_name=reviews)
    reward = LearnedReward(RewardArguments(reward_share=0.3), data, config, label="POSITIVE")
    assert not reward.ready
    with pytest.raises(RecipeError, match="not trained yet"):
        reward(["The film"], [" is wonderful."])
    prompts = reward.unseen(rows)
    assert not set(prompts["text"]) & set(seen["text"])
    assert len(prompts) < 126  # texts that stand twice are in neither half twice


def test_the_judges_point_where_the_reward_points():
    texts = {"prompts": ["The film"] * 2, "completions": [" is wonderful.", " is awful."]}
    for label, sign in (("POSITIVE", 1), ("negative", -1)):
        (judge,) = mood_judges(label, "reviews.jsonl")
        good, bad = judge(**texts)
        assert sign * good > 0 > sign * bad
    assert mood_judges("SPAM", "mails.jsonl") == []


# grpo_shouting.py


def test_it_learns_to_shout_on_held_out_prompts(finished):
    found = json.loads((finished("grpo_shouting") / "comparison.json").read_text())
    before, after = (found["models"][name]["uppercase"] for name in ("baseline", "GRPO"))
    assert before["n"] == after["n"] == 32
    assert after["mean"] - after["half_width_95"] > before["mean"] + before["half_width_95"]
    responses = [row["response"] for row in found["models"]["GRPO"]["responses"]]
    shares = UppercaseReward()(completions=responses)
    assert sum(shares) / 32 == pytest.approx(after["mean"])
    told = result_of(finished("grpo_shouting") / "evaluation")["told"]
    words = ("n = 32 responses of each model", "GRPO: ", "pairs of words are distinct")
    assert [part for part in words if part not in told] == []


def test_its_models_know_every_character_and_have_the_sizes_asked_for(finished, files):
    text = read_text(files["text"], "")
    for part in MODELS["grpo_shouting"]:
        folder = finished("grpo_shouting") / part / "model"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert tokenizer.decode(tokenizer(text[:300])["input_ids"]) == text[:300]
        sizes = (model.config.num_hidden_layers, model.config.num_attention_heads)
        assert (*sizes, model.config.max_position_embeddings) == (1, 2, 24)
        assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)


def test_the_baselines_losses_fall_and_are_those_of_the_held_out_text(finished, files):
    folder = finished("grpo_shouting")
    rows = load_stats(folder / "baseline")
    heldout, train = (
        [row[key] for row in rows if key in row] for key in ("loss/heldout", "loss/train")
    )
    assert len(heldout) == 8
    assert heldout[-1] < heldout[0]
    assert train[-1] < train[0]
    # by hand: one window after another, one character after another
    model = AutoModelForCausalLM.from_pretrained(folder / "baseline" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    _, text = divide_text(read_text(files["text"], ""), 24, "")
    windows = encode(text, tokenizer)[: len(text) // 24 * 24].view(-1, 24)[:128]
    nats = []
    with torch.no_grad():
        for window in windows:
            logprobs = model(window[None]).logits[0].log_softmax(-1)
            nats += [-float(logprobs[i - 1, window[i]]) for i in range(1, 24)]
    assert sum(nats) / len(nats) == pytest.approx(heldout[-1], abs=1e-4)


def test_a_stopped_chain_ends_as_one_that_was_left_alone(
    finished, run, tmp_path, monkeypatch, capfd
):
    name, folder = "grpo_shouting", tmp_path / "loud"

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
    assert run(name, folder) == 143
    assert not (folder / "model").exists()
    stop_after(_Steps, "on_step_end", 5)
    assert run(name, folder, "--resume_from_checkpoint", "true") == 143
    assert "baseline: resume" in capfd.readouterr().out
    assert (folder / "checkpoints" / "checkpoint-5").is_dir()
    assert run(name, folder) == 0
    assert_same_weights(name, folder, finished(name))
    for part in (".", "baseline"):
        steps = [[row["step"] for row in load_stats(f / part)] for f in (folder, finished(name))]
        assert steps[0] == steps[1]


def test_the_seed_decides_the_first_weights():
    tokenizer, sizes = character_tokenizer("abc"), BaselineConfig(**SIZES)
    first, again, other = (new_model(sizes, tokenizer, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ppo_seq2seq.py


def test_a_reward_model_on_a_base_of_yours_learns_more_slowly(tmp_path):
    for base, rate in ((None, 1e-3), ("a base", 5e-5)):
        config, stages = PPOConfig(output_dir=str(tmp_path / "run")), seq2seq.StageArguments()
        settings = (seq2seq.PairArguments(), stages, seq2seq.Seq2SeqSizes(), config)
        start, texts = ModelConfig(model_name_or_path=base), seq2seq.RewriteTexts([], [], [], None)
        seq2seq.plan_rewrites(RunFolder(config.output_dir), *settings, start, texts)
        assert stages.training("reward", config).learning_rate == rate


def test_learned_and_true_reward_stand_side_by_side_in_every_row(finished):
    for row in rows_of(finished("ppo_seq2seq")):
        assert row["env/reward_mean"] == pytest.approx(row["rewards/learned/mean"], abs=1e-6)
        assert 0 <= row["metrics/rewrite_quality/mean"] <= 1
        assert 0 <= row["metrics/subjects_kept/mean"] <= 1
        assert row["ppo/skipped_minibatches"] == 0


def test_stages_one_by_one_are_all_of_them_at_once(finished, run, tmp_path):
    for stage in ("pretrain", "reward", "ppo"):
        assert run("ppo_seq2seq", tmp_path / "run", "--stages", stage) == 0
    assert_same_weights("ppo_seq2seq", tmp_path / "run", finished("ppo_seq2seq"))


def test_lora_own_rewards_and_a_length_a_query(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def letters(completions, **columns):\n    return [len(set(c)) for c in completions]\n"
    )
    more = ["--use_peft", "true", "--lora_target_modules", "q", "--min_response_length", "2"]
    more += ["--reward_funcs", f"{tmp_path}/mine.py:letters"]
    assert run("ppo_seq2seq", tmp_path / "run", *more) == 0
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
    rows = rows_of(tmp_path / "run")
    assert all("rewards/letters/mean" in row for row in rows)
    assert all(row["tokens/responses_len_std"] > 0 for row in rows)  # limits from 2 to 8
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_compare_and_generate_take_the_run(finished, tmp_path, capsys):
    folder = finished("ppo_seq2seq")
    run_here("compare.py", folder, "--output_dir", tmp_path / "out", "--max_prompts", 4)
    table = capsys.readouterr().out
    assert all(name in table for name in ("learned", "rewrite_quality", "subjects_kept"))
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["n"] == 4
    assert found["models"]["reference"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    prompt = ["--prompt", "The plot was dull."]
    run_here("generate.py", "--model", folder, *prompt, "--max_new_tokens", 6)
    told = capsys.readouterr().out
    assert "the run's reward model" in told
    assert "The plot was dull." not in told  # a rewrite stands in the place of its source


def test_pairs_of_a_file_and_a_count_of_what_was_cut(run, tmp_path, caplog):
    long = {3: str(list(range(40)))}
    rows = [{"source": f"film {i} was dull {long.get(i, '')}", "target": "It was fine"}
            for i in range(30)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--dataset_name", f"{tmp_path}/pairs.jsonl", "--vocab_size", "270"]
    assert run("ppo_seq2seq", tmp_path / "run", *more, "--stages", "pretrain", "reward") == 0
    assert "1 of 27 sources are cut to 64 tokens." in caplog.text
    accuracy = result_of(tmp_path / "run" / "reward_model")["accuracy"]
    assert 0 <= accuracy <= 1  # there was nothing to score by: preferences

"""recipes/ppo_seq2seq.py as users run it, with tiny models; its figures are measured elsewhere."""

import json
from pathlib import Path

import pytest
from chains import assert_same_weights, contents, result_of, rows_of
from launching import run_here
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from trl import ModelConfig

from trl_recipes import PPOConfig
from trl_recipes.run_folder import RunFolder
from trl_recipes.training import seq2seq

TINY = """--hidden_size 16 --num_layers 1 --num_heads 2 --pretrain_steps 8 --pretrain_batch_size 8
 --reward_outputs 40 --reward_steps 4 --reward_batch_size 8 --max_steps 2 --batch_size 8
 --mini_batch_size 8 --ppo_epochs 1 --response_length 8 --eval_prompts 8 --disable_tqdm true"""

MODELS = ("model", "pretrained/model", "reward_model/model")


def run(folder, *more):
    run_here("ppo_seq2seq.py", *TINY.split(), "--output_dir", folder, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seq2seq") / "run"
    run(folder)
    return folder


def test_each_stage_leaves_a_model_that_plain_transformers_loads(finished):
    for part in (finished / "pretrained", finished):
        AutoModelForSeq2SeqLM.from_pretrained(part / "model")
    scorer = AutoModelForSequenceClassification.from_pretrained(finished / "reward_model" / "model")
    assert scorer.config.num_labels == 1
    assert (finished / "plots" / "training.png").stat().st_size > 10_000


def test_a_reward_model_on_a_base_of_yours_learns_more_slowly(tmp_path):
    for base, rate in ((None, 1e-3), ("a base", 5e-5)):
        config, stages = PPOConfig(output_dir=str(tmp_path / "run")), seq2seq.StageArguments()
        settings = (seq2seq.PairArguments(), stages, seq2seq.Seq2SeqSizes(), config)
        start, texts = ModelConfig(model_name_or_path=base), seq2seq.RewriteTexts([], [], [], None)
        seq2seq.plan_rewrites(RunFolder(config.output_dir), *settings, start, texts)
        assert stages.training("reward", config).learning_rate == rate


def test_learned_and_true_reward_stand_side_by_side_in_every_row(finished):
    rows = rows_of(finished)
    assert len(rows) == 2
    for row in rows:
        assert row["env/reward_mean"] == pytest.approx(row["rewards/learned/mean"], abs=1e-6)
        assert 0 <= row["metrics/rewrite_quality/mean"] <= 1
        assert 0 <= row["metrics/subjects_kept/mean"] <= 1
        assert row["ppo/skipped_minibatches"] == 0


def test_a_second_call_trains_nothing_and_tells_the_same(finished, capsys):
    weights = [finished / part for part in MODELS]
    before = [contents(folder) for folder in weights]
    run(finished)
    told = capsys.readouterr().out
    assert told.count("there already, with the same settings") == 2
    assert "rewrite_quality" in told
    assert [contents(folder) for folder in weights] == before
    assert len(rows_of(finished)) == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--pretrain_steps", "9"], "pretrain_steps"),
        (["--stages", "reward", "--reward_noise", "0.5"], "reward_noise"),
        (["--init_kl_coef", "0.7"], "init_kl_coef"),
    ],
)
def test_what_other_settings_left_is_never_taken(finished, more, told, capsys):
    before = contents(finished)
    with pytest.raises(SystemExit):
        run(finished, *more)
    assert f"{told} was" in capsys.readouterr().err
    assert contents(finished) == before


def test_stages_one_by_one_are_all_of_them_at_once(finished, tmp_path):
    for stage in ("pretrain", "reward", "ppo"):
        run(tmp_path / "run", "--stages", stage)
    assert_same_weights(tmp_path / "run", finished, *MODELS)


def test_a_check_leaves_nothing(tmp_path, capsys):
    run(tmp_path / "run", "--check", "true")
    told = capsys.readouterr().out
    assert "Checked with 8 steps" in told
    assert "Checked with 4 steps" in told
    assert "ratio 1 before" in told
    assert not (tmp_path / "run").exists()


def test_lora_own_rewards_and_a_length_a_query(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def letters(completions, **columns):\n    return [len(set(c)) for c in completions]\n"
    )
    more = ["--use_peft", "true", "--lora_target_modules", "q", "--min_response_length", "2"]
    run(tmp_path / "run", *more, "--reward_funcs", f"{tmp_path}/mine.py:letters")
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
    rows = rows_of(tmp_path / "run")
    assert all("rewards/letters/mean" in row for row in rows)
    assert all(row["tokens/responses_len_std"] > 0 for row in rows)  # limits from 2 to 8
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_compare_and_generate_take_the_run(finished, tmp_path, capsys):
    out = ["--output_dir", tmp_path / "out"]
    run_here("compare.py", finished, *out, "--max_prompts", 4)
    table = capsys.readouterr().out
    assert all(name in table for name in ("learned", "rewrite_quality", "subjects_kept"))
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["n"] == 4
    assert found["models"]["reference"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    prompt = ["--prompt", "The plot was dull."]
    run_here("generate.py", "--model", finished, *prompt, "--max_new_tokens", 6)
    told = capsys.readouterr().out
    assert "the run's reward model" in told
    assert "The plot was dull." not in told  # a rewrite stands in the place of its source


def test_pairs_of_a_file_and_a_count_of_what_was_cut(tmp_path, caplog):
    long = {3: str(list(range(40)))}
    rows = [{"source": f"film {i} was dull {long.get(i, '')}", "target": "It was fine"}
            for i in range(30)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--dataset_name", f"{tmp_path}/pairs.jsonl", "--vocab_size", "270"]
    run(tmp_path / "run", *more, "--stages", "pretrain", "reward")
    assert "1 of 27 sources are cut to 64 tokens." in caplog.text
    accuracy = result_of(tmp_path / "run" / "reward_model")["accuracy"]
    assert 0 <= accuracy <= 1  # there was nothing to score by: preferences


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--dataset_name", "s.jsonl", "--target_column", "new"], ["`new`", "Name one of them"]),
        (["--stages", "train"], ["'train' is no stage", "pretrain, reward, ppo"]),
        (["--stages", "ppo"], ["no finished pretrain stage", "--model_name_or_path"]),
        (["--reward_outputs", "3"], ["`reward_outputs` is 3", "20 or more"]),
        (["--pretrain_steps", "0"], ["`pretrain_steps` is 0", "1 or more"]),
        (["--pretrain_learning_rate", "-1"], ["`pretrain_learning_rate` is -1.0", "0 or more"]),
        (["--hidden_size", "15"], ["multiple of --num_heads", "Use 14"]),
        (["--vocab_size", "257"], ["--vocab_size is 257", "258 or more"]),
        (["--comparisons", "a.txt"], ["of the columns text", "source, output and score"]),
        (["--comparisons", "s.jsonl"], ["row 1", "'good'", "Give a number"]),
        (["--score_function", "mine.py:f"], ["--score_function", "`mine.py`"]),
        (["--reward_model", "./none"], ["--reward_model", "`./none`"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_each_mistake_is_one_message_and_leaves_nothing(tmp_path, monkeypatch, capsys, more, told):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a\nb\nc\n")
    Path("s.jsonl").write_text('{"source": "a", "output": "b", "score": "good"}\n' * 9)
    with pytest.raises(SystemExit) as left:
        run("out", *more)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert [word for word in told if word not in said] == []
    assert not Path("out").exists()

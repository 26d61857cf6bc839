import json
import math
import sys
from statistics import mean

import pytest
import torch
from architectures import ARCHITECTURES, gpt2
from launching import run_here
from tiny_grpo import word_tokenizer
from tiny_models import save_tiny_classifier

from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.compare import (
    Comparison,
    ModelResult,
    compare,
    mean_interval,
    response_logprobs,
)
from trl_recipes.evaluation.judges import sentiment_measures, vader_judge
from trl_recipes.report.page import write_comparison
from trl_recipes.rewards import SentimentReward

# 0.975 quantiles of Student's t from printed tables, by degrees of freedom
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}
T_TABLE |= {29: 2.045, 60: 2.000, 100: 1.984, 120: 1.980, 255: 1.969}
TEXTS = ["w1 w2", "w1 w10 w3 w8 w6 w7", "w11", "w1 w2 w3 w14"]


def model_of(name, seed):
    torch.manual_seed(seed)
    return ARCHITECTURES[name]().eval()


@pytest.fixture(scope="module")
def loaded():
    """A reference, another policy and the reference again, each with its tokenizer."""
    seeds = {"reference": 0, "policy": 1, "twin": 0}
    return {name: (model_of("gpt2", seed), word_tokenizer()) for name, seed in seeds.items()}


@pytest.fixture
def one(loaded):
    return {"reference": loaded["reference"]}


@pytest.fixture
def prompts():
    ids = word_tokenizer()(TEXTS)["input_ids"]
    columns = ("query", "input_ids", "stars")
    return [dict(zip(columns, row, strict=True)) for row in zip(TEXTS, ids, range(4), strict=True)]


def count_words(prompts, completions, **columns):
    return [float(len(set(text.split()))) for text in completions]


def alone(model, query, response):
    """Log-probabilities of one response, without padding, straight from the definition."""
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        decoder = torch.cat([start, response[:-1]])[None]
        logits = model(input_ids=query[None], decoder_input_ids=decoder).logits[0]
    else:
        logits = model(torch.cat([query, response])[None]).logits[0, len(query) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(response)), response]


def test_intervals_use_the_tabulated_t_and_are_as_by_hand():
    for df, t in T_TABLE.items():
        values = [2.0 + df] + [1.0] * df  # mean 2; squares df ** 2 + df, standard error 1
        assert mean_interval(values) == pytest.approx((2, t), rel=3e-4)
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 7, standard error sqrt(7 / 3)
    assert mean_interval([1, 2, 6]) == pytest.approx((3, 4.302653 * math.sqrt(7 / 3)), rel=1e-6)
    assert mean_interval([4.0]) == pytest.approx((4, math.nan), nan_ok=True)
    assert mean_interval([]) == pytest.approx((math.nan, math.nan), nan_ok=True)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_padding_and_batching_do_not_change_logprobs(name, batch_size):
    model, generator = model_of(name, 1), torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(2, 64, (n,), generator=generator)  # noqa: E731
    queries, responses = [draw(n) for n in (1, 7, 2, 5, 3)], [draw(n) for n in (6, 1, 9, 2, 4)]
    got = response_logprobs(model, queries, responses, batch_size)
    for query, response, logprobs in zip(queries, responses, got, strict=True):
        torch.testing.assert_close(logprobs, alone(model, query, response), atol=2e-5, rtol=1e-5)


def test_kl_and_perplexity_are_those_of_the_responses_one_by_one(loaded, prompts):
    seen = []

    def keep(prompts, completions, completion_ids, **columns):
        seen.append(completion_ids)
        return [0.0] * len(prompts)

    found = compare(loaded, prompts, {"keep": keep}, max_new_tokens=[9, 3, 6, 1]).results[1]
    kl, nll, answers = [], 0.0, seen[1]
    for row, ids in zip(prompts, answers, strict=True):
        pair = torch.tensor(row["input_ids"]), torch.tensor(ids)
        policy, reference = (loaded[name][0] for name in ("policy", "reference"))
        ours, theirs = (alone(model, *pair).sum().item() for model in (policy, reference))
        kl.append(ours - theirs)
        nll -= theirs
    assert found.kl == pytest.approx(kl, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(nll / sum(map(len, answers))), rel=1e-4)
    assert found.lengths == [len(ids) for ids in answers]
    assert all(n <= most for n, most in zip(found.lengths, [9, 3, 6, 1], strict=True))


def test_the_reference_stands_first_at_distance_zero_and_equal_models_answer_alike(loaded, prompts):
    models = {name: loaded[name] for name in ("policy", "reference", "twin")}
    settings = {"max_new_tokens": 8, "reference": "twin"}
    found, other = (
        compare(models, prompts, {"words": count_words}, seed=seed, **settings).results
        for seed in (3, 4)
    )
    assert [result.name for result in found] == ["twin", "policy", "reference"]
    assert found[0].kl == [0.0] * 4
    assert found[0].responses == found[2].responses
    assert found[0].responses != other[0].responses


def test_measures_get_what_trainers_give_and_one_that_fails_is_left_out(
    one, prompts, caplog, tmp_path
):
    def stars(prompts, completions, completion_ids, stars, trainer_state, log_metric, **columns):
        log_metric("done", trainer_state.global_step / trainer_state.max_steps)
        assert (prompts, columns.keys()) == (TEXTS, {"log_extra"})
        assert completions == word_tokenizer().batch_decode(completion_ids, True)
        return [None if number == 1 else float(number) for number in stars]

    def of_a_column(completions, answer): ...

    measures = {"unknown": of_a_column, "stars": stars}
    comparison = compare(one, prompts, measures, max_new_tokens=4)
    assert comparison.results[0].scores == {"stars": [0.0, None, 2.0, 3.0], "unknown": [None] * 4}
    assert comparison.results[0].to_dict()["stars"]["mean"] == pytest.approx(5 / 3)
    assert "(n 3)" in comparison.table()
    assert (
        "`unknown` of `reference` is not measured: Reward function `of_a_column` wants `answer`"
        in caplog.text
    )
    write_comparison(comparison, tmp_path)
    assert "- (n 0)" in (tmp_path / "compare.html").read_text()


def test_a_measure_that_is_called_as_a_figure_leaves_it_alone(one, prompts):
    found = compare(one, prompts, {"length": count_words}, max_new_tokens=8).results[0]
    told = found.to_dict()
    assert [row["length"] for row in told["responses"]] == found.lengths
    assert told["length (reward)"]["mean"] == pytest.approx(mean(found.scores["length (reward)"]))


def test_what_cannot_be_compared_is_refused(one, prompts):
    larger = word_tokenizer()
    larger.add_tokens(["more"])
    pair, measures = one | {"other": (gpt2(), larger)}, {"words": count_words}
    for compared, rows, by, start, message in (
        (pair, prompts, measures, "reference", "'other' has another vocabulary than 'reference'"),
        (one, [], measures, "reference", "0 prompts"),
        (one, prompts, {}, "reference", "0 measures"),
        (one, prompts, measures, "start", "no reference 'start' among"),
    ):
        with pytest.raises(RecipeError, match=message):
            compare(compared, rows, by, max_new_tokens=2, reference=start)


@pytest.fixture
def by_hand():
    """Two models, two prompts, all numbers chosen."""
    start = ModelResult(
        "reference", ["was good", "was bad"], [[3, 4], [3, 4]],
        {"score": [1.0, -1.0], "judge": [0.5, None]}, [0.0, 0.0], [2 * math.log(3)] * 2,
    )  # fmt: skip
    trained = ModelResult(
        "ppo-good", ["was good \x1b[2J good", "was " + "very " * 30 + "good"], [[3, 4, 4], [3]],
        {"score": [3.0, 4.0], "judge": [0.5, 0.75]}, [1.0, 2.0], [math.log(8), math.log(2)],
    )  # fmt: skip
    return Comparison(["the film", "the plot\nwas"], [start, trained], seed=7)


def test_the_table_holds_every_figure(by_hand):
    lines = {line.split("  ")[0]: line for line in by_hand.table().splitlines()}
    # 1 and -1: mean 0, t(1) = 12.706, standard error 1; 3 and 4: 3.5, 12.706 / 2
    assert lines["score"].split() == ["score", "0.000", "±", "12.706", "3.500", "±", "6.353"]
    # one judged response of two: no interval, and n is said
    assert lines["judge"].split()[1:4] == ["0.500", "(n", "1)"]
    # exp(4 ln 3 / 4) and exp(ln 16 / 4)
    assert lines["perplexity"].split()[1:] == ["3.000", "2.000"]
    # (3 4) (3 4): one of two; (3 4) (4 4): two of two
    assert lines["distinct-2"].split()[1:] == ["0.500", "1.000"]
    # 2 and 2; 3 and 1: mean 2, t(1) = 12.706, standard error 1
    assert lines["length (tokens)"].split()[2:] == ["2.000", "±", "0.000", "2.000", "±", "12.706"]
    assert "n = 2" in by_hand.table()
    assert max(map(len, by_hand.table().splitlines())) <= 100


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_answers_are_shown_whole_within_the_width_and_are_safe_to_print(by_hand, width):
    text = by_hand.side_by_side(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "the plot was" in " ".join(text.split())
    assert text.count("very") == 30
    assert len(by_hand.side_by_side(1, width).split("\n\n")) == 2  # a heading, a prompt


def test_the_file_holds_every_number(by_hand, tmp_path):
    by_hand.save(tmp_path / "new" / "comparison.json")
    saved = json.loads((tmp_path / "new" / "comparison.json").read_text(encoding="utf-8"))
    assert (saved["n"], saved["seed"], saved["reference"]) == (2, 7, "reference")
    good = saved["models"]["ppo-good"]
    assert (good["score"]["mean"], good["kl"]["mean"]) == (3.5, 1.5)
    assert good["perplexity"] == pytest.approx(2)
    assert [(row["score"], row["kl"]) for row in good["responses"]] == [(3.0, 1.0), (4.0, 2.0)]
    judge = saved["models"]["reference"]["judge"]
    assert judge == {"mean": 0.5, "half_width_95": None, "n": 1}


def test_the_judge_reads_query_and_response():
    judge = vader_judge()
    if judge is None:
        pytest.skip("vaderSentiment is not installed")
    prompts = ["A wonderful", "An awful", "A wonderful"]
    completions = [" film.", " film.", " failure, terrible and dull."]
    good, bad, mixed = judge(prompts=prompts, completions=completions, completion_ids=[[1]] * 3)
    assert bad < -0.3 < 0.5 < good
    assert mixed < good


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, loaded):
    """A finished run: start model, trained model, classifier and data, all tiny and on disk."""
    root = tmp_path_factory.mktemp("work")
    for name, folder in (("reference", "start"), ("policy", "runs/ppo-good/model")):
        for part in loaded[name]:
            part.save_pretrained(root / folder)
    save_tiny_classifier(word_tokenizer(), root / "classifier")
    rows = [{"text": "w1 w2 w3 w14 w8 w4", "split": "test"}] * 20
    rows.append({"text": "w11 w12 w13", "split": "train"})
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "runs/ppo-good/config.yaml").write_text(
        "# A run of trl_recipes.\nmodel_name_or_path: start\nreward_model: classifier\n"
        "dataset_name: data.jsonl\nmin_response_length: 3\nresponse_length: 5\n"
        "metrics: [UppercaseReward]\n"
    )
    return root


def test_the_recipe_compares_a_run_with_its_start(run_folder, monkeypatch, capsys):
    monkeypatch.chdir(run_folder)
    run_here("compare.py", "runs/ppo-good", "--max_prompts", 6, "--show", 2)
    said = capsys.readouterr().out
    assert "runs/comparison/comparison.png" in said
    assert (run_folder / "runs/comparison/comparison.png").stat().st_size > 10_000
    saved = json.loads((run_folder / "runs/comparison/comparison.json").read_text())
    assert (saved["n"], list(saved["models"])) == (6, ["reference", "ppo-good"])
    assert all("w1 w2".startswith(p[:3]) for p in saved["prompts"])
    before, after = saved["models"].values()
    assert before["kl"]["mean"] == 0
    assert after["kl"]["mean"] > 1
    assert 0 < before["P(POSITIVE)"]["mean"] < 1
    assert after["uppercase"]["n"] == 6  # a metric of the run
    answers = before["responses"] + after["responses"]
    assert {row["length"] for row in answers} <= {1, 2, 3, 4, 5}  # shorter only by an end token
    assert said.count("> w1") == 2
    assert f"{after['kl']['mean']:.3f} ±" in said


def test_the_recipe_generates_with_scores(run_folder, monkeypatch, capsys):
    monkeypatch.chdir(run_folder)
    flags = ["--model", "runs/ppo-good", "--reward_model", "classifier", "--prompt", "w1 w2"]
    run_here("generate.py", *flags, "--num_return_sequences", 3)
    lines = capsys.readouterr().out.splitlines()[1:]
    scores = [float(line.split()[0]) for line in lines]
    assert scores[3] == pytest.approx(sum(scores[:3]) / 3, abs=0.01)
    assert all(line.split(maxsplit=1)[1].startswith("w1 w2") for line in lines[:3])
    assert len(lines) == 4
    run_here("generate.py", *flags, "--num_return_sequences", 1)
    assert capsys.readouterr().out.endswith("mean of 1\n")


def test_a_missing_judge_is_left_out_and_said(run_folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)  # import fails
    reward = SentimentReward(str(run_folder / "classifier"), label="NEGATIVE", score="log_odds")
    measures = sentiment_measures(reward, label="POSITIVE")
    assert list(measures) == ["score (logit)", "P(POSITIVE)"]
    assert "vaderSentiment is not installed" in caplog.text
    # two labels: the probabilities of both add up to one
    (other,) = SentimentReward(reward, label="NEGATIVE", score="probability")(["a"], [" film"])
    assert measures["P(POSITIVE)"](["a"], [" film"]) == pytest.approx([1 - other])

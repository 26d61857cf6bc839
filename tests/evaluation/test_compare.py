import json
import math
import sys
from statistics import mean

import pytest
import torch
from architectures import ARCHITECTURES
from launching import run_warm
from tiny_models import save_tiny_classifier
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.compare import (
    Comparison,
    ModelResult,
    compare,
    mean_interval,
    response_logprobs,
)
from trl_recipes.evaluation.judges import sentiment_measures, vader_judge
from trl_recipes.rewards import SentimentReward

WORDS = ["<eos>", "the", "film", "was", "good", "bad", "dull", "and", "very", "a", "plot", "I"]
WORDS += ["liked", "it", "not", "but"]
VOCABULARY = {word: number for number, word in enumerate(WORDS)}


# 0.975 quantiles of Student's t from printed tables, by degrees of freedom
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}
T_TABLE |= {29: 2.045, 60: 2.000, 100: 1.984, 120: 1.980, 255: 1.969}


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")


def causal_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # far from uniform, and positions that matter
        model.transformer.wpe.weight.mul_(20)
        model.transformer.wte.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def reference():
    return causal_model(0)


@pytest.fixture(scope="module")
def policy():
    return causal_model(1)


@pytest.fixture
def prompts():
    texts = ["the film", "the plot was very dull and", "I", "the film was not"]
    ids = [[VOCABULARY[word] for word in text.split()] for text in texts]
    return [
        {"query": text, "input_ids": row, "stars": number}
        for number, (text, row) in enumerate(zip(texts, ids, strict=True))
    ]


def count_good(prompts, completions, **columns):
    return [float(text.split().count("good")) for text in completions]


def alone(model, query, response):
    """Log-probabilities of one response, without padding, straight from the definition."""
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
def test_padding_and_batching_do_not_change_logprobs(policy, batch_size):
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(0, len(WORDS), (n,), generator=generator)  # noqa: E731
    queries, responses = [draw(n) for n in (1, 7, 2, 5, 3)], [draw(n) for n in (6, 1, 9, 2, 4)]
    got = response_logprobs(policy, queries, responses, batch_size)
    for query, response, logprobs in zip(queries, responses, got, strict=True):
        torch.testing.assert_close(logprobs, alone(policy, query, response), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_logprobs_of_encoder_decoder_models_are_their_own_loss(family):
    torch.manual_seed(0)
    model = ARCHITECTURES[family]().eval()
    queries = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 2])]
    responses = [torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8, 9, 1])]
    got = response_logprobs(model, queries, responses)
    start = torch.tensor([model.config.decoder_start_token_id])
    for query, response, logprobs in zip(queries, responses, got, strict=True):
        decoder = torch.cat([start, response[:-1]])[None]
        loss = model(input_ids=query[None], decoder_input_ids=decoder, labels=response[None]).loss
        assert -logprobs.mean().item() == pytest.approx(loss.item(), abs=1e-5)


def test_kl_and_perplexity_are_those_of_the_responses_one_by_one(
    policy, reference, prompts, tokenizer
):
    seen = {}

    def keep(prompts, completions, completion_ids, **columns):
        seen.setdefault("ids", []).append(completion_ids)
        return [0.0] * len(prompts)

    models = {"reference": (reference, tokenizer), "policy": (policy, tokenizer)}
    result = compare(models, prompts, {"keep": keep}, max_new_tokens=[9, 3, 6, 1]).results[1]
    kl, nll, answers = [], 0.0, seen["ids"][1]
    for row, ids in zip(prompts, answers, strict=True):
        pair = torch.tensor(row["input_ids"]), torch.tensor(ids)
        ours, theirs = (alone(model, *pair).sum().item() for model in (policy, reference))
        kl.append(ours - theirs)
        nll -= theirs
    assert result.kl == pytest.approx(kl, abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(nll / sum(map(len, answers))), rel=1e-4)
    assert result.lengths == [len(ids) for ids in answers]
    assert all(n <= most for n, most in zip(result.lengths, [9, 3, 6, 1], strict=True))


def test_the_reference_stands_first_at_distance_zero_and_equal_models_answer_alike(
    policy, reference, prompts, tokenizer
):
    models = {"policy": policy, "start": reference, "twin": causal_model(0)}
    models = {name: (model, tokenizer) for name, model in models.items()}
    settings = {"max_new_tokens": 8, "reference": "start"}
    found = compare(models, prompts, {"good": count_good}, seed=3, **settings).results
    assert [result.name for result in found] == ["start", "policy", "twin"]
    assert found[0].kl == [0.0] * 4
    assert found[0].responses == found[2].responses
    other = compare(models, prompts, {"good": count_good}, seed=4, **settings).results
    assert other[0].responses != found[0].responses


def test_measures_get_texts_ids_and_columns(reference, prompts, tokenizer):
    def stars(prompts, completions, completion_ids, stars, **columns):
        assert prompts[0] == "the film"
        assert columns == {}
        decoded = [" ".join(WORDS[i] for i in ids if i) for ids in completion_ids]
        assert completions == decoded
        return [None if number == 1 else float(number) for number in stars]

    one = {"reference": (reference, tokenizer)}
    comparison = compare(one, prompts, {"stars": stars}, max_new_tokens=4)
    assert comparison.results[0].scores == {"stars": [0.0, None, 2.0, 3.0]}
    assert comparison.results[0].to_dict()["stars"]["mean"] == pytest.approx(5 / 3)
    assert "(n 3)" in comparison.table()


def test_a_measure_that_is_called_as_a_figure_leaves_it_alone(reference, prompts, tokenizer):
    models, measures = {"reference": (reference, tokenizer)}, {"length": count_good}
    found = compare(models, prompts, measures, max_new_tokens=8).results[0]
    told = found.to_dict()
    assert [row["length"] for row in told["responses"]] == found.lengths
    assert told["length (reward)"]["mean"] == pytest.approx(mean(found.scores["length (reward)"]))


def test_what_cannot_be_compared_is_refused(reference, prompts, tokenizer):
    words = Tokenizer(models.WordLevel({**VOCABULARY, "more": 99}, unk_token="<eos>"))
    other = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    one, measures = {"reference": (reference, tokenizer)}, {"good": count_good}
    pair = one | {"other": (reference, other)}
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
def run_folder(tmp_path_factory, reference, policy, tokenizer):
    """A finished run: start model, trained model, classifier and data, all tiny and on disk."""
    root = tmp_path_factory.mktemp("work")
    for model, folder in ((reference, "start"), (policy, "runs/ppo-good/model")):
        model.save_pretrained(root / folder)
        tokenizer.save_pretrained(root / folder)
    save_tiny_classifier(AutoTokenizer.from_pretrained(root / "start"), root / "classifier")
    rows = [{"text": "the film was not very good", "split": "test"}] * 20
    rows.append({"text": "I liked it", "split": "train"})
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "runs/ppo-good/config.yaml").write_text(
        "# A run of trl_recipes.\nmodel_name_or_path: start\nreward_model: classifier\n"
        "dataset_name: data.jsonl\nmin_response_length: 3\nresponse_length: 5\n"
        "metrics: [UppercaseReward]\n"
    )
    return root


def test_the_recipe_compares_a_run_with_its_start(run_folder):
    flags = ["runs/ppo-good", "--max_prompts", "6", "--show", "2"]
    done = run_warm("compare.py", *flags, cwd=run_folder)
    assert done.returncode == 0, done.stderr
    assert "runs/comparison/comparison.png" in done.stdout
    assert (run_folder / "runs/comparison/comparison.png").stat().st_size > 10_000
    saved = json.loads((run_folder / "runs/comparison/comparison.json").read_text())
    assert (saved["n"], list(saved["models"])) == (6, ["reference", "ppo-good"])
    assert all("the film".startswith(p[:3]) for p in saved["prompts"])
    assert saved["models"]["reference"]["kl"]["mean"] == 0
    assert saved["models"]["ppo-good"]["kl"]["mean"] > 1
    assert 0 < saved["models"]["reference"]["P(POSITIVE)"]["mean"] < 1
    assert saved["models"]["ppo-good"]["uppercase"]["n"] == 6  # a metric of the run
    answers = [row for model in saved["models"].values() for row in model["responses"]]
    assert {row["length"] for row in answers} <= {1, 2, 3, 4, 5}  # shorter only by an end token
    assert done.stdout.count("> the") == 2
    assert f"{saved['models']['ppo-good']['kl']['mean']:.3f} ±" in done.stdout


def test_the_recipe_generates_with_scores(run_folder):
    flags = ["--model", "runs/ppo-good", "--reward_model", "classifier", "--prompt", "the film"]
    done = run_warm("generate.py", *flags, "--num_return_sequences", "3", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 4
    assert scores[3] == pytest.approx(sum(scores[:3]) / 3, abs=0.01)
    assert all(line.split(maxsplit=1)[1].startswith("the film") for line in lines[:3])


def test_a_missing_judge_is_left_out_and_said(run_folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)  # import fails
    reward = SentimentReward(str(run_folder / "classifier"), label="NEGATIVE", score="log_odds")
    measures = sentiment_measures(reward, label="POSITIVE")
    assert list(measures) == ["score (logit)", "P(POSITIVE)"]
    assert "vaderSentiment is not installed" in caplog.text
    # two labels: the probabilities of both add up to one
    (other,) = SentimentReward(reward, label="NEGATIVE", score="probability")(["a"], [" film"])
    assert measures["P(POSITIVE)"](["a"], [" film"]) == pytest.approx([1 - other])

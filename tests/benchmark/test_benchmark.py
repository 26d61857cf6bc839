"""Benchmark: its counts are right, its ratios are those it says, and both trainers run."""

import importlib.util
import json
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from launching import run_here, run_warm
from torch.utils.flop_counter import FlopCounterMode

from trl_recipes import RecipeError
from trl_recipes.benchmark import models, worker
from trl_recipes.benchmark.bound import ModelShape, Needs, Rates, bound, model_shape, needs
from trl_recipes.benchmark.models import PHASES, Workload, check_workload
from trl_recipes.benchmark.report import Report
from trl_recipes.benchmark.worker import Clock, Result, run_in_turn, run_worker

HAS_TRLS_PPO = importlib.util.find_spec("trl.experimental.ppo") is not None
WORK = Workload("tiny", batch=2, query=3, response=4, epochs=2)
TOY = ModelShape(trunk=10, head=6, layers=1, width=2, parameters=100, adapter=0)


def result(step, memory=1, tokens=16.0):
    """Steps of the given seconds, a quarter of each in every phase."""
    steps = [{"step": s, **dict.fromkeys(PHASES, s / 4)} for s in step]
    return Result(steps, memory, tokens, "a machine")


def test_needs_by_hand():
    work = Workload("tiny", batch=1, query=1, response=2, epochs=1)
    # 2 tokens: 2 * 10 * 2 through the trunk, 2 * 6 * 2 through the head; 1 + 2 = 3 pairs, each
    # 4 * width 2 = 8 in attention: 40 + 24 + 24
    read, update = 2 * (10 + 6) * 4, {"update_operations": 3 * 88, "update_bytes": 100 * 28}
    assert needs(work, TOY) == Needs(88, read, 88, **update)
    needed = needs(replace(work, precision="bf16", peft=True), TOY._replace(adapter=5))
    # weights 64 forward and once back; attention 24 and adapter 2 * 5 * 2 = 20 three times
    assert needed.update_operations == 2 * 64 + 3 * (24 + 20)
    assert (needed.update_bytes, needed.generation_bytes) == (5 * 28, 2 * (10 + 6) * 2)


@pytest.mark.parametrize(
    ("size", "parameters", "trunk", "head"),
    [
        ("small", 124_439_808, 12 * 12 * 768**2, 50257 * 768),  # GPT-2 small
        # Qwen2-0.5B: q, k, v, o with 2 of 14 heads for k and v; gate, up, down
        ("half-billion", 494_032_768, 24 * 896 * (896 + 128 + 128 + 896 + 3 * 4864), 151936 * 896),
    ],
)
def test_models_are_as_large_as_their_papers_say(size, parameters, trunk, head):
    shape = model_shape(Workload(size, 16, 8, 16))
    assert (shape.parameters, shape.trunk, shape.head) == (parameters, trunk, head)


def test_the_adapter_is_on_the_attention_projections_alone():
    shape = model_shape(replace(WORK, peft=True))
    per_layer = 8 * (64 + 192) + 8 * (64 + 64)  # rank 8; c_attn 64 to 192, c_proj 64 to 64
    assert shape.adapter == 2 * per_layer


def test_needs_are_what_torch_counts():
    model = models.language_model(WORK)
    model.set_attn_implementation("eager")  # whose products torch counts one by one
    ids = torch.zeros(WORK.batch, WORK.tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        logits = model(ids, logits_to_keep=WORK.response, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    needed, shape = needs(WORK, model_shape(WORK)), model_shape(WORK)
    # torch multiplies what the causal mask hides too: n (n - 1) / 2 pairs a row
    n = WORK.tokens
    hidden = WORK.batch * 4 * shape.width * shape.layers * n * (n - 1) // 2
    assert forward.get_total_flops() == needed.forward_operations + hidden
    step = forward.get_total_flops() + backward.get_total_flops()
    assert step == needed.update_operations / WORK.epochs + 3 * hidden


def test_the_bound_adds_phases_and_overlaps_reading_with_multiplying():
    update = {"update_operations": 600, "update_bytes": 40}
    needed = Needs(100, generation_bytes=30, forward_operations=100, **update)
    least = {"generation": 30, "forward": 10, "update": 60 + 40, "step": 140}
    assert bound(needed, Rates(10, 1)) == least
    assert bound(needed, Rates(10, 10))["generation"] == 10


def test_the_clock_counts_from_step_end_to_step_end(monkeypatch):
    times = iter([1.0, 3.0, 4.5, 8.0, 9.0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(times))
    watch = Clock("cpu")
    watch.on_train_begin(None, None, None)
    with watch.phase("generation"):
        pass
    watch.on_step_end(None, None, None)
    watch.on_step_end(None, None, None)
    assert watch.steps == [{"step": 7.0, "generation": 1.5}, {"step": 1.0}]


def test_ratios_are_medians_of_pairs():
    results = {
        "ours": [result([1, 3], 10), result([6, 6], 10), result([2, 2], 30)],
        "trl": [result([4, 4], 20), result([8, 8], 40), result([20, 20], 20)],
    }
    report = Report(WORK, results, needs(WORK, TOY), Rates(1, 1))
    assert report.ratios() == {"time": 0.5, "memory": 0.5}  # of 0.5, 0.75, 0.1; 0.5, 0.25, 1.5
    assert "0.50 of TRL's time, 0.50 of TRL's memory" in report.conditions()
    assert report.seconds("ours")["step"].tolist() == [2.5, 1, 6]


def test_the_table_has_every_phase_the_bound_and_both_trainers():
    results = {"ours": [result([2.0], 3e9)], "trl": [result([8.0], 6e9)]}
    needed = Needs(1, 0, 1, 2, 0)
    lines = Report(WORK, results, needed, Rates(4, 1)).table().splitlines()
    cells = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}
    assert cells >= {
        ("Seconds a step", "trl_recipes", f"TRL {version('trl')}", "bound"),
        ("**step**", "2 (2 to 2)", "8 (8 to 8)", "1"),
        ("update", "0.5 (0.5 to 0.5)", "2 (2 to 2)", "0.5"),
        ("step over bound", "2.00", "8.00", "1"),
        ("response tokens a second", "16", "4", ""),
        ("peak memory", "3.00 GB", "6.00 GB", ""),
    }
    report = Report(WORK, {"ours": results["ours"]}, needed, Rates(4, 1))  # alone: no ratio
    assert report.ratios() == {}
    assert report.chart().get_suptitle() == f"One PPO step\n{WORK}"


def test_lengths_are_spread_evenly():
    work = replace(WORK, batch=16, shortest=4, response=64)
    assert work.lengths() == list(range(4, 65, 4))
    assert replace(work, shortest=None, response=34).lengths() == [34] * 16
    assert "response 4 to 64" in str(work)


def test_both_trainers_are_given_the_same_prompts_and_weights():
    first, again = (models.language_model(WORK).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    ids = models.prompts(WORK)["input_ids"]
    assert len(ids) == WORK.batch * (WORK.steps + 1)
    assert {len(row) for row in ids} == {WORK.query}
    assert models.tokenizer(WORK).pad_token_id not in {i for row in ids for i in row}


def test_the_reward_model_costs_next_to_nothing():
    def products(model):
        return sum(p.numel() for name, p in model.named_parameters() if ".h." in name)

    small = Workload("small", 16, 8, 16)
    with torch.device("meta"):
        reward, policy = models.reward_model(small), models.language_model(small)
    assert products(reward) < products(policy) / 1000


@pytest.mark.parametrize("size", ["tiny", "half-billion"])
def test_the_tokenizer_has_a_word_for_each_id(size):
    tokenizer = models.tokenizer(replace(WORK, size=size))
    last = models.model_config(size).vocab_size - 1
    assert len(tokenizer) == last + 1
    assert tokenizer.batch_decode([[0, last]]) == [f"w0 w{last}"]


def test_a_failing_process_shows_its_last_lines():
    with pytest.raises(RecipeError, match=r"(?s)exit code 1.*last lines.*Error") as error:
        run_worker("ours", replace(WORK, epochs=-1))
    assert "epochs" in str(error.value)


def test_trainers_take_turns(monkeypatch):
    order = []
    noted = lambda name, work: order.append(name) or result([1.0])  # noqa: E731
    monkeypatch.setattr(worker, "run_worker", noted)
    results = run_in_turn(["ours", "trl"], WORK, 3, print_line=lambda line: None)
    assert all(a != b for a, b in pairwise(order))
    assert {name: len(runs) for name, runs in results.items()} == {"ours": 3, "trl": 3}


WITHOUT = r"pip install 'trl<1.13'.*--only ours"
GONE = pytest.mark.skipif(HAS_TRLS_PPO, reason="this TRL still has its PPO")


@pytest.mark.parametrize(
    ("change", "only", "message"),
    [
        ({"query": 1024}, "both", "1024 positions"),
        ({"shortest": 2}, "both", "Add --only ours"),
        ({"processes": 2}, "trl", "Add --only ours"),
        ({"processes": 2, "batch": 5}, "ours", "--batch 5 cannot be shared evenly by --proc.* 2"),
        *(pytest.param({}, only, WITHOUT, marks=GONE) for only in ("trl", "both")),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(change, only, message):
    with pytest.raises(RecipeError, match=message):
        check_workload(replace(WORK, **change), only)


@pytest.fixture
def forked(monkeypatch):
    def run(command, env, **_):
        return run_warm(worker.__file__, *command[-2:], environment=env)

    monkeypatch.setattr(worker, "subprocess", SimpleNamespace(run=run, DEVNULL=None))


def measured(folder, *flags):
    words = ["--size", "tiny", "--batch", 4, "--response", 4, "--epochs", 2]
    words += ["--steps", 1, "--repeats", 1, "--output_dir", folder, *flags]
    run_here("benchmark.py", *words)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.usefixtures("forked")
def test_the_recipe_measures_all_phases_and_draws_them(tmp_path, capsys):
    only = "both" if HAS_TRLS_PPO else "ours"
    found = measured(tmp_path, "--only", only, "--loop", "classic")
    assert (tmp_path / "table.md").read_text().splitlines()[0] in capsys.readouterr().out
    for name in ("classic", "ours", "trl") if HAS_TRLS_PPO else ("classic", "ours"):
        (run,) = found["runs"][name]
        (step,) = run["steps"]
        assert sum(step[phase] for phase in PHASES) == pytest.approx(step["step"])
        assert min(step[phase] for phase in PHASES) > 0, name
        assert step["step"] > found["bound"]["step"] > 0
        assert run["memory"] > 100e6
        assert run["response_tokens"] == 4
    assert matplotlib.image.imread(tmp_path / "chart.png")[..., :3].std() > 0.1


@pytest.mark.slow
def test_two_processes_share_a_batch(tmp_path):
    (run,) = measured(tmp_path, "--only", "ours", "--processes", "2")["runs"]["ours"]
    assert run["response_tokens"] == 4
    assert run["memory"] > 400e6  # two interpreters


@pytest.mark.usefixtures("forked")
def test_lengths_may_differ_in_several_passes_and_a_step_be_profiled():
    work = replace(WORK, batch=4, shortest=2, passes=2, steps=1, profile=True)
    run = run_worker("ours", work)
    assert run.response_tokens == 3  # of 2, 3, 3 and 4
    assert run.profile.startswith("```text\n---")
    assert 5 < run.profile.count("aten::") <= 20

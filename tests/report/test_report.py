"""The pages of runs and comparisons: whole, safe, true, and there however a run ends."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from trl_recipes import RecipeError
from trl_recipes.evaluation.compare import Comparison, ModelResult
from trl_recipes.report import write_comparison, write_report, write_results
from trl_recipes.report.plots import COLORS, GREY, PANELS, Panel, panel_charts
from trl_recipes.run_folder import RunFolder
from trl_recipes.stats import append_alarms, append_samples, append_stats

EVIL = "<script>alert('x')</script><img src=http://evil.example/a onerror=alert(1)>"
NAMES = ("reference", "<script>run")
VOID = {"meta", "br", "rect", "path", "circle", "img", "link"}


class Page(HTMLParser):
    """A page taken apart: its tags and attributes, its words."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.faults, self.text = [], [], [], ""
        self.source = source
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def charts(self):
        return [svg["aria-label"] for svg in self.all("svg") if "aria-label" in svg]


def ppo_rows(count=30):
    equal = {"env/reward_std": 1.0, "objective/kl_coef": 0.2, "ppo/loss/value": 0.5}
    equal |= {"ppo/policy/entropy": 2.0, "ppo/policy/clipfrac": 0.4, "time/generation": 0.1}
    equal |= {"tokens/responses_len_mean": 9.0, "ppo/mean_scores": -1.0}
    return [
        {"step": step, "env/reward_mean": -1 + step / 10, "objective/kl": 0.1 * step}
        | {"ppo/loss/total": 1 / step, "samples/distinct_2": 0.8 - 0.02 * step}
        | equal
        for step in range(1, count + 1)
    ]


def make_run(folder, rows, text="fine"):
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.config.write_text(
        "# A run of trl_recipes. To run it again\n# recipe: ppo_sentiment.py\n"
        "# started: 2026-01-02 03:04 UTC\n# python 3.12, trl 1.12.0\n"
        f"adap_kl_ctrl: true\ntarget: 6.0\nmodel_name_or_path: {json.dumps(text)}\n"
    )
    for row in rows:
        append_stats(run.all_stats, row)
    for step in (1, 2, 30):
        row = {"query": [f"q{step} {text}"], "response": [f"r{step} {text}"], "score": [step / 3]}
        append_samples(run.samples, step, row)
    append_alarms(run.alarms, 7, [f"the KL is odd {text}"])
    sessions = [
        {"began": "2026-01-02", "how": "stopped", "said": text, "step": 9, "seconds": 60},
        {"began": "2026-01-03", "how": "finished", "step": 30, "seconds": 120, "gigabytes": 2},
    ]
    record = {"algorithm": "PPO", "about": f"PPO on {text}", "rewards": {text: 0.5}}
    run.record.write_text(json.dumps(record | {"sessions": sessions}))
    return run


def comparison(*scores, text="fine"):
    """Two models, with their scores on the same prompts."""
    scores = scores or ([0.0, 1.0, 2.0], [2.0, 3.0, 4.0])
    n = len(scores[0])
    models = [
        ModelResult(name, [f" a{row} of {name} {text}" for row in range(n)], [[1, 2]] * n,
                    {"score": own}, [0.5] * n, [1.0] * n)
        for name, own in zip(NAMES, scores, strict=True)
    ]  # fmt: skip
    return Comparison([f"p{row} {text}" for row in range(n)], models, seed=0)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a run whose every text is an attack, and of its comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    own = dict.fromkeys((f"metrics/{EVIL}/mean", f"rewards/{EVIL}/mean", "rewards/b/mean"), 1.0)
    run = make_run(folder / "<script>run", [row | own for row in ppo_rows()], EVIL)
    comparison(text=EVIL).save(run.comparison)
    write_report(make_run(run.path / "javascript:alert(1)", ppo_rows(3)))
    write_comparison(comparison(text=EVIL), folder, runs=[run.path])
    paths = [write_report(run), folder / "compare.html"]
    return [Page(path.read_text(encoding="utf-8")) for path in paths]


def test_text_is_shown_as_written_and_never_becomes_markup(pages):
    for page in pages:
        assert {"script", "img", "iframe", "object", "link"}.isdisjoint(tag for tag, _ in page.tags)
        for tag, attrs in page.tags:
            assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
            assert not re.match(r"\s*(javascript|data|http|//)", attrs.get("href", "./"))
        assert page.text.count(EVIL) >= 6
    run, compared = pages
    for words in ("q1 ", "r30 ", "the KL is odd ", "p0 ", "a0 of <script>run ", "PPO on "):
        assert words + EVIL in run.text
    assert "a2 of reference " + EVIL in compared.text
    assert "<script>run" in run.text
    assert any(EVIL in label for label in run.charts())


def test_a_page_is_whole_asks_for_nothing_outside_and_tells_who_cannot_see(pages):
    for page in pages:
        (policy,) = [m for m in page.all("meta") if "http-equiv" in m]
        assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")
        names = {name for _, attrs in page.tags for name in attrs}
        assert names.isdisjoint({"src", "srcset", "action", "poster", "xlink:href"})
        style = page.source.split("<style>")[1].split("</style>")[0]
        assert not re.search(r"url\(|@import", style)
        assert page.source.startswith('<!DOCTYPE html>\n<html lang="en">')
        assert page.faults == page.open == []
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert (levels[0], levels.count(1)) == (1, 1)
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
        pictures = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
        assert len(pictures) >= 4
        assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in pictures)
        assert all("scope" in cell for cell in page.all("th"))
        scrolling = [div for div in page.all("div") if div.get("class") == "scroll"]
        assert len(scrolling) == len(page.all("table"))
        assert all(div["aria-label"] and div["tabindex"] == "0" for div in scrolling)


def luminance(color):
    """Relative luminance of WCAG 2.1."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(theme):
    style = resources.files("trl_recipes.report").joinpath("templates/page.css").read_text()
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", style.split(":root {")[theme + 1]))
    assert len(colors) == 10
    for paper in ("paper", "card"):
        for ink in ("ink", "soft", "link", "good", "bad"):
            assert contrast(colors[ink], colors[paper]) >= 4.5, (ink, paper)
    assert contrast(colors["ink"], colors["warn"]) >= 4.5
    for line in (*COLORS, GREY):  # graphics want 3
        assert contrast(line, colors["paper"]) >= 3


def chart(steps, values, **looks):
    rows = [{"step": s, "a": v} for s, v in zip(steps, values, strict=True)]
    return panel_charts([Panel("T", "u", {"A": ("a",)}, **looks)], {"": rows})


def test_a_chart_draws_the_values_at_their_place():
    ((*_, svg, _),) = chart([1, 5, 20], [3.0, -7.5, 11.25])
    line = re.search(r'd="M ([^"]+)"[^>]*(stroke-width: 1.6|stroke: #1e85c8)', svg)[1]
    points = re.findall(r"([\d.]+) ([\d.]+)", line)
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in points]
    assert (x1 - x0) / (x2 - x0) == pytest.approx((5 - 1) / (20 - 1), abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx((-7.5 - 3) / (11.25 - 3), abs=1e-3)
    assert x0 < x2
    assert y0 > y2  # downwards
    assert 'aria-label="T: 3 at step 1, 11.2 at step 20"' in svg


def test_charts_hold_out_against_odd_series():
    assert chart([1, 2], [math.nan, math.inf]) == []
    assert chart([], []) == []
    assert "<use" in chart([1], [2.0])[0].svg
    kl = [{"step": s, "objective/kl": 0.0} for s in (1, 2)]
    assert "nan" not in panel_charts([PANELS["kl"]], {"": kl}, 0.0)[0].svg
    assert len(chart(range(10**5), range(10**5), points=True)[0].svg) < 60_000


def test_the_page_says_what_was_trained_and_how_it_went(tmp_path):
    run = make_run(tmp_path / "ppo-good", ppo_rows())
    page = Page(write_report(run).read_text())
    told = ["Mean score rose from -0.8 to 1.9. It finished after 30 steps."]  # means of three
    told += ["ppo_sentiment.py", "fine (weight 0.5)", "Step 7: the KL is odd fine", "q1 fine"]
    told += ["q30 fine", "3 minutes", "2 GB", "2026-01-02", "trl 1.12.0", "target 6", "outside"]
    assert [words for words in told if words not in page.text] == []
    assert "q2 fine" not in page.text  # neither the first step nor the last
    titles = ["Mean score", "KL from the reference", "KL coefficient", "Loss", "Clipped tokens"]
    titles += ["Entropy of the next token", "Length of the responses", "Distinct pairs of tokens"]
    assert [label.split(":")[0] for label in page.charts()] == titles


def test_a_training_on_texts_shows_its_losses(tmp_path):
    rows = [{"step": s, "loss/train": 5 - s / 20, "grad_norm": 1.0} for s in range(1, 41)]
    rows += [{"step": 40, "loss/heldout": 3.5}]
    run = RunFolder(tmp_path / "lm")
    for row in rows:
        append_stats(run.all_stats, row)
    page = Page(write_report(run, {"perplexity": 33.25}).read_text())
    assert "Held-out loss stayed at 3.5." in page.text
    assert "perplexity33.2" in page.text
    (loss,) = [label for label in page.charts() if label.startswith("Loss")]
    assert "training text: 4.950 at step 1, 3 at step 40; held-out text: 3.500" in loss


def test_what_is_not_there_is_left_out(tmp_path):
    parts = ["config", "samples", "alarms", "record", "all_stats"]
    for missing in parts:
        run = make_run(tmp_path / missing, ppo_rows(3))
        getattr(run, missing).unlink()
        assert f"<h1>{missing}</h1>" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("all_stats.jsonl", "no json\n", "line 1: not JSON"),
        ("all_stats.jsonl", '{"step": 1, "env/reward_mean": "x"}\n', "is no number"),
        ("samples.jsonl", "[1]\n", "expected an object"),
        ("alarms.jsonl", "{\n", "not JSON"),
        ("config.yaml", "a: [", "is damaged"),
        ("comparison.json", "{", "is damaged"),
        ("stage.json", "{", "is damaged"),
    ],
)
def test_a_damaged_file_is_one_clear_error(name, content, says, tmp_path):
    run = make_run(tmp_path / "run", ppo_rows(3))
    (run.path / name).write_text(content)
    with pytest.raises(RecipeError, match=re.escape(says)) as error:
        write_report(run)
    assert name in str(error.value)


def test_odd_but_whole_files_make_a_page(tmp_path):
    run = make_run(tmp_path / "run", [{"step": 1}, {"step": 2, "env/reward_mean": math.nan}])
    run.samples.write_text('{"step": 1}\n{"query": ["a"], "step": null}\n{"step": 2, "resp')
    run.alarms.write_text("{}\n")
    run.record.write_text("damaged")
    run.comparison.write_text('{"models": {"m": {"responses": []}}, "prompts": ["p"], "n": 1}')
    page = Page(write_report(run).read_text())
    assert page.faults == []
    assert "It has come to step 2" in page.text
    run.all_stats.write_text("")
    assert "no step has been written yet" in write_report(run).read_text()
    with pytest.raises(RecipeError, match=r"holds no run.*Give the folder"):
        write_report(tmp_path / "nowhere")


def test_a_long_run_with_long_texts_stays_a_page(tmp_path):
    run = make_run(tmp_path / "run", ppo_rows(4000), "long " * 2000)
    comparison(*[[1.0, 2.0] * 150] * 2, text="long " * 500).save(run.comparison)
    path = write_report(run)
    assert path.stat().st_size < 1_000_000
    assert "more characters" in path.read_text()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", ppo_rows(3))
    monkeypatch.setenv("RANK", "1")
    write_report(run, {"a": 1})
    assert not run.report.exists()
    assert "figures" not in run.record.read_text()


def test_a_comparison_shows_every_model_on_the_same_prompts(tmp_path):
    run = make_run(tmp_path / NAMES[1], ppo_rows())
    told = write_comparison(comparison(), tmp_path / "out", runs=[run.path])
    page = Page((tmp_path / "out" / "compare.html").read_text())
    assert str(tmp_path / "out" / "compare.html") in told
    answers = {f"a{row} of {name} fine" for row in range(3) for name in NAMES}
    shown = {f"p{row} fine" for row in range(3)} | answers
    assert {text for text in shown if text not in page.text} == set()
    # 0 1 2: mean 1, standard error sqrt(1/3), t(2) = 4.303
    assert f"1.000 ± {4.303 / math.sqrt(3):.3f}" in page.text
    titles = ["score", "KL, nats per response", "Spread of score", "Mean score"]
    titles += ["KL from the reference", "Entropy of the next token", "Length of the responses"]
    assert [label.split(":")[0] for label in page.charts()] == titles


def test_a_finished_recipe_keeps_its_comparison_and_says_it(tmp_path):
    run = make_run(tmp_path / "ppo", ppo_rows())
    told = write_results(run, comparison())
    assert "a0 of reference" in told
    assert str(run.report) in told
    assert (run.plots / "training.png").is_file()
    assert json.loads(run.comparison.read_text())["n"] == 3
    assert "Before and after, on held-out prompts" in run.report.read_text()

"""The page of a run is there however the run ends."""

import json
import re
import signal
from functools import partial

import pytest
from test_report import EVIL, Page
from test_resume import groups, interrupted, ppo
from tiny_grpo import at_call

from trl_recipes import RecipeError
from trl_recipes.errors import RunStopped
from trl_recipes.report import write_report
from trl_recipes.report.page import run_page
from trl_recipes.run_folder import start_run


def lead(page):
    return re.search(r"</h1><p>(.*?)</p>", page)[1]


def train(trainer, resume=None):
    """Train, and give the page that is left."""
    trainer.args.resume_from_checkpoint = resume
    with start_run(trainer.args, report=write_report) as run:
        trainer.train()
    return run.report.read_text()


def fail():
    raise ValueError(EVIL)


def test_a_run_that_fails_leaves_its_page_as_far_as_it_came(tmp_path):
    with pytest.raises(RecipeError):
        train(ppo(tmp_path, reward=at_call(3, fail)))
    source = (tmp_path / "report.html").read_text()
    assert "It failed after 2 steps." in lead(source)
    page = Page(source)
    assert f"The run failed. Reward function `noisy` raised ValueError: {EVIL}" in page.text
    assert "script" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize(("make", "name"), [(ppo, "PPO"), (groups, "GRPO")])
def test_a_run_that_is_stopped_and_resumed_or_killed_says_so(make, name, tmp_path):
    reward = at_call(2, interrupted(signal.SIGTERM))
    trainer = partial(make, tmp_path, reward=reward, max_steps=4)
    with pytest.raises(RunStopped):
        train(trainer())
    assert "It was stopped after 2 steps." in lead((tmp_path / "report.html").read_text())
    page = train(trainer(), resume="true")
    assert "It finished after 4 steps." in lead(page)
    assert f"{name} on " in page
    record = json.loads((tmp_path / "training.json").read_text())
    ends = [(session["how"], session["step"]) for session in record["sessions"]]
    assert ends == [("stopped", 2), ("finished", 4)]
    assert "SIGTERM" in record["sessions"][0]["said"]
    assert all(session["seconds"] > 0 for session in record["sessions"])
    record["sessions"] = [{"how": "running"}]  # what stands there until a session ends
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert "It is still going on, or it was killed after 4 steps." in lead(run_page(tmp_path))


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "report.html").mkdir()
    trainer = ppo(tmp_path, max_steps=2)
    with start_run(trainer.args, report=write_report):
        trainer.train()
    assert len(trainer.all_stats) == 2
    assert "was not written" in caplog.text

"""The page of a run is there however the run ends."""

import json
import os
import re
import signal

import pytest
import tiny_grpo
from ppo.test_resume import trainer_of
from test_report import EVIL, Page

from trl_recipes import RecipeError
from trl_recipes.errors import RunStopped
from trl_recipes.report import write_report
from trl_recipes.report.page import run_page
from trl_recipes.run_folder import start_run


def lead(folder):
    return re.search(r"</h1><p>(.*?)</p>", (folder / "report.html").read_text())[1]


def sessions(folder):
    return json.loads((folder / "training.json").read_text())["sessions"]


def train(trainer, resume=None):
    trainer.args.resume_from_checkpoint = resume
    with start_run(trainer.args, report=write_report):
        trainer.train()


def test_a_run_that_finishes_leaves_its_page_and_one_that_was_killed_says_so(tmp_path):
    train(trainer_of(tmp_path, steps=2))
    assert "It finished after 2 steps." in lead(tmp_path)
    (session,) = sessions(tmp_path)
    assert (session["how"], session["step"]) == ("finished", 2)
    assert session["seconds"] > 0
    assert "PPO on " in (tmp_path / "report.html").read_text()
    record = json.loads((tmp_path / "training.json").read_text())
    record["sessions"] = [{"how": "running"}]  # what stands there until a session ends
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert "It is still going on, or it was killed after 2 steps." in run_page(tmp_path)


def test_a_run_that_fails_leaves_its_page_as_far_as_it_came(tmp_path):
    calls = iter(range(100))

    def fails(completions, **_):
        if next(calls) == 3:  # the first is the check before training
            raise ValueError(EVIL)
        return [float(len(text)) for text in completions]

    with pytest.raises(RecipeError):
        train(trainer_of(tmp_path, reward=fails))
    assert "It failed after 2 steps." in lead(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert EVIL in page.text
    assert "script" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_run_that_is_stopped_and_resumed_has_two_sessions(kind, tmp_path):
    steps = []

    def stops(completions, **_):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return [float(len(set(text.split()))) for text in completions]

    def trainer():
        if kind == "ppo":
            return trainer_of(tmp_path, reward=stops, steps=4)
        return tiny_grpo.build(rewards=stops, output_dir=str(tmp_path), max_steps=4)

    with pytest.raises(RunStopped):
        train(trainer())
    assert "It was stopped after 2 steps." in lead(tmp_path)
    train(trainer(), resume="true")
    assert "It finished after 4 steps." in lead(tmp_path)
    first, second = sessions(tmp_path)
    assert (first["how"], first["step"]) == ("stopped", 2)
    assert "SIGTERM" in first["said"]
    assert (second["how"], second["step"]) == ("finished", 4)


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "report.html").mkdir()
    train(trainer := trainer_of(tmp_path, steps=2))
    assert len(trainer.all_stats) == 2
    assert "was not written" in caplog.text

"""A stage is skipped where its result is there, and never where it was made from something else."""

from dataclasses import dataclass, field

import pytest

from trl_recipes.errors import RecipeError
from trl_recipes.training.stage import Stage, digest, plan_stages, settings_of


@dataclass
class Settings:
    output_dir: str = "runs/x"
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None
    learning_rate: float = 1e-3
    names: list[str] = field(default_factory=list)
    save_steps: int = 50


def plan(folder, wanted=("first", "second"), resume=None, overwrite=False, **settings):
    """Two stages, the first made from a, the second, the main one, from a and b."""
    chosen = {"a": 1, "b": 2} | settings
    first = Stage("first", folder / "first", {"a": chosen["a"]}, "first" in wanted, "Run it first.")
    second = Stage("second", folder, {"b": chosen["b"]}, "second" in wanted)
    config = Settings(str(folder), overwrite, resume)
    return first, second, config, plan_stages([first, second], config)


@pytest.fixture
def finished(tmp_path):
    first, second, _, _ = plan(tmp_path)
    for stage in (first, second):
        stage.write(None)
        stage.write({"steps": 3})
    return tmp_path


def test_settings_are_what_differs_and_matters():
    assert settings_of(Settings()) == {}
    chosen = Settings(output_dir="runs/y", save_steps=1, learning_rate=0.5, names=["a"])
    assert settings_of(chosen) == {"learning_rate": 0.5, "names": ["a"]}


def test_other_content_has_another_digest():
    contents = [["a", "b"]], [["b", "a"]], [["a"], ["b"]], [["a", "b "]], [["a", "b"]]
    assert len({*map(digest, contents)}) == 4  # the first and the last are equal


def test_a_plan_writes_nothing(tmp_path):
    with pytest.raises(RecipeError, match="holds no run to go on with"):
        plan(tmp_path, resume="true")
    first, _, config, said = plan(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (first.begun, config.resume_from_checkpoint) == (False, None)
    assert said == "first: to do, second: to do"


def test_what_is_finished_is_found_with_its_result(finished):
    first, second, config, said = plan(finished)
    assert (first.done, second.result, config.resume_from_checkpoint) == (True, {"steps": 3}, None)
    assert said == "first: there, second: there"
    first, second, _, said = plan(finished, wanted=("first",), b=5)
    assert first.done  # what lies behind the wanted stage is not looked at
    assert (second.done, said) == (True, "first: there")


def test_what_was_interrupted_is_resumed(tmp_path):
    plan(tmp_path)[0].write(None)
    assert plan(tmp_path)[3] == "first: resume, second: to do"
    first, second, config, _ = plan(tmp_path, resume="true")
    first.write({})
    with second.start(config):
        pass
    assert plan(tmp_path)[2].resume_from_checkpoint == "true"
    assert plan(tmp_path)[3] == "first: there, second: resume"


@pytest.mark.parametrize("result", [None, {}])
def test_other_settings_are_refused_with_their_names(tmp_path, result):
    plan(tmp_path)[0].write(result)
    with pytest.raises(
        RecipeError, match=r"first of other settings: a was 1 and is 3.*another.*--ov"
    ):
        plan(tmp_path, a=3)


def test_a_setting_of_the_first_decides_the_second_too(finished):
    (finished / "first" / "stage.json").unlink()
    with pytest.raises(RecipeError, match=r"the second of .*: a was 1 and is 3"):
        plan(finished, a=3)


@pytest.mark.parametrize("wanted", [("second",), ()], ids=["the second", "none"])
def test_one_stage_needs_those_before_it(tmp_path, wanted):
    with pytest.raises(RecipeError, match=r"holds no finished first. Run it first."):
        plan(tmp_path, wanted=wanted)


def test_overwriting_does_what_is_wanted_anew_and_nothing_else(finished):
    assert not plan(finished, overwrite=True, a=3)[0].done
    first, second, _, _ = plan(finished, wanted=("second",), overwrite=True, b=7)
    assert first.done
    assert not second.begun


@pytest.mark.parametrize("content", ["{", "[]", '{"result": {}}', '{"settings": {}}'])
def test_a_damaged_note_is_told(finished, content):
    (finished / "first" / "stage.json").write_text(content)
    with pytest.raises(RecipeError, match=r"stage.json` is damaged.*--overwrite_output_dir"):
        plan(finished)

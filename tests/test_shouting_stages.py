"""A stage is skipped where its result is there, and never where it was made from something else."""

import pytest

from trl_recipes.errors import RecipeError
from trl_recipes.training.shouting import Stages


def plan(folder, wanted="all", anew=False, **settings):
    """Two stages, the first made from a, the second from a and b."""
    chosen = {"a": 1, "b": 2} | settings
    stages = Stages(wanted, anew=anew)
    stages.add("first", folder / "first", {"a": chosen["a"]})
    stages.add("second", folder / "second", {"b": chosen["b"]})
    return stages


@pytest.fixture
def finished(tmp_path):
    stages = plan(tmp_path)
    for name in ("first", "second"):
        stages.todo(name).begin()
        stages.todo(name).finish()
    return tmp_path


def test_a_plan_writes_nothing(tmp_path):
    stages = plan(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not stages.begun
    assert stages.describe() == "first: to do, second: to do"


def test_what_is_finished_is_not_to_do(finished):
    stages = plan(finished)
    assert stages.todo("first") is None
    assert stages.todo("second") is None
    assert stages.describe() == "first: there, second: there"


def test_what_was_interrupted_is_gone_on_with(tmp_path):
    plan(tmp_path).todo("first").begin()
    stages = plan(tmp_path)
    assert stages.todo("first").begun
    assert not stages.todo("second").begun
    assert stages.describe() == "first: go on, second: to do"


@pytest.mark.parametrize("done", [True, False])
def test_other_settings_are_refused_with_their_names(tmp_path, done):
    stage = plan(tmp_path).todo("first")
    stage.begin()
    if done:
        stage.finish()
    with pytest.raises(RecipeError, match="first of other settings: a was 1 and is 3"):
        plan(tmp_path, a=3)


def test_a_setting_of_the_first_decides_the_second_too(finished):
    (finished / "first" / "stage.json").unlink()
    with pytest.raises(RecipeError, match=r"the second of .*: a was 1 and is 3"):
        plan(finished, a=3)


def test_what_lies_behind_the_wanted_stage_is_not_looked_at(finished):
    assert plan(finished, wanted="first", b=5).todo("second") is None


def test_one_stage_needs_those_before_it(tmp_path):
    with pytest.raises(RecipeError, match=r"--stage second needs the first, .*--stage first"):
        plan(tmp_path, wanted="second")


def test_overwriting_does_what_is_wanted_anew_and_nothing_else(finished):
    assert plan(finished, anew=True, a=3).todo("first") is not None
    stages = plan(finished, wanted="second", anew=True, b=7)
    assert stages.todo("first") is None
    assert not stages.todo("second").begun


@pytest.mark.parametrize("content", ["{", "[]", '{"result": {}}', '{"settings": {}}'])
def test_a_damaged_record_is_told(finished, content):
    (finished / "first" / "stage.json").write_text(content)
    with pytest.raises(RecipeError, match=r"stage.json` is damaged"):
        plan(finished)

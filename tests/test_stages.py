import json
from dataclasses import dataclass, field

import pytest

from trl_recipes.errors import RecipeError
from trl_recipes.training import stage as stages


@dataclass
class Settings:
    output_dir: str = "runs/x"
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None
    learning_rate: float = 1e-3
    names: list[str] = field(default_factory=list)
    save_steps: int = 50


def test_settings_are_what_differs_and_matters():
    assert stages.settings_of(Settings()) == {}
    chosen = Settings(output_dir="runs/y", save_steps=1, learning_rate=0.5, names=["a"])
    assert stages.settings_of(chosen) == {"learning_rate": 0.5, "names": ["a"]}


def test_a_stage_is_reused_only_when_it_finished_with_the_same_settings(tmp_path):
    config = Settings(output_dir=str(tmp_path))
    before = stages.settings_of(Settings(learning_rate=0.5))
    assert not stages.go_on(config, before, "a policy")
    assert config.resume_from_checkpoint is None  # there is nothing to go on with
    stages.begin(tmp_path, before)
    assert not stages.go_on(config, before, "a policy")
    assert config.resume_from_checkpoint == "true"
    stages.finish(tmp_path, before, {"steps": 3})
    assert stages.go_on(config, before, "a policy")
    assert stages.result_of(tmp_path, before, "a policy") == {"steps": 3}
    now = stages.settings_of(Settings(learning_rate=0.1, names=["a"]))
    with pytest.raises(RecipeError, match=r"learning_rate was 0.5 and is 0.1; names was left out"):
        stages.go_on(config, now, "a policy")
    config.overwrite_output_dir = True
    assert not stages.go_on(config, now, "a policy")


def test_a_stage_that_is_needed_must_have_finished(tmp_path):
    config = Settings(output_dir=str(tmp_path))
    with pytest.raises(RecipeError, match=r"holds no finished run. Train first"):
        stages.go_on(config, {}, "a policy", must_be_done=True)
    stages.begin(tmp_path, {})
    with pytest.raises(RecipeError, match=r"holds no finished run. Train first"):
        stages.go_on(config, {}, "a policy", must_be_done=True)
    stages.finish(tmp_path, {}, {})
    assert stages.go_on(config, {}, "a policy", must_be_done=True)


def test_a_damaged_note_is_named(tmp_path):
    stages.begin(tmp_path, {})
    (tmp_path / "stage.json").write_text(json.dumps(["no", "settings"]))
    with pytest.raises(RecipeError, match=r"stage.json. is damaged.*--overwrite_output_dir"):
        stages.result_of(tmp_path, {}, "a policy")


def test_other_content_has_another_digest():
    digests = {
        stages.digest(c) for c in ([["a", "b"]], [["b", "a"]], [["a"], ["b"]], [["a", "b "]])
    }
    assert len(digests) == 4
    assert stages.digest([["a", "b"]]) == stages.digest([["a", "b"]])

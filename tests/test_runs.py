"""runs: nobody's earlier run is lost, and config.yaml runs the same again."""

import enum
import shutil
from dataclasses import dataclass, field, fields

import pytest
import yaml

from trl_recipes import GRPOConfig, PPOConfig, RLOOConfig
from trl_recipes.arguments import parse_arguments
from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import (
    check_output_dir,
    prepare_run,
    read_config,
    start_run,
    write_config,
)
from trl_recipes.training.fit import PretrainConfig
from trl_recipes.training.reward_model import RewardModelConfig


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


@dataclass
class Arguments:
    dataset_name: str | None = None
    mood: Mood = Mood.GOOD
    weights: list[float] = field(default_factory=lambda: [1.0])
    overwrite_output_dir: bool = False
    output_dir: str | None = None
    batch_size: int | None = None
    mini_batch_size: int | None = None

    def __post_init__(self):
        self.mood = Mood(self.mood)
        self.mini_batch_size = self.mini_batch_size or self.batch_size


@pytest.fixture
def finished(tmp_path):
    run = prepare_run(tmp_path / "runs" / "ppo")
    write_config(run, Arguments())
    run.all_stats.write_text('{"step": 1}\n')
    run.samples.write_text("{}\n")
    run.report.write_text("<html>")
    (run.plots / "loss.png").write_bytes(b"png")
    run.model.mkdir()
    for name in ("config.json", "model.safetensors", "value_head.safetensors", "tokenizer.json"):
        (run.model / name).write_text("x")
    (run.checkpoints / "checkpoint-10").mkdir(parents=True)
    (run.checkpoints / "checkpoint-10" / "state.json").write_text("{}")
    return run


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(finished):
    before = contents(finished.path)
    told = f"{finished.path}.* already holds a run.*all_stats.jsonl.*--overwrite_output_dir"
    for refuse in (prepare_run, check_output_dir):
        with pytest.raises(RecipeError, match=told):
            refuse(finished.path)
    assert prepare_run(finished.path, resume=True).path == finished.path
    check_output_dir(finished.path, overwrite=True)
    check_output_dir(finished.path.parent / "new")
    assert contents(finished.path.parent) == {f"ppo/{name}": text for name, text in before.items()}


def test_a_new_folder_is_made_with_parents_and_one_that_never_trained_is_no_obstacle(tmp_path):
    run = prepare_run(tmp_path / "a" / "b")
    assert run.path == tmp_path / "a" / "b"
    assert run.plots.is_dir()
    assert read_config(run) == {}
    write_config(prepare_run(run.path), Arguments())
    prepare_run(run.path)


def test_overwriting_removes_the_run_and_none_of_the_files_beside_it(finished):
    own = ["notes.txt", "data/a.csv"]
    for name in own:
        (finished.path / name).parent.mkdir(exist_ok=True)
        (finished.path / name).write_text(f"mine: {name}")
    prepare_run(finished.path, overwrite=True)
    left = {name: f"mine: {name}".encode() for name in own}
    assert contents(finished.path) == left | {"config.yaml": b"# A run of trl_recipes.\n"}
    assert read_config(finished) == {}
    assert not finished.model.exists()


def test_overwriting_does_not_follow_links_out_of_the_folder(finished, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_text("precious")
    (elsewhere / "config.json").write_text("{}")
    before = contents(elsewhere)
    shutil.rmtree(finished.model)
    finished.model.symlink_to(elsewhere)
    (finished.checkpoints / "checkpoint-20").symlink_to(elsewhere)
    prepare_run(finished.path, overwrite=True)
    assert contents(elsewhere) == before
    assert not finished.model.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "model/config.json", "all_stats.jsonl"])
def test_a_folder_that_no_run_wrote_is_never_overwritten(tmp_path, name, overwrite):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine: 1\n")
    before = contents(tmp_path)
    with pytest.raises(RecipeError, match="may be something else"):
        prepare_run(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_there_must_be_something_to_resume_and_no_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecipeError, match="cannot be a folder, because"):
            prepare_run(path)
    with pytest.raises(RecipeError, match="holds no run to go on with"):
        prepare_run(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(RecipeError, match="both given"):
        prepare_run(tmp_path, resume=True, overwrite=True)


def test_other_processes_neither_look_nor_write(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert prepare_run(finished.path).path == finished.path
    run = prepare_run(tmp_path / "new")
    write_config(run, Arguments())
    assert not run.path.exists()


def test_the_config_runs_the_same_again_and_what_was_worked_out_gives_way_to_a_flag(tmp_path):
    run = prepare_run(tmp_path / "run")
    argv = ["--dataset_name", "a b: c.csv", "--mood", "bad", "--weights", "1", "1e-05"]
    (first,) = parse_arguments(Arguments, argv=[*argv, "--batch_size", "64"])
    assert first.mini_batch_size == 64  # worked out
    write_config(run, first)
    config = ["--config", str(run.config)]
    (again,) = parse_arguments(Arguments, argv=config)
    first.output_dir = str(run.path)
    assert again == first
    assert again.weights == [1.0, 1e-5]
    (again,) = parse_arguments(Arguments, argv=[*config, "--batch_size", "32"])
    assert (again.batch_size, again.mini_batch_size) == (32, 32)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (PPOConfig, {"mini_batch_size": 4, "exp_name": "x"}),
        (GRPOConfig, {"generation_batch_size": 128, "report_to": "none"}),
        (RLOOConfig, {}),
        (PretrainConfig, {"adam_beta1": 0.8}),
        (RewardModelConfig, {"learning_rate": 1e-3}),
    ],
)
def test_what_a_script_gave_runs_again_on_the_command_line(kind, given, tmp_path):
    config = kind(output_dir=str(tmp_path / "run"), use_cpu=True, **given)
    write_config(prepare_run(config.output_dir), config)
    argv = ["--config", str(tmp_path / "run" / "config.yaml")]
    (again,) = parse_arguments(kind, argv=argv)
    differ = {f.name for f in fields(kind) if getattr(again, f.name) != getattr(config, f.name)}
    assert differ <= {"exp_name"}  # a name of TRL 0.11, which no recipe takes


def test_the_config_tells_recipe_versions_and_seed_and_no_secret(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr("sys.argv", ["/somewhere/recipes/ppo_sentiment.py"])
    training = TrainingArguments(
        output_dir="x", learning_rate=1e-4, hub_token="hf_secret", use_cpu=True, report_to="none"
    )
    run = prepare_run(tmp_path / "run")
    write_config(run, Arguments(dataset_name="d", overwrite_output_dir=True), training)
    text = run.config.read_text()
    told = ("# recipe: ppo_sentiment.py\n", " trl ", " transformers ", " torch ")
    assert [words for words in told if words not in text] == []
    assert "hf_secret" not in text
    values = yaml.safe_load(text)
    assert read_config(run.path) == values
    expected = {"learning_rate": 1e-4, "output_dir": str(tmp_path / "run")}
    expected |= {"seed": 42, "mood": "good"}  # the seed and all of ours with their defaults
    assert {name: values[name] for name in expected} == expected
    # of the others' defaults none; and running it again must not overwrite it
    assert values.keys().isdisjoint({"adam_beta1", "overwrite_output_dir"})


def test_a_damaged_config_and_none_are_errors(tmp_path):
    with pytest.raises(RecipeError, match="holds no run"):
        read_config(tmp_path)
    for text in ("a: [1", "- 1\n"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(RecipeError, match="is damaged"):
            read_config(tmp_path)


def test_the_page_is_written_however_the_training_ends_if_it_did_a_step(tmp_path, caplog):
    config = Arguments(output_dir=str(tmp_path / "run"))
    config.resume_from_checkpoint, pages = None, []
    with start_run(config, [config], pages.append):
        pass
    assert pages == []  # no step was done, and the folder is used again

    def interrupted():
        with start_run(config, [config], pages.append) as run:
            run.all_stats.write_text("{}\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [page.path for page in pages] == [tmp_path / "run"]
    with pytest.raises(RecipeError, match="already holds a run"), start_run(config):
        raise AssertionError

    def full(run):
        raise OSError("the disk is full")

    config.overwrite_output_dir = True
    with start_run(config, report=full) as run:
        run.all_stats.write_text("{}\n")
    assert "the disk is full" in caplog.text

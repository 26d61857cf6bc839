"""arguments: YAML and flags into dataclasses, and an error for each way to get them wrong."""

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from trl_recipes import GRPOConfig, arguments
from trl_recipes.arguments import parse_arguments, run_recipe
from trl_recipes.errors import RecipeError


@dataclass
class SentimentArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Where prompts come from."})
    change_score: Literal[0, 1] = field(default=1, metadata={"help": "1 is positive, 0 negative"})
    min_length: int = field(default=2, metadata={"help": "Shortest prompt, in tokens."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One a reward."})
    shuffle: bool = field(default=True, metadata={"help": "Shuffle the prompts."})
    half: bool | None = field(default=None, metadata={"help": "Half precision (default: maybe)."})


@dataclass
class TrainingConfig:
    learning_rate: float = 1.41e-5
    output_dir: str = field(default="runs/ppo", metadata={"help": "Where it all goes."})
    report_to: str | list[str] | None = "none"
    scheduler_kwargs: dict | str | None = None

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}.")


def parse(*argv):
    return parse_arguments(SentimentArguments, TrainingConfig, argv=list(argv))


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        return str(tmp_path / "config.yaml")

    return write


def test_without_arguments_or_with_an_empty_file_everything_has_its_default(config):
    assert parse() == (SentimentArguments(), TrainingConfig())
    assert parse("--config", config("# nothing\n")) == parse()


def test_flags_win_over_the_file_and_the_file_over_defaults(config):
    path = config("min_length: 3\nchange_score: 0\nlearning_rate: 0.5\n")
    for argv in (["--config", path, "--min_length", "4"], ["--min-length=4", f"--config={path}"]):
        args, training = parse(*argv)
        assert (args.min_length, args.change_score, training.learning_rate) == (4, 0, 0.5)


def test_yaml_values_become_what_the_flags_would_make_of_them(config):
    path = config(
        "learning-rate: 1e-5\n"  # a string for YAML 1.1
        "reward_weights: [1, 0.5, 2e-1]\n"
        "shuffle: false\nhalf: 'yes'\n"
        "dataset_name: 2024\n"
        "report_to: [tensorboard, wandb]\n"
        "scheduler_kwargs: {power: 2}\n"
        "output_dir: 'no'\n"
    )
    args, training = parse("--config", path)
    assert str(args.reward_weights) == "[1.0, 0.5, 0.2]"  # floats all
    assert (args.shuffle, args.half, args.dataset_name) == (False, True, "2024")
    assert training == TrainingConfig(1e-5, "no", ["tensorboard", "wandb"], {"power": 2})


@pytest.mark.parametrize(("value", "resume"), [("true", "true"), ("false", None), ("a/b", "a/b")])
def test_a_checkpoint_is_named_or_true_or_false(value, resume, config):
    path = config(f"resume_from_checkpoint: {value}\n")
    for argv in (["--config", path], ["--resume_from_checkpoint", value]):
        found = parse_arguments(GRPOConfig, argv=argv)[0].resume_from_checkpoint
        assert (found and found.lower()) == resume


def test_null_in_yaml_is_none_where_none_is_allowed(config):
    args, _ = parse("--config", config("dataset_name: null\nreward_weights:\n"))
    assert (args.dataset_name, args.reward_weights) == (None, None)


@pytest.mark.parametrize(
    ("argv", "shuffle", "half"),
    [
        ([], True, None),
        (["--shuffle", "--half"], True, True),
        (["--shuffle", "false", "--half", "false"], False, False),
        (["--no_shuffle", "--half", "true"], False, True),
    ],
)
def test_flags_for_truth_values_stand_alone_or_take_a_value(argv, shuffle, half):
    args, _ = parse(*argv)
    assert (args.shuffle, args.half) == (shuffle, half)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--learning_rat", "1"], ["`--learning_rat`", "Did you mean `--learning_rate`?"]),
        (["--learning_rat=1"], ["`--learning_rat=1`", "Did you mean `--learning_rate`?"]),
        (["--min_len", "3"], ["`--min_len`", "`--min_length`"]),  # abbreviations are no flags
        (["--zzz"], ["Unknown flag `--zzz`", "--help"]),
        (["stray"], ["`stray`", "without a flag before it"]),
        (["--change_score", "2"], ["--change_score: invalid choice: ", "2", "0, 1"]),
        (["--min_length", "two"], ["--min_length: invalid int value: 'two'"]),
        (["--shuffle", "maybe"], ["--shuffle: ", "maybe"]),
        (["--min_length"], ["--min_length: expected one argument"]),
        (["--learning_rate", "0"], ["learning_rate must be positive, not 0.0"]),
        (["--config"], ["--config needs the path"]),
        (["--config", "--shuffle"], ["--config needs the path"]),
        (["--config", "a.yaml", "--config=b.yaml"], ["given 2 times", "a.yaml, b.yaml"]),
        (["--config", "gone.yaml"], ["--config: `gone.yaml` could not be read", "Check the path"]),
        (["--config", "."], ["--config: `.` could not be read"]),
        # files
        ("learning_rat: 1", ["Unknown key `learning_rat`", "Did you mean `learning_rate`?"]),
        ("zzz: 1", ["Unknown key `zzz`"]),
        ("learning_rate: fast", ["`learning_rate`: invalid float value: 'fast'"]),
        ("learning_rate: [1, 2]", ["`learning_rate` takes one value, not [1, 2]"]),
        ("learning_rate: {a: 1}", ["`learning_rate` takes one value, not {'a': 1}"]),
        ("min_length: 2.5", ["`min_length`: invalid int value: '2.5'"]),
        ("min_length: null", ["`min_length` is empty"]),
        ("change_score: 2", ["`change_score`: invalid choice", "choose from 0, 1"]),
        ("shuffle: perhaps", ["`shuffle`: ", "perhaps"]),
        ("dataset_name: yes", ["`dataset_name` is true", "quotes"]),
        ("reward_weights: [1, heavy]", ["`reward_weights`: invalid float value: 'heavy'"]),
        ("min_length: 1\nmin_length: 2", ["the key `min_length` twice"]),
        ("a: [1\nb: 2", ["line 2"]),
        ("- 1\n- 2", ["holds a list"]),
        ("learning_rate: 0", ["learning_rate must be positive, not 0.0"]),
    ],
)
def test_a_wrong_command_line_or_file_is_told_in_one_line(config, given, told):
    if isinstance(given, str):
        given = ["--config", config(given)]
        told = [*told, f"`{given[1]}`"]  # the file's name
    with pytest.raises(RecipeError) as error:
        parse(*given)
    assert [part for part in told if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"), [("torch_dtype", "dtype"), ("evaluation-strategy", "eval_strategy")]
)
def test_a_flag_of_an_earlier_version_is_told_by_its_name_of_today(config, old, new):
    for argv in (["--" + old, "auto"], ["--config", config(f"{old}: auto")]):
        with pytest.raises(RecipeError, match=f"`.*{old}`.* It is called `(--)?{new}` now"):
            parse_arguments(ModelConfig, GRPOConfig, argv=argv)


def test_a_missing_required_flag_is_named_and_a_file_can_give_it(config):
    @dataclass
    class Needs:
        prompt: str = field(metadata={"help": "What to continue."})

        def __post_init__(self):
            if self.prompt == "":
                raise RecipeError("prompt is empty")

    with pytest.raises(RecipeError, match="required: --prompt"):
        parse_arguments(Needs, argv=[])
    (args,) = parse_arguments(Needs, argv=["--config", config("prompt: hello")])
    assert args.prompt == "hello"
    with pytest.raises(RecipeError, match=r"^prompt is empty$"):  # stays as it is
        parse_arguments(Needs, argv=["--prompt", ""])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_explains_every_flag_of_ours_with_its_default(capsys, flag):
    with pytest.raises(SystemExit, match=r"^0$"):
        parse("--min_length", "2", flag)
    printed = capsys.readouterr().out
    told = ["--config FILE YAML file", "Half precision (default: maybe). --"]
    told += ["--change_score {0,1} 1 is positive, 0 negative (default: 1)"]
    told += ["--min_length MIN_LENGTH Shortest prompt, in tokens. (default: 2)"]
    told += ["--output_dir OUTPUT_DIR Where it all goes. (default: runs/ppo)"]
    told += ["--help_all lists every flag"]
    assert [line for line in told if line not in " ".join(printed.split())] == []
    assert max(len(line) for line in printed.splitlines()) <= 100


def test_help_leaves_inherited_flags_to_help_all(capsys):
    @dataclass
    class Config(TrainingArguments):
        horizon: float = field(default=10000.0, metadata={"help": "Episodes it acts over."})

    with pytest.raises(SystemExit):
        parse_arguments(Config, ModelConfig, argv=["--help"])
    flags = set(re.findall(r"(?m)^ *(--\w+)", capsys.readouterr().out))
    assert {"--config", "--horizon", "--output_dir", "--seed", "--max_steps"} <= flags
    assert {"--use_peft", "--lora_r"} <= flags
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_arguments(Config, ModelConfig, argv=["--help_all"])
    every = set(re.findall(r"(?m)^ *(--\w+)", capsys.readouterr().out))
    assert {"--adam_beta1", "--load_in_4bit"} <= every - flags
    assert len(flags) < 26  # --help_all among them


def test_the_configuration_of_trl_itself_can_be_parsed(monkeypatch, config):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    text = "learning_rate: 1.41e-5\nlora_target_modules: [c_attn, c_proj]\nbf16: false\n"
    text += "gradient_checkpointing: false\nlr_scheduler_kwargs: {}\neval_strategy: 'no'\n"
    path = config(f"{text}report_to: none\n")
    args, training, model = parse_arguments(
        SentimentArguments, SFTConfig, ModelConfig, argv=["--config", path, "--use_peft"]
    )
    assert (args, training.learning_rate, training.bf16) == (SentimentArguments(), 1.41e-5, False)
    assert (model.use_peft, model.lora_target_modules) == (True, ["c_attn", "c_proj"])
    path = config("eval_strategy: no\n")
    with pytest.raises(RecipeError, match=r"`eval_strategy` is false. YAML .*quotes"):
        parse_arguments(SFTConfig, argv=["--config", path])


def test_a_recipe_may_have_a_default_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "usual.yaml").write_text("min_length: 7\nchange_score: 0\n")
    (tmp_path / "other.yaml").write_text("min_length: 8\n")
    called = []

    def main(args):
        called.append((args.min_length, args.change_score))

    monkeypatch.setattr(arguments.inspect, "getfile", lambda _: str(tmp_path / "recipe.py"))
    for argv in ([], ["--change_score", "1"], ["--config", str(tmp_path / "other.yaml")]):
        run_recipe(main, SentimentArguments, argv=argv, default_config="usual")
    assert called == [(7, 0), (7, 1), (8, 1)]
    with pytest.raises(SystemExit):
        run_recipe(main, SentimentArguments, argv=["--help"], default_config="usual")
    words = " ".join(capsys.readouterr().out.split())
    assert "tokens. (default: 7)" in words
    assert "usual.yaml" in words


def test_main_gets_the_parsed_objects_and_what_it_raises_ends_the_process(capsys):
    def main(args):
        assert args == SentimentArguments(change_score=0)
        raise raised

    def code():
        with pytest.raises(SystemExit) as done:
            run_recipe(main, SentimentArguments, argv=["--change_score", "0"])
        return done.value.code

    raised = RecipeError("No prompts in `x.csv`. Give some.")
    assert code() == 2
    assert capsys.readouterr() == ("", "error: No prompts in `x.csv`. Give some.\n")
    raised = KeyboardInterrupt
    assert code() == 130
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_recipe(lambda args: 1 / 0, SentimentArguments, argv=[])


def test_other_processes_speak_only_when_the_main_one_did_not_end_the_launch(monkeypatch, capsys):
    waits = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(arguments.time, "sleep", waits.append)
    with pytest.raises(SystemExit, match=r"^2$"):
        run_recipe(print, SentimentArguments, argv=["--zzz"])
    assert waits == [arguments._OTHERS_WAIT_SECONDS]  # time for the launcher to stop this process
    assert "--zzz" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_recipe(print, SentimentArguments, argv=["--help"])
    assert capsys.readouterr().out == ""

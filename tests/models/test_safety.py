"""What a model folder brings along is not run and not shown raw: pickles, code, labels, text."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    RecipeError,
    SentimentReward,
    load_run,
    load_tokenizer,
)
from trl_recipes.describe import printable
from trl_recipes.evaluation.compare import Comparison, ModelResult
from trl_recipes.models.loading import load_classifier
from trl_recipes.report.plots import plot_comparison
from trl_recipes.rewards import Rewards
from trl_recipes.training.fit import PretrainConfig
from trl_recipes.training.language_model import train_language_model
from trl_recipes.training.reward_data import Labeled
from trl_recipes.training.reward_model import train_reward_model

NASTY = "POS\x1b[2J\x9b31m\u202e$\\frac$|_x"


class Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def pickled(tiny_gpt2, tmp_path):
    """tiny_gpt2 with its weights as pytorch_model.bin."""
    folder = shutil.copytree(tiny_gpt2, tmp_path / "with space")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


TEXTS = ["a text"] * 4
LABELED = Labeled(TEXTS, [0, 1, 0, 1], ["NEGATIVE", "POSITIVE"])


def train_on(folder, trainer, data):
    config = PretrainConfig(output_dir=f"{folder}/out", max_steps=1, use_cpu=True)
    trainer(data, f"{folder}/out", config, model_name_or_path=str(folder))


LOADERS = {
    "load_run": load_run,
    "load_tokenizer": load_tokenizer,
    "value head": lambda folder: AutoModelForCausalLMWithValueHead.from_pretrained(str(folder)),
    "PPOTrainer": lambda folder: PPOTrainer(args=PPOConfig(), model=str(folder)),
    "SentimentReward": SentimentReward,
    "pretrain_lm": lambda folder: train_on(folder, train_language_model, TEXTS),
    "train_classifier": lambda folder: train_on(folder, train_reward_model, LABELED),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_folder_of_pickled_weights_is_refused_unread(pickled, tmp_path, loader):
    torch.save({"x": Touch(tmp_path / "touched")}, pickled / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"pickle file.*convert it once"):
        loader(str(pickled))
    assert not (tmp_path / "touched").exists()


def convert(folder):
    """Run the command that a refusal gives, with the Python that runs the tests."""
    with pytest.raises(RecipeError, match="pickle file") as error:
        load_run(folder)
    command = re.search(r"python -c .*$", str(error.value))[0]
    command = command.replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)


def test_the_message_converts_and_then_it_loads(pickled, tiny_gpt2):
    convert(pickled)
    model, expected = load_run(pickled)[0].state_dict(), load_run(tiny_gpt2)[0].state_dict()
    assert model.keys() == expected.keys()
    assert all(torch.equal(model[key], expected[key]) for key in model)


def test_a_pickled_adapter_is_refused_and_can_be_converted(tiny_gpt2, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    get_peft_model(model, LoraConfig(target_modules=["c_attn"])).save_pretrained(tmp_path)
    load_tokenizer(str(tiny_gpt2)).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    expected = load_file(weights)
    torch.save(expected, tmp_path / "adapter_model.bin")
    weights.unlink()
    convert(tmp_path)
    assert load_file(weights).keys() == expected.keys()
    load_run(tmp_path)


def test_weights_that_were_not_there_to_be_seen_are_not_unpickled(tiny_gpt2, tmp_path, monkeypatch):
    """An adapter's beside other safetensors, and those that config.json names."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    named = config | {"transformers_weights": "adapter_model.bin"}
    adapter = {"base_model_name_or_path": str(tiny_gpt2), "peft_type": "LORA", "r": 1}
    for name, settings in {"config": named, "adapter_config": adapter}.items():
        folder = shutil.copytree(tiny_gpt2, tmp_path / name)
        torch.save({"x": Touch(tmp_path / "touched")}, folder / "adapter_model.bin")
        (folder / f"{name}.json").write_text(json.dumps(settings))
        for load in (load_run, load_classifier):
            with pytest.raises(RecipeError, match="pickle file"):
                load(str(folder))
    assert not (tmp_path / "touched").exists()


@pytest.fixture
def own_code(tiny_gpt2, tmp_path):
    """tiny_gpt2 as a kind of its own, whose code makes a file when it is imported."""
    folder = shutil.copytree(tiny_gpt2, tmp_path / "own_code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_kind", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    code = "from transformers import GPT2Config, GPT2LMHeadModel\n"
    code += "class OwnConfig(GPT2Config):\n    model_type = 'own_kind'\n"
    code += "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    (folder / "own.py").write_text(f"{code}open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"load_tokenizer"}))
def test_code_of_a_model_does_not_run_unasked(own_code, tmp_path, loader, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(RecipeError, match=r"own code.*--trust_remote_code"):
        LOADERS[loader](str(own_code))
    assert not (tmp_path / "ran").exists()


def test_with_the_flag_it_runs(own_code, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(tmp_path / "m")
    model, _ = load_run(own_code, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert (tmp_path / "ran").exists()


def test_a_comparison_shows_no_control_character_and_draws_a_label_as_it_is_written(tmp_path):
    assert printable("a\x1b[31mb\r\n\x07\u202ec é 好") == "a [31mb    c é 好"
    figures = ([NASTY, "b"], [[1, 2], [2]], {NASTY: [0.1, 0.2]}, [0, 0], [1, 1])
    results = [ModelResult(name, *figures) for name in ("reference", NASTY)]
    comparison = Comparison([NASTY, "q"], results, 0)
    shown = comparison.table() + comparison.side_by_side(2, 90) + comparison.side_by_side(2, 20)
    assert "frac" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)
    # `$\\frac$` read as mathematics would raise
    figure = plot_comparison(comparison, tmp_path / "picture.png")
    title = figure.axes[0].get_title(loc="left")
    assert title.replace(r"\$", "$") == printable(NASTY)


def test_a_label_of_a_classifier_names_its_reward_without_control_characters(tiny_gpt2, tmp_path):
    labels = {"id2label": {0: "NEG", 1: NASTY}, "label2id": {"NEG": 0, NASTY: 1}}
    model = GPT2ForSequenceClassification.from_pretrained(tiny_gpt2, **labels)
    model.save_pretrained(tmp_path)
    load_tokenizer(str(tiny_gpt2)).save_pretrained(tmp_path)
    (name,) = Rewards(SentimentReward(str(tmp_path), label=NASTY)).names
    assert name.isprintable()
    assert "frac" in name

"""Value-head models as scripts of TRL 0.11 load, save, ask and inherit from them."""

import json
import re

import pytest
import torch
from architectures import gpt2
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_grpo import word_tokenizer
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model, T5Config, T5Model

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    RecipeError,
    create_reference_model,
)
from trl_recipes.ppo.checks import FirstBatchCheck
from trl_recipes.ppo.models import ActorCritic

WEIGHT, BIAS = torch.full((1, 32), 0.5), torch.ones(1)
HEAD = {"v_head.summary.weight": WEIGHT, "v_head.summary.bias": BIAS}
TINY_T5 = T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)
LORA = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}


def load(folder, **given):
    return AutoModelForCausalLMWithValueHead.from_pretrained(str(folder), **given)


def load_random():
    return AutoModelForCausalLMWithValueHead.from_pretrained(gpt2(), v_head_init_strategy="normal")


def in_one_file(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | HEAD, folder / "model.safetensors", metadata={"format": "pt"})


def in_a_shard(folder):
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / first)
    save_file(HEAD, folder / second, metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(weights, first) | dict.fromkeys(HEAD, second)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"metadata": {}}))


def beside_an_adapter(folder):
    model = get_peft_model(gpt2(), LoraConfig(**LORA))
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(folder / "adapter")
    torch.save(HEAD, folder / "adapter" / "pytorch_model.bin")
    return folder / "adapter"


def as_several_processes_wrap_it(folder):
    torch.save({f"module.{key}": value for key, value in HEAD.items()}, folder / "value_head.bin")


FORMS = {
    "in one file": in_one_file,
    "in a shard": in_a_shard,
    "beside an adapter": beside_an_adapter,
    "where the model was converted": lambda folder: torch.save(
        gpt2().state_dict() | HEAD, folder / "pytorch_model.bin"
    ),
    "by LLaMA-Factory": lambda folder: save_file(HEAD, folder / "value_head.safetensors"),
    "by an old LLaMA-Factory": lambda folder: torch.save(HEAD, folder / "value_head.bin"),
    "wrapped for several processes": as_several_processes_wrap_it,
}


@pytest.mark.parametrize("save", FORMS.values(), ids=FORMS)
def test_every_form_in_which_a_value_head_was_saved_is_read(save, tmp_path):
    gpt2().save_pretrained(tmp_path)
    summary = load(save(tmp_path) or tmp_path).v_head.summary
    assert torch.equal(summary.weight, WEIGHT)
    assert torch.equal(summary.bias, BIAS)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"v_head.0.weight": WEIGHT}, "`v_head` that was saved in .* does not fit"),
        ({"v_head.summary.weight": WEIGHT[:, :8], "v_head.summary.bias": BIAS}, "size mismatch"),
        ({"scorer.weight": WEIGHT}, "does not fit this model"),
        ({"v_head.summary.weight": nn.Linear(2, 1)}, "holds more than tensors"),
    ],
)
def test_a_value_head_that_cannot_be_read_is_no_value_head_of_zeros(saved, message, tmp_path):
    gpt2().save_pretrained(tmp_path)
    torch.save(saved, tmp_path / "value_head.bin")
    with pytest.raises(RecipeError, match=message):
        load(tmp_path)


def test_weights_have_the_names_of_the_language_model_and_go_back_under_them(tmp_path):
    model = load_random()
    weights = model.state_dict()
    assert weights.keys() == gpt2().state_dict().keys() | HEAD.keys()
    other = AutoModelForCausalLMWithValueHead.from_pretrained(gpt2())
    other.load_state_dict(weights)
    wrapped = nn.Sequential(model)
    assert "0.transformer.wte.weight" in wrapped.state_dict()
    wrapped.load_state_dict(wrapped.state_dict())
    doubled = {key: value + value for key, value in weights.items()}
    model.save_pretrained(tmp_path, state_dict=doubled)
    for key, value in load(tmp_path).state_dict().items():
        assert torch.equal(other.state_dict()[key], weights[key])
        assert torch.equal(value, doubled[key])


def test_a_subclass_names_its_heads(tmp_path):
    class TwoHeads(AutoModelForCausalLMWithValueHead):
        supported_modules = ("v_head", "q_head")

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.q_head = nn.Linear(32, 2)

    model = TwoHeads.from_pretrained(gpt2())
    model.save_pretrained(tmp_path)
    again = TwoHeads.from_pretrained(str(tmp_path))
    assert torch.equal(again.q_head.weight, model.q_head.weight)
    assert not again.v_head.summary.weight.any()


def test_old_names_of_loading_arguments_are_those_of_today(tmp_path):
    gpt2().save_pretrained(tmp_path)
    model = load(tmp_path, torch_dtype=torch.bfloat16, use_auth_token=True, load_in_8bit=False)
    assert model.pretrained_model.lm_head.weight.dtype == model.dtype == torch.bfloat16
    with pytest.raises(RecipeError, match=r"`torch_dtype` is the old name of `dtype`.*differ"):
        load(tmp_path, torch_dtype="bfloat16", dtype="float32")


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_quantized_loading_names_the_package_that_it_lacks(bits, tmp_path, monkeypatch):
    gpt2().save_pretrained(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="need: pip install bitsandbytes"):
        load(tmp_path, **{bits: True})


@pytest.mark.parametrize("weights", [torch.int8, torch.uint8, torch.bfloat16])
def test_quantized_weights_are_held_to_what_they_resolve(weights):
    model = ActorCritic(load_random())
    assert not FirstBatchCheck(model, None, False, lambda x: x).reduced_precision
    model.policy.packed = nn.Parameter(torch.zeros(2, dtype=weights), requires_grad=False)
    assert FirstBatchCheck(model, None, False, lambda x: x).reduced_precision


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        (AutoModelForCausalLMWithValueHead, GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2))),
        (AutoModelForSeq2SeqLMWithValueHead, T5Model(TINY_T5)),
        (AutoModelForCausalLMWithValueHead, nn.Linear(2, 2)),
    ],
)
def test_a_model_that_gives_no_logits_is_refused_in_words(kind, model):
    with pytest.raises(ValueError, match="has no language-model head"):
        kind.from_pretrained(model)


@pytest.mark.parametrize("shared", ["by the trainer", "by the script", "only attention is trained"])
def test_a_bfloat16_model_trains_beside_frozen_layers(shared):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(gpt2().to(torch.bfloat16))
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    made = create_reference_model(model, num_shared_layers=1) if shared == "by the script" else None
    layers = 1 if shared == "by the trainer" else None
    settings = {"batch_size": 4, "ppo_epochs": 1, "learning_rate": 1e-2, "bf16": False}
    config = PPOConfig(**settings, trainable="attention" if "attention" in shared else "all")
    trainer = PPOTrainer(config, model, made, word_tokenizer(), num_shared_layers=layers)
    queries = [torch.tensor([5, 6])] * 4
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=4)
    stats = trainer.step(queries, responses, [torch.tensor(float(n)) for n in range(4)])
    assert abs(stats["objective/kl"]) < (1e-6 if shared == "by the trainer" else 0.1)
    after = dict(model.named_parameters())
    moved = {name for name, p in after.items() if not torch.equal(p.detach(), before[name])}
    assert moved == {name for name, p in after.items() if p.requires_grad} < after.keys()


def test_a_reward_adapter_scores_as_the_classifier_that_it_was_trained_in(tmp_path):
    ids = torch.tensor([[5, 6, 7], [7, 6, 5]])
    base = gpt2()
    classifier = GPT2ForSequenceClassification(base.config)
    classifier.transformer.load_state_dict(base.transformer.state_dict())
    classifier.config.pad_token_id = 0
    drawn = LORA | {"init_lora_weights": False}
    classifier = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", **drawn))
    classifier.save_pretrained(tmp_path)
    expected = classifier.eval()(ids).logits
    both = {"peft_config": LoraConfig(task_type="CAUSAL_LM", **drawn)}
    both["reward_adapter"] = str(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(base, **both)
    before = model.eval()(ids)[0]
    assert model.supports_rm_adapter
    assert torch.allclose(model.compute_reward_score(ids)[:, -1], expected, atol=1e-6)
    assert torch.equal(model(ids)[0], before)
    trained = str([name for name, p in model.named_parameters() if p.requires_grad])
    assert "default" in trained
    assert not re.search("reward_adapter|score", trained)
    base.save_pretrained(tmp_path / "plain")
    both["reward_adapter"] = str(tmp_path / "plain")
    with pytest.raises(RecipeError, match=r"`.*plain` holds no head .* Give the adapter"):
        AutoModelForCausalLMWithValueHead.from_pretrained(gpt2(), **both)
    with pytest.raises(RecipeError, match="no reward adapter"):
        load_random().compute_reward_score(ids)

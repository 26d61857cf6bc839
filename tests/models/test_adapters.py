"""The reference of a policy with an adapter, and what may be trained, in PPO, GRPO and RLOO."""

import json
from functools import partial

import pytest
import tiny_grpo
import torch
from architectures import gpt2, ppo_trainer
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import Adafactor

from trl_recipes import AutoModelForCausalLMWithValueHead, RecipeError, load_run

IDS = torch.tensor([[5, 6, 7, 8]])
LORA = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}


def lora(base=None, **changes):
    torch.manual_seed(0)
    return get_peft_model(base or gpt2(), LoraConfig(**LORA | changes))


def with_trained_embeddings():
    model = lora()
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


def ia3():
    own = {"target_modules": ["c_attn"], "feedforward_modules": [], "fan_in_fan_out": True}
    return get_peft_model(gpt2(), IA3Config(**own))


def build(kind, model, optimizer=None, peft_config=None, **config):
    if kind != "ppo":
        more = {"optimizers": (optimizer, None), "peft_config": peft_config}
        return tiny_grpo.build(kind, model=model, beta=0.1, more=more, **config)
    settings = {"batch_size": 8, "max_steps": 3, "learning_rate": 1e-2} | config
    more = {"optimizer": optimizer, "peft_config": peft_config}
    parts = {"tokenizer": tiny_grpo.word_tokenizer(), "more": more}
    return ppo_trainer(model, tiny_grpo.variety, [[5, 6], [7]] * 4, **parts, **settings)


def policy_of(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return getattr(model, "policy", model)


@torch.no_grad()
def reference_logits(trainer):
    if hasattr(trainer, "_reference"):
        with trainer._reference() as reference:
            return reference(IDS).logits
    with policy_of(trainer).disable_adapter():
        return policy_of(trainer)(IDS).logits


all_three = pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])


ADAPTERS = {
    "lora": lora,
    "bias": lambda: lora(bias="all"),
    "bias, used": lambda: lora(bias="lora_only", init_lora_weights=False),
    "saved, used": lambda: lora(modules_to_save=["lm_head"], init_lora_weights=False),
    "dora, no task": lambda: lora(task_type=None, use_dora=True),
    "with trained embeddings": with_trained_embeddings,
    "ia3": ia3,
}
# TRL's trainers ask for the same `StartModel` by another door
IN_GROUPS = [("grpo", "lora"), ("grpo", "bias, used"), ("grpo", "ia3"), ("rloo", "bias")]


@pytest.mark.parametrize(("kind", "name"), [*(("ppo", name) for name in ADAPTERS), *IN_GROUPS])
def test_the_reference_of_an_adapter_stays_the_start_model(kind, name):
    trainer = build(kind, ADAPTERS[name]())
    with torch.no_grad():
        start = policy_of(trainer)(IDS).logits
    trainer.train()
    assert torch.equal(reference_logits(trainer), start)
    assert list(policy_of(trainer).peft_config) == ["default"]
    with torch.no_grad():
        assert (policy_of(trainer)(IDS).logits - start).abs().max() > 0.01
    assert trainer.all_stats[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


ADALORA = AdaLoraConfig(target_modules=["c_attn"], total_step=9)
PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


@all_three
@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        (ADALORA, "default", "AdaLoraConfig needs a call and a loss"),
        (PREFIX, "default", "PrefixTuningConfig needs tokens before"),
        (LoraConfig(**LORA), "mine", "trains the adapters mine: .* the one named `default`"),
    ],
    ids=["adalora", "prefix", "named"],
)
def test_an_adapter_that_cannot_be_trained_is_told(kind, config, name, words):
    with pytest.raises(RecipeError, match=words):
        build(kind, get_peft_model(gpt2(), config, adapter_name=name))


@all_three
def test_a_second_adapter_is_refused(kind):
    for make in (partial(build, kind), AutoModelForCausalLMWithValueHead.from_pretrained):
        with pytest.raises(RecipeError, match=r"one already\. Leave it out to train that one, or"):
            make(lora(), peft_config=LoraConfig(**LORA))


@all_three
def test_what_would_train_nothing_or_something_else_is_told(kind):
    with pytest.raises(RecipeError, match="weights that are not this model"):
        build(kind, gpt2(), torch.optim.SGD(gpt2().parameters(), lr=1))
    model = gpt2()
    if kind == "ppo":
        model = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    with pytest.raises(RecipeError, match="Every weight of the model is frozen"):
        build(kind, model.requires_grad_(False))


@all_three
def test_an_optimizer_that_works_out_its_learning_rate_trains(kind):
    model = gpt2()
    before = model.lm_head.weight.clone()
    trainer = build(kind, model, Adafactor(model.parameters(), lr=None))
    trainer.train()
    assert not torch.equal(model.lm_head.weight, before)
    rate = "ppo/learning_rate" if kind == "ppo" else "learning_rate"
    assert trainer.all_stats[-1][rate] > 0


@all_three
def test_an_adapter_loads_from_any_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpt2().save_pretrained("base")
    tiny_grpo.word_tokenizer().save_pretrained("base")
    trainer = build(kind, lora(load_run("base")[0]))
    trainer.train()
    trainer.save_model("out")
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded, _ = load_run(tmp_path / "out")
    with torch.no_grad():
        logits = policy_of(trainer).eval()(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, logits, rtol=0, atol=1e-5)

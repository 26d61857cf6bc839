"""GGUF files, as llama.cpp keeps models: read, trained, and saved as a plain model."""

import importlib.util
import json
import re

import pytest
import torch
from architectures import made
from datasets import Dataset
from launching import run_here
from peft import LoraConfig
from tiny_grpo import build
from tiny_models import SENTENCES, byte_level_tokenizer
from transformers import AutoTokenizer

from trl_recipes import RecipeError, load_run
from trl_recipes.models.loading import load_classifier
from trl_recipes.models.vllm_sampling import VLLMSampler

gguf = pytest.importorskip("gguf", reason="package gguf is not installed")
F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
LAYER = "model.layers.1.mlp.down_proj.weight"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
# llama.cpp's names by transformers'
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
NAMES |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
NAMES |= {f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"}
NAMES |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
NAMES["self_attn.o_proj"] = "attn_output"
SIZES = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size"}
SIZES |= {"block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size"}
SIZES |= {"head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads"}
SIZES |= {"vocab_size": "vocab_size"}


def tiny_llama():
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer(SENTENCES)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    settings = sizes | ids | {"initializer_range": 0.2, "tie_word_embeddings": True}
    return made("llama", **settings).eval(), tokenizer


def interleaved(weight, heads):
    """The rows of a head in llama.cpp's order, whose rotary pairs are neighbors."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer, quantized=F32, architecture="llama"):
    """Write a LLaMA as llama.cpp's converter does, its matrices quantized."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    end = tokenizer.eos_token_id
    fields = {"name": "tiny", "rope_freq_base": 10000.0, "layer_norm_rms_eps": config.rms_norm_eps}
    fields |= {name: getattr(config, key) for name, key in SIZES.items()}
    fields |= {"tokenizer_model": "gpt2", "bos_token_id": end, "eos_token_id": end}
    fields["token_list"] = sorted(state["vocab"], key=state["vocab"].get)
    fields["token_types"] = [3 if i == end else 1 for i in range(config.vocab_size)]
    fields["token_merges"] = [" ".join(pair) for pair in state["merges"]]
    for name, value in (fields | {"chat_template": TEMPLATE}).items():
        getattr(writer, f"add_{name}")(value)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        layer, own = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name).groups()
        own, weight = NAMES[own], tensor.numpy()
        weight = interleaved(weight, heads[own]) if own in heads else weight
        kind = quantized if weight.ndim == 2 else F32
        own = f"blk.{layer}.{own}" if layer else own
        writer.add_tensor(f"{own}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for part in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{part}_to_file")()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", *tiny_llama())


def test_a_file_becomes_the_model_that_it_was_made_of(file, tmp_path):
    original, tokenizer = tiny_llama()
    model, loaded = load_run(file)
    assert loaded.chat_template == TEMPLATE
    ids = loaded(SENTENCES[0], return_tensors="pt").input_ids
    assert ids.tolist() == tokenizer(SENTENCES[:1]).input_ids
    torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert load_run(file, dtype="bfloat16")[0].dtype == torch.bfloat16

    small = load_run(write_gguf(tmp_path / "q8.GGUF", original, tokenizer, Q8_0))[0]
    stored = gguf.quants.quantize(original.state_dict()[LAYER].numpy(), Q8_0)
    unpacked = torch.from_numpy(gguf.quants.dequantize(stored, Q8_0))
    assert torch.equal(small.state_dict()[LAYER], unpacked)


def test_a_recipe_trains_a_file_and_leaves_a_plain_model(file, tmp_path):
    words = ["--model_name_or_path", file, "--max_steps", 2, "--batch_size", 8, "--eval_prompts", 8]
    words += ["--response_length", 4, "--output_dir", tmp_path / "run"]
    for check in ("true", "false"):
        run_here("ppo.py", *words, "--reward_funcs", "UppercaseReward", "--check", check)
        assert (tmp_path / "run").exists() == (check == "false")
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template == TEMPLATE
    trained, start = load_run(tmp_path / "run")[0], load_run(file)[0]
    assert not torch.equal(trained.get_parameter(LAYER), start.get_parameter(LAYER))
    assert getattr(trained.config, "quantization_config", None) is None
    run_here("compare.py", tmp_path / "run", "--output_dir", tmp_path / "compared")


def test_grpo_has_a_reference_and_an_adapter_its_base(file, tmp_path):
    for adapter in (None, LoraConfig(r=2, target_modules="all-linear")):
        model, tokenizer = load_run(file)
        parts = {"data": Dataset.from_dict({"query": SENTENCES}), "more": {"peft_config": adapter}}
        trainer = build(model=model, tokenizer=tokenizer, beta=0.1, **parts)
        trainer.train()
        assert trainer.all_stats[0]["kl"] < 1e-6
        trainer.save_model(tmp_path / "model")
        ids = tokenizer(SENTENCES[0], return_tensors="pt").input_ids
        logits = trainer.model.eval()(ids).logits
        torch.testing.assert_close(load_run(tmp_path / "model")[0](ids).logits, logits)
        assert (logits - tiny_llama()[0](ids).logits).abs().max() > 1e-3


def test_a_file_is_the_trunk_of_a_new_classifier(file):
    with pytest.raises(RecipeError, match="is no text classifier"):
        load_classifier(file)
    model, tokenizer = load_classifier(file, new_head=True, num_labels=1, pad_token_id=0)
    assert torch.equal(model.get_parameter(LAYER), tiny_llama()[0].get_parameter(LAYER))
    assert model(**tokenizer(SENTENCES[0], return_tensors="pt")).logits.shape == (1, 1)


def test_what_cannot_be_unpacked_is_told_in_one_sentence(file, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="is a GGUF file, which is unpacked"):
        load_run(file, quantization_config=object())
    sampler = VLLMSampler.__new__(VLLMSampler)
    sampler.model, sampler.mode = load_run(file)[0], "colocate"
    with pytest.raises(RecipeError, match="vLLM would keep the GGUF file's quantization"):
        sampler._init_vllm()
    other = write_gguf(tmp_path / "other.gguf", *tiny_llama(), architecture="rwkv9")
    with pytest.raises(RecipeError, match=r"rwkv9 is not supp.* of an architecture or a q"):
        load_run(other)
    other.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(RecipeError, match="The file is damaged, or"):
        load_run(other)
    with pytest.raises(RecipeError, match=r"there is no file or folder `gone\.gguf`"):
        load_run("gone.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs a package: `pip install 'trl_recipes\[gguf\]'`"):
        load_run(file)

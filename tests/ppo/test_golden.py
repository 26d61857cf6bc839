"""`step` computes what TRL 0.11.4's computed: every statistic, and the model after three calls."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["default", "fixed_kl", "kl_abs", "kl_mse", "kl_full", "score_clip", "whiten_rewards"]
CASES += ["gamma_lam", "grad_clip", "target_kl_stop"]


def load(kind):
    folder = GOLDEN / kind
    plain, with_head = {
        "causal": (AutoModelForCausalLM, AutoModelForCausalLMWithValueHead),
        "seq2seq": (AutoModelForSeq2SeqLM, AutoModelForSeq2SeqLMWithValueHead),
    }[kind]
    model = with_head.from_pretrained(str(folder / "model"))
    model.v_head.summary.load_state_dict(load_file(folder / "v_head.safetensors"))
    ref_model = plain.from_pretrained(folder / "ref_model", dtype=torch.float32)
    return model, ref_model, AutoTokenizer.from_pretrained(folder / "tokenizer")


def run_case(kind, case, **changes):
    """Three calls of `step` on the recorded inputs; returns their statistics and the trainer."""
    recorded = json.loads((GOLDEN / kind / "cases.json").read_text())
    calls = json.loads((GOLDEN / kind / "inputs.json").read_text())
    config = recorded["base"] | recorded["cases"][case]["config"] | changes
    trainer = PPOTrainer(PPOConfig(**config), *load(kind))
    given = ("queries", "responses", "scores")
    rows = [trainer.step(*([torch.tensor(x) for x in call[k]] for k in given)) for call in calls]
    return rows, recorded["cases"][case]["stats"], calls, trainer


@torch.no_grad()
def probe(trainer, kind, call):
    model = trainer.value_head_model
    for row, (query, response) in enumerate(zip(call["queries"], call["responses"], strict=True)):
        q, r = torch.tensor([query]), torch.tensor([response])
        inputs = {"input_ids": q, "decoder_input_ids": r}
        if kind == "causal":
            inputs = {"input_ids": torch.cat([q, r], 1)}
        logits, _, values = model(**inputs)
        yield row, logits[0], values[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_three_steps_give_the_figures_of_trl_0_11_4(kind, case):
    rows, recorded, calls, trainer = run_case(kind, case)
    for step, (row, expected) in enumerate(zip(rows, recorded, strict=True)):
        for key, value in expected.items():
            torch.testing.assert_close(
                torch.as_tensor(row[key], dtype=torch.float64),
                torch.as_tensor(value, dtype=torch.float64),
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, key=key, step=step: f"{key} of call {step}: {text}",
            )
    recorded_probe = load_file(GOLDEN / kind / "probe.safetensors")
    for row, logits, values in probe(trainer, kind, calls[0]):
        for what, found in (("logits", logits), ("values", values)):
            expected = recorded_probe[f"{case}.{row}.{what}"]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_every_recorded_case_is_tested():
    for kind in ("causal", "seq2seq"):
        assert list(json.loads((GOLDEN / kind / "cases.json").read_text())["cases"]) == CASES

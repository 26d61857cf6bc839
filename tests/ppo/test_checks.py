"""What `step` and the constructor refuse, each with the argument and the row."""

import pytest
import torch
from architectures import ARCHITECTURES, SMALL, made
from peft import LoraConfig
from test_trainer import VOCAB, Words, build, gpt2, rollout_of, weights
from tiny_grpo import same
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel, ProphetNetConfig
from trl import ModelConfig, get_peft_config

from trl_recipes import PPOConfig, PPOTrainer, RecipeError
from trl_recipes.models.loading import check_language_model, check_lengths

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
EXPERTS = SMALL | {"num_local_experts": 4, "num_key_value_heads": 1}


def at(row, value):
    """Replace one row."""
    return lambda rows: [value if i == row else old for i, old in enumerate(rows)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": lambda s: s[:3]}, "Expected 4 scores, one a sample (`batch_size=4`), got 3."),
        ({"queries": lambda q: q[:2]}, "Expected 4 queries"),
        ({"responses": lambda r: [*r, r[0]]}, "Expected 4 responses"),
        ({"queries": lambda _: torch.ones(4, 2)}, "`queries` must be a list of tensors, got T"),
        ({"scores": at(2, 0.5)}, "`scores[2]` must be a tensor, got float."),
        ({"scores": at(1, torch.tensor(float("nan")))}, "`scores[1]` is nan."),
        ({"scores": at(1, torch.ones(2))}, "`scores[1]` must be one number, got shape (2,)."),
        ({"responses": at(3, torch.ones(1, 2).long())}, "`responses[3]` must be one-dimensional"),
        ({"responses": at(2, torch.tensor([]).long())}, "`responses[2]` has no tokens. Set `min_"),
        ({"queries": at(0, torch.tensor([]).long())}, "`queries[0]` has no tokens."),
        ({"responses": at(1, torch.tensor([VOCAB]))}, f"`responses[1]` holds token id {VOCAB}, "),
        ({"queries": at(1, torch.tensor([-1]))}, "`queries[1]` holds token id -1, outside"),
        ({"queries": at(0, torch.ones(62).long())}, "Sample 0 is 67 tokens long"),
        (
            {"response_masks": lambda _: [torch.ones(2)] * 4},
            "`response_masks[0]` has 2 entries, but `responses[0]` has 5 tokens.",
        ),
        ({"response_masks": lambda _: [torch.zeros(n) for n in (5, 2, 4, 7)]}, "masks every token"),
        ({"model": "t5", "responses": lambda rows: [row[:1] for row in rows]}, "start token (0) a"),
    ],
)
def test_step_names_the_argument_and_the_row(changes, message):
    trainer = build(changes.get("model", "gpt2"))
    given = dict(zip(("queries", "responses", "scores"), rollout_of(trainer), strict=True))
    given |= {name: change(given.get(name)) for name, change in changes.items() if name != "model"}
    before = weights(trainer)
    with pytest.raises(RecipeError) as error:
        trainer.step(**given)
    assert message in str(error.value)
    assert same(weights(trainer), before)


def test_masked_tokens_are_not_trained_on():
    trainer, other = build(), build()
    queries, responses, scores = rollout_of(trainer)
    masks = [torch.ones(len(r)) for r in responses]
    masks[0][2:] = 0
    changed = [torch.cat([responses[0][:2], torch.tensor([9, 9, 9])]), *responses[1:]]
    first = trainer.step(queries, responses, scores, masks)
    second = other.step(queries, changed, scores, masks)
    assert first["ppo/loss/total"] == pytest.approx(second["ppo/loss/total"], abs=1e-6)


def new(model=None, ref_model=None, tokenizer=None, peft_config=None, **config):
    given = (model or gpt2(), ref_model, tokenizer or Words())
    return PPOTrainer(PPOConfig(batch_size=4, **config), *given, peft_config=peft_config)


class Large(Words):
    def __len__(self):
        return VOCAB + 1


def wider():
    model = gpt2()
    model.resize_token_embeddings(VOCAB + 8)
    return model


def with_itself():
    model = gpt2()
    return new(model, model)


def of_two_berts():
    half = BertConfig(**SMALL)
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(half, half))


def schedule_of_another_optimizer():
    model = gpt2()
    schedule = LambdaLR(SGD(model.parameters()), lambda step: 1)
    return PPOTrainer(PPOConfig(batch_size=4), model, None, Words(), lr_scheduler=schedule)


def lora_and_attention():
    return new(peft_config=LoraConfig(task_type="CAUSAL_LM"), trainable="attention")


def both_ways(kind, **settings):
    """A model whose tokens see those behind them."""
    return lambda: new(made(kind, vocab_size=VOCAB, **settings))


XLNET = {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 48}
BERT = {k: SMALL[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_itself, "the same object"),
        (lambda: new(ref_model=wider()), f"vocabulary of {VOCAB + 8}, `model` one of {VOCAB}"),
        (lambda: new(tokenizer=Large()), f"knows {VOCAB + 1} tokens.* only {VOCAB}.*own to"),
        (lambda: new(3), "`model` must be a name, a folder, or a language model"),
        (lambda: new(gpt2().transformer), "A GPT2Model has no language-model head"),
        (lambda: new(of_two_berts()), "whose decoder keeps the head to itself"),
        (both_ways("xlnet", **XLNET), "XLNetLMHead"),
        (both_ways("electra", **BERT), "ElectraForCausalLM is no causal language"),
        (
            both_ways("bert", **BERT),
            "BertLMHeadModel is no causal.*is_decoder: true",
        ),
        (lambda: check_lengths(50, 20, gpt2()), r"holds 64\. Lower `response_length` to 14"),
        (lambda: check_lengths(65, 4, ARCHITECTURES["bart"]()), "coder and decoder hold 64 each"),
        (lambda: check_lengths(4, 65, ARCHITECTURES["bart"]()), "coder and decoder hold 64 each"),
        (lambda: check_language_model(ProphetNetConfig(pad_token_id=1), "x"), "whose pad_token_id"),
        (
            schedule_of_another_optimizer,
            "`lr_scheduler` is of an optimizer that is not the trainer",
        ),
        (lora_and_attention, "`trainable: attention` trains weights of the full"),
    ],
)
def test_what_does_not_fit_together_is_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_an_encoder_decoders_prompt_and_response_may_each_be_as_long_as_the_context():
    check_lengths(64, 64, ARCHITECTURES["bart"]())
    check_lengths(500, 500, ARCHITECTURES["t5"]())  # which knows distances alone


def test_a_missing_pad_token_is_filled_in_by_an_end_token_or_refused(tokenizer):
    assert tokenizer.pad_token is None
    model = gpt2()
    model.resize_token_embeddings(len(tokenizer))
    new(model, tokenizer=tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="neither a pad nor an eos token"):
        new(tokenizer=tokenizer)


def random_logits(logits, module):
    return logits + torch.rand_like(logits)


def other_in_train_mode(logits, module):
    return logits * (1 + module.training)


def mixed_rows(logits, module):
    return logits + logits.mean((0, 1))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (random_logits, "draws at random"),
        (other_in_train_mode, "In train mode the model computes"),
        (mixed_rows, "does the model mix rows"),
        (None, "Precision: the model runs in autocast"),
    ],
)
def test_the_cause_of_a_first_batch_that_differs_is_named(change, cause):
    trainer = build()

    def changed(module, _, output):
        output.logits = change(output.logits, module)
        return output

    trainer.first_batch.reduced_precision = change is None
    if change is not None:
        trainer.policy_model.train().register_forward_hook(changed)
    else:  # what bfloat16 does to 135 million parameters
        trainer.first_batch.check("New and old", 0.04 * torch.randn(32, 48))
    with pytest.raises(RecipeError, match=cause):
        trainer.first_batch.check("New and old", torch.ones(1, 1))


def test_a_reference_that_should_agree_but_does_not_stops_the_run():
    trainer, log_ratio = build(), torch.tensor([[0.0, 0.3]])
    with pytest.raises(RecipeError, match=r"log-probabilities differ by 0.3.*Neither dropout, ch"):
        trainer.first_batch.check("New and old", log_ratio)
    trainer.first_batch.check("New and old", log_ratio * 1e-4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "does not train under DeepSpeed.*fsdp2.yaml"),
        (FSDP | {"FSDP_VERSION": "1"}, "FSDP version 2, not 1.*fsdp2.yaml"),
        (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "would leave reward models.*fsdp2"),
    ],
)
def test_launches_that_cannot_be_trained_are_refused_before_a_model_is_loaded(
    environment, message, monkeypatch
):
    config = PPOConfig(report_to="none")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        PPOTrainer(config, "no/such-model")


def with_lora(folder, *names):
    peft_config = get_peft_config(ModelConfig(use_peft=True, lora_target_modules=list(names)))
    return PPOTrainer(args=PPOConfig(batch_size=2), model=str(folder), peft_config=peft_config)


def test_one_module_of_an_adapter_by_name_is_found_and_others_are_named(tiny_gpt2):
    """TRL turns a list of one name into a text, which peft reads as a pattern of the whole path."""
    named = with_lora(tiny_gpt2, "c_attn").model.named_parameters()
    trained = [name for name, p in named if p.requires_grad and "lora" in name]
    assert trained
    assert all("c_attn" in name for name in trained)
    for names in (("nope",), ("nope", "neither")):
        with pytest.raises(
            RecipeError, match=r"no module named .*nope\. Choose among: c_attn, c_fc"
        ):
            with_lora(tiny_gpt2, *names)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("t5", {}, "vLLM samples from causal models, and this one is an encoder-decoder"),
        ("gpt2", {}, "vLLM loads the model by its name, and it has none"),
        ("gpt2", {"vllm_mode": "server"}, "from GPU to GPU, and there is none: use colocate"),
        ("by name", {}, "vLLM did not start. vLLM is not available"),
    ],
)
def test_what_vllm_cannot_sample_from_is_refused(model, settings, message, tiny_gpt2, monkeypatch):
    monkeypatch.setattr("trl.generation.vllm_generation.is_vllm_available", lambda: False)
    policy = str(tiny_gpt2) if model == "by name" else ARCHITECTURES[model]()
    with pytest.raises(RecipeError, match=f"`use_vllm`: .*{message}"):
        PPOTrainer(PPOConfig(use_vllm=True, **settings), policy, None, Words())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((name, None) for name in ("gpt2", "bart", "t5")),
        ("phimoe", EXPERTS | {"router_jitter_noise": 0.5}),  # it draws experts in train mode, too
        ("mixtral", EXPERTS | {"router_jitter_noise": 0.5}),
        ("mixtral", EXPERTS | {"output_router_logits": True}),
        ("gpt_neox", SMALL | {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
    ],
)
def test_chance_is_off_by_whatever_name_and_train_mode_on(kind, settings):
    torch.manual_seed(0)
    trainer = build(kind if settings is None else made(kind, **settings))
    for _ in range(2):
        trainer.model.train()  # as a user may call it
        stats = trainer.step(*rollout_of(trainer))  # the first-batch check holds the ratio to 1
        assert stats["ppo/skipped_minibatches"] == 0
    assert trainer.model.training
    rollout = trainer._collate(*rollout_of(trainer)[:2])
    assert torch.equal(trainer.model(*rollout[:4])[0], trainer.model(*rollout[:4])[0])

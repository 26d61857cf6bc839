"""What a run of GRPO or RLOO leaves, refuses, warns of and saves."""

import pytest
import torch
from architectures import ARCHITECTURES, OTHERS
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tiny_grpo import build, prompts, same, tiny, weights, without_times
from tiny_grpo import word_tokenizer as words
from transformers import AutoModelForCausalLM, GenerationConfig

from trl_recipes import GRPOConfig, RecipeError, load_run
from trl_recipes.stats import load_stats


def test_the_run_folder_and_the_saved_model(tmp_path):
    model = tiny()
    model.generation_config.update(eos_token_id=[9, 5], top_k=3, do_sample=True, pad_token_id=None)
    settings = model.generation_config.to_dict()  # saved as the start model had them
    trainer = build(model=model, output_dir=str(tmp_path), save_steps=2)
    trainer.train()
    trainer.save_model()
    names = {"all_stats.jsonl", "samples.jsonl", "training.json", "checkpoints", "model"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"config.yaml", "plots"}
    assert without_times(load_stats(tmp_path)) == without_times(trainer.all_stats)
    samples = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 3 * 2  # one response of each prompt
    assert GenerationConfig.from_pretrained(tmp_path / "model").to_dict() == settings
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded, tokenizer = load_run(tmp_path)
    assert same(weights(trainer), model.state_dict())
    assert same(loaded.state_dict(), model.state_dict())
    assert tokenizer.eos_token_id == 0


def test_a_merged_adapter_is_a_plain_model_with_the_adapters_logits(tmp_path):
    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    settings = {"output_dir": str(tmp_path), "beta": 0.1, "merge_adapter": True}
    trainer = build(more={"peft_config": lora}, **settings)
    trainer.train()
    assert trainer.ref_model is None
    assert trainer.all_stats[-1]["objective/kl"] != 0
    trainer.save_model()
    saved, ids = load_run(tmp_path)[0], torch.tensor([[5, 6, 7]])
    assert not isinstance(saved, PeftModel)
    expected = trainer.model.eval()(ids).logits
    torch.testing.assert_close(saved(ids).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(tiny().eval()(ids).logits, expected, atol=1e-3)


def test_the_description_tells_the_arithmetic_and_about_the_loss():
    said = build(mini_batch_size=4, steps_per_generation=4, num_iterations=2).describe()
    assert "each of 8 responses, 4 to a prompt, gone over 2 times" in said
    assert "stays near 0 however well it goes" in said
    assert "rewarded by variety" in said
    assert "7 prompts of 1 to 4 tokens get responses" in said
    stream = build(data=prompts(16).to_iterable_dataset()).describe()
    assert "Prompts of a stream get responses of 1 to 6" in stream


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_generations": 6}, r"`batch_size` \(64\) must be a mult.*60 or 66.*: 1, 2, 4"),
        ({"num_generations": 1}, r"`num_generations` is 1\..*use 2 or more"),
        ({"num_generations": 128}, "Set batch_size to 128, or num_generations to a div"),
        ({"batch_size": 10, "mini_batch_size": 4}, r"multiple of `mini_batch_size` \(4\)"),
        ({"response_length": 5, "max_completion_length": 6}, "two names of one thing"),
        ({"beta": -0.1}, "`beta` is -0.1"),
        ({"max_prompt_length": 64}, "`max_prompt_length` is TRL's, and no .* as you load them"),
    ],
)
def test_settings_that_cannot_work_are_told(settings, words):
    with pytest.raises(RecipeError, match=words):
        GRPOConfig(**settings)


def test_both_ways_to_write_a_batch():
    ours = GRPOConfig(batch_size=32, mini_batch_size=8, response_length=20)
    trls = GRPOConfig(
        per_device_train_batch_size=8, gradient_accumulation_steps=4, max_completion_length=20
    )
    names = ("batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    names += ("generation_batch_size", "max_completion_length", "response_length")
    sizes = [[getattr(config, name) for name in names] for config in (ours, trls)]
    assert sizes == [[32, 8, 4, 32, 20, 20]] * 2


def of_answer(completions, answer, **_):
    return [float(a in c) for a, c in zip(answer, completions, strict=True)]


NO_ANSWER = {"eval_dataset": {"held_out": prompts()}}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build(data=prompts(1)), "1 prompts, fewer than the 2 of one batch"),
        (lambda: build(data=Dataset.from_dict({"prompt": []})), "holds no rows"),
        (lambda: build(response_length=62), r"4 tokens.*Lower `response_length` to 60"),
        (lambda: build(tokenizer=words(eos_token=None)), "no eos token"),
        (lambda: build(rewards=None), "`reward_funcs` is missing"),
        (lambda: build(model=ARCHITECTURES["t5"]()), r"encoder-decoder.*recipes/ppo_seq2seq\.py"),
        (lambda: build(model=OTHERS["rwkv"]()), r"RwkvForCausalLM reads padding.*with PPO"),
        (lambda: build(resume_from_checkpoint="true"), "needs `output_dir`"),
        (
            lambda: build(more={"eval_dataset": prompts(8, query=["w3 " * 62] * 8)}),
            r"`eval_dataset`: The longest prompt \(62 tokens\)",
        ),
        (
            lambda: build(rewards=of_answer, data=prompts(answer=["w1"] * 7), more=NO_ANSWER),
            "`held_out`: Reward function `of_answer` wants `answer`",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_before_training(make, words):
    with pytest.raises((RecipeError, TypeError), match=words):
        make().train()


def test_groups_without_spread_are_said_once(tmp_path, caplog):
    def flat(completions, **_):
        return [1.0] * len(completions)

    trainer = build(rewards=flat, output_dir=str(tmp_path), max_steps=6, save_steps=0)
    start = weights(trainer)
    trainer.train()
    said = (tmp_path / "alarms.jsonl").read_text().splitlines()
    assert len(said) == 1
    assert '"step": 3' in said[0]
    assert "nothing to learn from" in said[0]
    assert sum("nothing to learn from" in record.message for record in caplog.records) == 1
    assert all(row["groups/equal"] == 1 for row in trainer.all_stats)
    assert all(torch.allclose(start[k], v, atol=1e-6) for k, v in weights(trainer).items())


def test_steps_without_a_finite_gradient_change_nothing_and_end_the_run(tmp_path):
    def huge(completions, **_):
        return [3e38 * (-1) ** i for i in range(len(completions))]

    settings = {"output_dir": str(tmp_path), "max_steps": 6, "save_steps": 0}
    trainer = build(rewards=huge, scale_rewards="none", **settings)
    start = weights(trainer)
    with pytest.raises(RecipeError, match="3 optimizer steps in a row"):
        trainer.train()
    assert same(start, weights(trainer))
    assert [row["skipped_steps"] for row in trainer.all_stats] == [1, 1]


def test_any_end_token_of_a_chat_model_ends_a_response():
    model, seen = tiny(), []
    model.generation_config.eos_token_id = [0, 5]

    def look(completion_ids, **_):
        seen.append(completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    settings = {"mask_truncated_completions": True, "max_steps": 1, "response_length": 12}
    trainer = build(model=model, rewards=look, data=prompts(16), batch_size=64, **settings)
    trainer.train()
    # TRL < 1.15 knows the tokenizer's own alone
    ends = {0, 5} if hasattr(trainer, "eos_token_ids") else {0}
    assert not [ids for ids in seen[-1] if ends & set(ids[:-1])]
    cut = sum(ids[-1] not in ends for ids in seen[-1]) / len(seen[-1])
    assert 0 < cut < 1
    assert trainer.all_stats[0]["tokens/masked_share"] == pytest.approx(cut)
    assert trainer.model.generation_config.eos_token_id == [0, 5]


@pytest.mark.parametrize("name", ["bamba", "lfm2"])
def test_hybrids_train(name):
    trainer = build(model=OTHERS[name](), beta=0.1, max_steps=2)
    start = weights(trainer)
    trainer.train()
    assert trainer.all_stats[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert not same(start, weights(trainer))

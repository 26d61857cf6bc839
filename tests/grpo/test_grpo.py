"""GRPOTrainer and RLOOTrainer: TRL's algorithms, our data, rewards and run folder."""

import copy

import pytest
import torch
import trl
from architectures import gpt2
from datasets import Dataset
from tiny_grpo import KINDS, build, prompts, same, tiny, variety, weights
from tiny_grpo import word_tokenizer as words
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.trainer import base_trainer

from trl_recipes.grpo.trainer import GroupTrainer
from trl_recipes.stats import stat_key

both = pytest.mark.parametrize("kind", KINDS)


class Snapshots(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append({k: v.detach().clone() for k, v in model.state_dict().items()})


@both
def test_training_is_that_of_trls_own_trainer(kind, tmp_path):
    """On prompts of one length, which need no padding; to the bit but for TRL's fused head."""
    data = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(2, 9)]})
    ours = build(kind, data=data, beta=0.1, max_steps=3)
    assert isinstance(ours, getattr(trl, f"{kind.upper()}Trainer"))
    ours.train()
    config_class = getattr(trl, f"{kind.upper()}Config")
    renamed = hasattr(config_class, "activation_checkpointing")  # in transformers 5.23
    settings = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6}
    settings |= {"max_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    settings |= {"beta": 0.1, "seed": 0, "bf16": False, "disable_dropout": True, "use_cpu": True}
    settings |= {"report_to": "none", "save_strategy": "no", "logging_steps": 1}
    settings |= {"activation_checkpointing" if renamed else "gradient_checkpointing": False}
    config = config_class(output_dir=str(tmp_path), disable_tqdm=True, **settings)
    tiny().save_pretrained(tmp_path / "model")
    theirs = getattr(trl, f"{kind.upper()}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        reward_funcs=variety,
        args=config,
        train_dataset=data,
        processing_class=words(),
    )
    theirs.train()
    ids = torch.tensor([[5, 6, 7, 8]])
    logits = [trainer.model.eval()(ids).logits for trainer in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    if not hasattr(trl.trainer.utils, "add_fused_lm_head"):
        assert same(weights(ours), weights(theirs))
    for ours_row, theirs_row in zip(ours.all_stats, theirs.state.log_history, strict=False):
        logged = {k: v for k, v in theirs_row.items() if "time" not in k and v is not None}
        assert {key: ours_row[key] for key in logged} == pytest.approx(logged, rel=1e-5, abs=1e-5)


@both
def test_on_a_cpu_log_probabilities_of_plain_logits_are_those_of_trls_head(kind):
    """With the fused head of TRL >= 1.15, and to the bit without."""
    trainer, ids = build(kind, temperature=0.7), torch.randint(1, 64, (8, 9))
    given = (trainer.model, ids, torch.ones_like(ids), 5, 4, True)
    ours = trainer._get_per_token_logps_and_entropies(*given)
    with trainer._with_fused_head():
        theirs = super(GroupTrainer, trainer)._get_per_token_logps_and_entropies(*given)
    for mine, its in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    assert ours[0].requires_grad
    assert not ours[1].requires_grad


def test_a_copy_of_a_trained_policy_stays_where_it_is():
    """TRL >= 1.15 gives the policy a `forward` in which the original is bound."""
    trainer = build(beta=0.1)
    trainer.train()
    policy, ids = trainer.accelerator.unwrap_model(trainer.model).eval(), torch.tensor([[5, 6, 7]])
    kept = copy.deepcopy(policy)
    before = policy(ids).logits
    with torch.no_grad():
        policy.transformer.wte.weight.mul_(1.5)
    assert torch.equal(kept(ids).logits, before)
    assert not torch.equal(policy(ids).logits, before)
    assert "forward" not in vars(policy)
    trainer.train()  # with the head that TRL wants, again
    assert trainer.evaluate(prompts(8).rename_column("query", "prompt"))["eval_reward"] > 0


def test_nothing_of_a_run_leaves_the_machine_unless_asked(monkeypatch):
    sent = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **_: sent.append(args))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    build()
    assert sent == []
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    build()
    assert len(sent) == 1


@both
def test_every_logged_key_is_explained(kind):
    trainer = build(kind, beta=0.1, max_steps=1, metrics=["UppercaseReward"])
    trainer.train()
    (row,) = trainer.all_stats
    assert [key for key in row if stat_key(key) is None] == []
    assert stat_key("completions/max_terminated_length").meaning.startswith("Mean, least or great")
    assert "ended by themselves" in stat_key("completions/max_terminated_length").meaning


@both
def test_the_kl_of_a_response_is_its_summed_log_ratio(kind):
    """Of prompts of different lengths, each passed through the model alone, without padding."""
    snapshots = Snapshots()
    trainer = build(kind, beta=0.1, max_steps=2, more={"callbacks": [snapshots]})
    trainer.train()
    batch, before, start = trainer._buffered_inputs[0], gpt2(), tiny().eval()
    before.load_state_dict(snapshots.after[0])  # the last batch was sampled with these
    kls = []
    for row in range(8):
        query = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        response = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        ids = torch.cat([query, response])[None]
        logits = [model.eval()(ids).logits[0, len(query) - 1 : -1] for model in (before, start)]
        first, second = (each.log_softmax(-1).gather(1, response[:, None]) for each in logits)
        kls.append((first - second).sum().item())
    lengths = batch["prompt_mask"].sum(1)
    assert lengths.min() < lengths.max()
    assert trainer.all_stats[-1]["objective/kl"] == pytest.approx(sum(kls) / 8, abs=1e-5)
    assert abs(sum(kls)) > 0.1


@both
def test_counts_and_scores_are_those_of_the_texts(kind):
    seen, generated = [], 0

    def spy(prompts, completions, completion_ids, **_):
        scores = variety(completions)
        if len(seen) == 2:  # one group without spread beside one that has some
            scores[:4] = [1.0] * 4
        seen.append((prompts, completions, [len(ids) for ids in completion_ids], scores))
        return scores

    trainer = build(kind, rewards=spy, max_steps=3)
    trainer.train()
    for number, ((asked, texts, lengths, values), row) in enumerate(
        zip(seen[1:], trainer.all_stats, strict=True), 1
    ):
        scores, generated = torch.tensor(values), generated + sum(lengths)
        groups, spread = scores.view(2, 4), scores.view(2, 4).std(1, correction=0)
        equal = sum(len(set(group.tolist())) == 1 for group in groups) / 2
        expected = {"step": number, "episode": 8 * number, "tokens/generated": generated}
        expected |= {"tokens/responses_len_mean": sum(lengths) / 8}
        expected |= {"env/reward_mean": scores.mean().item()}
        expected |= {"env/reward_std": scores.std(correction=0).item()}
        expected |= {"groups/reward_std": spread.mean().item(), "groups/equal": equal}
        expected |= {"samples/unique": len(set(texts)) / 8}
        if kind == "grpo":  # that of RLOO is TRL's spread of the whole batch
            expected["frac_reward_zero_std"] = equal
        assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        assert asked == [asked[0]] * 4 + [asked[4]] * 4
    assert trainer.all_stats[1]["groups/equal"] == 0.5


def test_a_row_stands_for_each_step_also_where_a_batch_is_used_again():
    trainer = build(num_iterations=2, max_steps=4, beta=0.1)
    trainer.train()
    assert [row["episode"] for row in trainer.all_stats] == [8, 8, 16, 16]
    fresh = ["env/reward_mean" in row for row in trainer.all_stats]
    assert fresh == ["objective/kl" in row for row in trainer.all_stats] == [True, False] * 2


def test_penalties_weigh_minus_one_metrics_nothing_and_an_unscored_sample_is_no_0():
    def length_penalty(completions, **_):
        return [float(len(text.split())) for text in completions]

    length_penalty.default_weight = -1.0

    async def later(completions, **_):
        return [None if i == 0 else 2.0 for i in range(len(completions))]

    trainer = build(rewards=[variety, length_penalty], more={"metrics": [later]}, max_steps=1)
    trainer.train()
    (row,) = trainer.all_stats
    total = row["rewards/variety/mean"] - row["rewards/length_penalty/mean"]
    assert row["env/reward_mean"] == row["reward"] == pytest.approx(total)
    assert row["metrics/later/mean"] == 2
    assert "rewards/later/mean" not in row
    trainer = build(rewards=[later], max_steps=1)
    trainer.train()
    names = ("rewards/later/mean", "env/reward_mean", "groups/equal")  # as in TRL
    assert [trainer.all_stats[0][name] for name in names] == [2, 2, 1]


def test_the_models_own_generation_settings_are_set_aside():
    """Settings that would allow one token alone, and that a log-probability knows nothing of."""
    model = tiny()
    model.generation_config.suppress_tokens = [i for i in range(64) if i != 7]
    model.generation_config.min_new_tokens = 6
    trainer = build(model=model)
    ids = [token for row in trainer._generate(["w3 w4"] * 32)[1] for token in row]
    assert len(set(ids)) > 20
    assert model.generation_config.min_new_tokens == 6  # and put back


@both
def test_the_reference_is_the_start_model_whatever_its_name_says(kind, tmp_path):
    tiny(seed=1).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.5)  # no longer what lies in the folder
    model.resize_token_embeddings(70)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = build(kind, model, beta=0.1)
    trainer.train()
    assert same(start, trainer.ref_model.state_dict())
    assert trainer.all_stats[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert trainer.all_stats[-1]["objective/kl"] > 1e-3


def test_without_beta_there_is_no_reference_and_no_kl():
    trainer = build(beta=0.0)
    trainer.train()
    assert trainer.ref_model is None
    assert not {"kl", "objective/kl"} & set(trainer.all_stats[-1])

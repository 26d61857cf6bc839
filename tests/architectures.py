"""Tiny models of many architectures, with random weights."""

from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl_recipes import PPOConfig, PPOTrainer

VOCAB = 64
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}
SEQ2SEQ = {"vocab_size": VOCAB, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}
_T5 = SEQ2SEQ | {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_T5["decoder_start_token_id"] = 0
_BART = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "bos_token_id": 0}
_BART |= {"max_position_embeddings": 64, "decoder_start_token_id": 1, "forced_eos_token_id": None}
_OPT = {"vocab_size": VOCAB, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48}
_OPT |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
_OPT |= {"init_std": 0.2, "pad_token_id": 0, "dropout": 0.0}
_BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
_GEMMA2 = SMALL | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4}
_MAMBA = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_HYBRID = {k: v for k, v in SMALL.items() if k not in ("bos_token_id", "eos_token_id")}
_HYBRID |= {"num_key_value_heads": 1, "pad_token_id": 0}
_BAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
_MIXED = {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2}
_RWKV = {"hidden_size": 32, "attention_hidden_size": 32, "context_length": 64}
_PROPHET = {"hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0}
_PROPHET |= {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 2}
_PROPHET |= {"num_decoder_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1}
_PROPHET |= {"decoder_start_token_id": 1, "eos_token_id": 2}
_T5GEMMA = {"encoder": _HYBRID | {"head_dim": 16}, "decoder": _HYBRID | {"head_dim": 16}}


def made(kind, **settings):
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return model.from_config(config)


def gpt2(**changes):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": VOCAB}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return made("gpt2", **sizes, **ends, initializer_range=0.2, **changes)


# Those that every test of PPO goes through.
ARCHITECTURES = {
    "gpt2": gpt2,
    "llama": lambda: made("llama", **SMALL),
    "qwen2": lambda: made("qwen2", **SMALL, num_key_value_heads=1),
    "gpt_neox": lambda: made("gpt_neox", **SMALL),
    "t5": lambda: made("t5", **_T5),
    "bart": lambda: made("bart", **SEQ2SEQ, **_BART),
}

# Those that do something of their own: positions from the mask, none at all, logits bent after the
# head, windows; and one without keys and values.
UNUSUAL = {
    "opt": lambda: made("opt", **_OPT),
    "bloom": lambda: made("bloom", vocab_size=VOCAB, **_BLOOM),
    "gemma2": lambda: made("gemma2", **_GEMMA2, final_logit_softcapping=2.0),
    "mamba": lambda: made("mamba", **_MAMBA),
}

# Hybrids, recurrent ones and encoder-decoders of other kinds, which PPO trains, the first five
# through transformers' own `generate`.
OTHERS = {
    "lfm2": lambda: made("lfm2", **_HYBRID, layer_types=["conv", "full_attention"]),
    "bamba": lambda: made("bamba", **_HYBRID, **_BAMBA, attn_layer_indices=[1]),
    "minimax": lambda: made("minimax", **_HYBRID, **_MIXED),
    "rwkv": lambda: made("rwkv", vocab_size=VOCAB, num_hidden_layers=2, **_RWKV),
    "prophetnet": lambda: made("prophetnet", vocab_size=VOCAB, **_PROPHET),
    "switch": lambda: made("switch_transformers", **_T5, num_decoder_layers=2, num_experts=2),
    "t5gemma": lambda: made("t5gemma", **_T5GEMMA, vocab_size=VOCAB, decoder_start_token_id=1),
}


def ppo_trainer(model, reward, data, folder=None, tokenizer=None, more=None, **config):
    """A quiet PPOTrainer; `data` are queries, columns or a data set, `more` goes to the trainer."""
    output = {} if folder is None else {"output_dir": str(folder)}
    data = {"input_ids": data} if isinstance(data, list) else data
    given = {"model": model if hasattr(model, "config") else str(model), "reward_funcs": reward}
    given |= {"train_dataset": Dataset.from_dict(data) if isinstance(data, dict) else data}
    given |= {"processing_class": tokenizer or Words()} | (more or {})
    config = PPOConfig(**output, **config, disable_tqdm=True, report_to="none")
    return PPOTrainer(args=config, **given)


class Words:
    """The parts of a tokenizer that training calls, for tokens without a text."""

    pad_token_id = eos_token_id = 0
    pad_token = eos_token = "<end>"

    def __len__(self):
        return VOCAB

    def __call__(self, texts, **kwargs):
        return {"input_ids": [[1 + number, 2] for number in range(len(texts))]}

    def batch_decode(self, rows, **kwargs):
        return [" ".join(str(int(token)) for token in row) for row in rows]

    def save_pretrained(self, folder):
        """Nothing to save."""

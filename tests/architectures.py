"""Tiny models of many architectures, with random weights."""

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BambaConfig,
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MiniMaxConfig,
    OPTConfig,
    OPTForCausalLM,
    ProphetNetConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    SwitchTransformersConfig,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
)

from trl_recipes import PPOConfig, PPOTrainer

VOCAB = 64
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SEQ2SEQ = {"vocab_size": VOCAB, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}


def gpt2(**changes):
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": VOCAB}
    config = GPT2Config(
        **settings, initializer_range=0.2, bos_token_id=0, eos_token_id=0, **changes
    )
    return GPT2LMHeadModel(config)


# Those that every test of PPO goes through.
ARCHITECTURES = {
    "gpt2": gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(**SEQ2SEQ, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            **SEQ2SEQ,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            bos_token_id=0,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    ),
}

# Those that do something of their own: positions from the mask, none at all, logits bent after the
# head, windows; and one without keys and values.
UNUSUAL = {
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            init_std=0.2,
            pad_token_id=0,
            dropout=0.0,
        )
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.2)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SMALL,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=4,
            final_logit_softcapping=2.0,
        )
    ),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
}

_HYBRID = {k: v for k, v in SMALL.items() if k not in ("bos_token_id", "eos_token_id")}
_HYBRID |= {"num_key_value_heads": 1, "pad_token_id": 0}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
_MIXED = {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2}


def _of(config):
    model = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return model.from_config(config)


# Hybrids, recurrent ones and encoder-decoders of other kinds, which PPO trains, the first five
# through transformers' own `generate`.
OTHERS = {
    "lfm2": lambda: _of(Lfm2Config(**_HYBRID | {"layer_types": ["conv", "full_attention"]})),
    "bamba": lambda: _of(BambaConfig(**_HYBRID, **_MAMBA, attn_layer_indices=[1])),
    "minimax": lambda: _of(MiniMaxConfig(**_HYBRID, **_MIXED)),
    "rwkv": lambda: _of(
        RwkvConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            attention_hidden_size=32,
            context_length=64,
        )
    ),
    "prophetnet": lambda: _of(
        ProphetNetConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_encoder_layers=2,
            num_decoder_layers=2,
            num_encoder_attention_heads=2,
            num_decoder_attention_heads=2,
            max_position_embeddings=64,
            decoder_start_token_id=1,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "switch": lambda: _of(
        SwitchTransformersConfig(
            **SEQ2SEQ,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            num_decoder_layers=2,
            num_experts=2,
            decoder_start_token_id=0,
        )
    ),
    "t5gemma": lambda: _of(
        T5GemmaConfig(
            encoder=_HYBRID | {"head_dim": 16},
            decoder=_HYBRID | {"head_dim": 16},
            vocab_size=VOCAB,
            decoder_start_token_id=1,
        )
    ),
}


def ppo_trainer(model, reward, data, folder=None, metrics=None, **config):
    """A quiet PPOTrainer of a model whose tokens have no text; `data` are queries or columns."""
    output = {} if folder is None else {"output_dir": str(folder)}
    return PPOTrainer(
        args=PPOConfig(**output, **config, disable_tqdm=True, report_to="none"),
        model=model,
        reward_funcs=reward,
        metrics=metrics,
        train_dataset=Dataset.from_dict(data if isinstance(data, dict) else {"input_ids": data}),
        processing_class=Words(),
    )


class Words:
    """The parts of a tokenizer that training calls, for tokens without a text."""

    pad_token_id = eos_token_id = 0
    pad_token = eos_token = "<end>"

    def __len__(self):
        return VOCAB

    def batch_decode(self, rows, **kwargs):
        return [" ".join(str(int(token)) for token in row) for row in rows]

    def save_pretrained(self, folder):
        """Nothing to save."""

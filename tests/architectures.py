"""Tiny models of many architectures, with random weights."""

from transformers import (
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
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

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

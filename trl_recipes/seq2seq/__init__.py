"""Encoder-decoder models from source-target pairs to PPO: the stages of recipes/ppo_seq2seq.py."""

"""PPO, GRPO and RLOO on one task, with the same number of generated tokens each."""

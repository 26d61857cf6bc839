"""Time and memory of PPO beside TRL's own trainer, and beside what the machine allows."""

"""Prompts: text and token ids; no model."""

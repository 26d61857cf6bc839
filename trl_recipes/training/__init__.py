"""Supervised training: language models, classifiers, reward models."""

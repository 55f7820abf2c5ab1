"""Torch modules: cutting a model, loading a stage's shard, running it."""

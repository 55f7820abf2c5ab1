"""Activations between stages, at rest or on their way."""

"""Tiny models of many families, and plain transformers to compare with."""

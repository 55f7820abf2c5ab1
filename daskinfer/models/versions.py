"""Versions of the libraries that decide a result's bits, read without importing them."""

from __future__ import annotations

from importlib.metadata import version

ATTENTION = "sdpa"
"""Attention implementation that every model runs with, where it has one; else transformers' plain one."""


def versions() -> dict[str, str]:
    """Return the installed versions of torch, transformers and tokenizers."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}

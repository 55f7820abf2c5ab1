"""Versions of the libraries that decide a result's bits, read without importing them."""

from __future__ import annotations

from importlib.metadata import version

ATTENTION = "sdpa"
"""Attention implementation that every model runs with, where it has one; else transformers' plain one."""


def versions(images: bool = False) -> dict[str, str]:
    """Return the installed versions of torch, transformers and tokenizers, and of Pillow where images are read.

    Examples
    --------
    >>> list(versions(images=True))
    ['torch', 'transformers', 'tokenizers', 'pillow']
    """
    names = ("torch", "transformers", "tokenizers", *(("pillow",) if images else ()))
    return {name: version(name) for name in names}

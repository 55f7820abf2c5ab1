"""HTML pages that a command is asked to write."""

from __future__ import annotations

from pathlib import Path

from daskinfer.cli.plain_text import tell
from daskinfer.errors import StorageError


def write_page(path: str, html: str) -> None:
    """Write a page, and say so on stderr.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    try:
        Path(path).write_text(html, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
    tell(f"wrote {path}", err=True)

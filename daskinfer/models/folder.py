"""A checkpoint's folder as the models floor reads it: names, sizes and ranges of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Folder(Protocol):
    """A place that checkpoint files are read from."""

    @property
    def url(self) -> str:
        """Absolute path or URL."""

    def names(self) -> list[str]:
        """Return the names of the direct children, sorted."""

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes; None where there is no such file."""

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes, or those from `begin` up to `end`; `FileNotFoundError` where there is no such file."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A directory on this machine."""

    path: Path

    @property
    def url(self) -> str:
        """Absolute path."""
        return self.path.resolve().as_posix()

    def names(self) -> list[str]:
        """Return the names of the direct children, sorted."""
        return sorted(child.name for child in self.path.iterdir())

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes; None where there is no such file."""
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them."""
        with (self.path / name).open("rb") as stream:
            stream.seek(begin or 0)
            return stream.read() if end is None else stream.read(end - (begin or 0))

"""What a pattern of file names can match, told from the names alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic


@dataclass(frozen=True, slots=True)
class Pattern:
    """A path whose last parts may be patterns."""

    root: str
    """The part that is taken as it is written."""
    parts: tuple[str, ...] = ()
    """The names below it that are patterns; `**` stands for any number of folders."""

    @property
    def levels(self) -> int | None:
        """How many folders below the root can matter; None for all."""
        return None if "**" in self.parts else max(0, len(self.parts) - 1)

    def as_glob(self) -> str:
        """Return it for `glob`, with the root's own characters escaped."""
        escaped = "".join(f"[{each}]" if each in "*?[" else each for each in self.root.rstrip("/"))
        return "/".join([escaped, *self.parts])

    def matches(self, names: Sequence[str]) -> bool:
        """Whether it matches the path of these names below the root."""
        return _match(self.parts, tuple(names), within=False)

    def matches_within(self, names: Sequence[str]) -> bool:
        """Whether it can match any file, however deep, in the folder of these names below the root."""
        return _match(self.parts, tuple(names), within=True)


def read_pattern(path: str, exists: Callable[[str], bool]) -> Pattern:
    """Return what a path means.

    Parameters
    ----------
    path
        Path inside its filesystem.
    exists
        Says whether a path is there. A name that is there as it is written is that name, though it could be a pattern.

    Examples
    --------
    >>> read_pattern("/data/2026/*.jsonl", exists=lambda path: False)
    Pattern(root='/data/2026', parts=('*.jsonl',))
    >>> read_pattern("/data/what?.jsonl", exists=lambda path: True)
    Pattern(root='/data/what?.jsonl', parts=())
    """
    if not has_magic(path) or exists(path):
        return Pattern(path)
    parts = path.split("/")
    for number, part in enumerate(parts):
        if has_magic(part) and not exists("/".join(parts[: number + 1])):
            return Pattern("/".join(parts[:number]), tuple(parts[number:]))
    return Pattern(path)


def _match(parts: tuple[str, ...], names: tuple[str, ...], within: bool) -> bool:
    if not parts:
        return not names and not within
    if not names and within:
        return True
    if parts[0] == "**":
        return _match(parts[1:], names, within) or (bool(names) and _match(parts, names[1:], within))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _match(parts[1:], names[1:], within)

"""Sizes, durations and rates as people write them."""

from __future__ import annotations

_PREFIXES = ("", "K", "M", "G", "T", "P")


def escape_controls(text: str) -> str:
    r"""Return a text that a terminal shows and does not obey: control characters but newlines and tabs as escapes.

    Examples
    --------
    >>> escape_controls("\x1b[2Jdone\n")
    '\\x1b[2Jdone\n'
    """
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" or each.isprintable() else ascii(each)[1:-1] for each in text)


def escape_line(text: str) -> str:
    r"""Return a text in one line: `escape_controls`, and newlines and tabs as escapes too.

    Examples
    --------
    >>> escape_line("two\nlines")
    'two\\nlines'
    """
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def format_amount(number: int, noun: str) -> str:
    """Return a number of things: `1 blob`, `2,000 blobs`, `2 aliases`.

    Examples
    --------
    >>> format_amount(1, "row"), format_amount(2000, "row"), format_amount(2, "alias")
    ('1 row', '2,000 rows', '2 aliases')
    """
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def format_bytes(count: float) -> str:
    """Return `1.5 GB`-like text, powers of 1000.

    Examples
    --------
    >>> format_bytes(999), format_bytes(90_900_000), format_bytes(1.5e9)
    ('999 B', '90.9 MB', '1.5 GB')
    """
    return f"{_scale(count)}B"


def format_count(count: float) -> str:
    """Return `12.3 k`-like text, powers of 1000.

    Examples
    --------
    >>> format_count(12_345), format_count(117_659)
    ('12.3 k', '118 k')
    """
    return _scale(count).replace("K", "k").rstrip()


def format_duration(seconds: float) -> str:
    """Return `850 ms`, `12.4 s`, `3 min 20 s` or `2 h 05 min`.

    Examples
    --------
    >>> format_duration(0.85), format_duration(12.4), format_duration(200), format_duration(7500)
    ('850 ms', '12.4 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _scale(count: float) -> str:
    value = float(count)
    for prefix in _PREFIXES:
        if abs(value) < 1000 or prefix == _PREFIXES[-1]:
            digits = 0 if not prefix or abs(value) >= 100 else 1
            return f"{value:.{digits}f} {prefix}"
        value /= 1000
    raise AssertionError("unreachable")

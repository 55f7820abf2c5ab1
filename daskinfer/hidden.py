"""Escapes characters that are invisible or change how text is shown."""

from __future__ import annotations

# Control characters beyond those that JSON escapes, and what changes the direction of text or ends a line for some readers.
_HIDDEN = (*range(127, 160), 0x61C, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
_JSON = {code: f"\\u{code:04x}" for code in _HIDDEN}
# A terminal that shows a log must not obey it.
_TEXT = _JSON | {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def escape_json(text: str) -> str:
    r"""Return a JSON text that says the same and hides nothing.

    Examples
    --------
    >>> escape_json('"right\u202eleft"')
    '"right\\u202eleft"'
    """
    return text.translate(_JSON)


def escape_text(text: str) -> str:
    r"""Return a text that hides nothing; tabs and newlines stay.

    Examples
    --------
    >>> escape_text("\x1b[31mred\tand a tab")
    '\\x1b[31mred\tand a tab'
    """
    return text.translate(_TEXT)

"""Text from outside, as a terminal shows it: its control characters are seen and not obeyed."""

from __future__ import annotations

from typing import Any, Self

from rich import text

from daskinfer.units import escape_controls


class Text(text.Text):
    """rich's text, which passes escapes of what it is given on to the terminal, without them."""

    def __init__(self, text: str = "", *args: Any, **options: Any) -> None:
        super().__init__(escape_controls(text), *args, **options)

    def append(self, text: Any, style: Any = None) -> Self:
        """Add text at the end."""
        super().append(escape_controls(text) if isinstance(text, str) else text, style)
        return self

"""Charts for the documentation: rows a second of every contestant, with the range over the rounds."""

from __future__ import annotations

from html import escape
from typing import Any

_LABELS, _BAR, _RIGHT, _LINE = 220, 400, 90, 26
_OURS, _THEIRS, _LIMIT, _INK = "#b5532a", "#7d92a8", "#c9ccd1", "#444"


def draw_chart(result: dict[str, Any]) -> str:
    """Return an SVG of a case's rows a second while running; what is longest is fastest."""
    rates = {
        name: {part: result["rows"] / one["running"][part] for part in ("median", "least", "most")}
        for name, one in result["contestants"].items()
    }
    scale = _BAR / max(rate["least"] for rate in rates.values())
    height = _LINE * (len(rates) + 1)
    width = _LABELS + _BAR + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LABELS}" y="17" fill="{_INK}">rows a second, {escape(result["name"])}</text>',
    ]
    for number, (name, rate) in enumerate(rates.items(), 1):
        parts += _draw_bar(name, {part: scale * value for part, value in rate.items()}, rate["median"], number)
    return "\n".join([*parts, "</svg>", ""])


def _draw_bar(name: str, lengths: dict[str, float], rate: float, number: int) -> list[str]:
    top, middle = _LINE * number + 4, _LINE * number + 13
    colour = _OURS if name.startswith("daskinfer") else _LIMIT if name == "products" else _THEIRS
    # `least` and `most` are seconds, so the least time is the highest rate.
    first, last = _LABELS + lengths["most"], _LABELS + lengths["least"]
    return [
        f'<text x="{_LABELS - 8}" y="{middle + 4}" text-anchor="end" fill="{_INK}">{escape(name)}</text>',
        f'<rect x="{_LABELS}" y="{top}" width="{lengths["median"]:.1f}" height="18" fill="{colour}"/>',
        f'<path d="M{first:.1f} {middle}H{last:.1f}" stroke="{_INK}"/>',
        f'<text x="{last + 6:.1f}" y="{middle + 4}" fill="{_INK}">{rate:,.0f}</text>',
    ]

"""How large a model a configuration may ask for: refused before anything is built, for building alone takes its memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from daskinfer.errors import CheckpointError

_DEEPEST = 50
_MOST_VALUES = 2_000_000
_MOST_POSITIONS = 16_777_216
# The first pattern that a key fits says how much its number may be.
_LIMITS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), limit)
    for pattern, limit in (
        (r"experts", 8192),
        (r"labels|classes", 1_000_000),
        (r"image_size|num_frames|height|width", 32_768),
        (r"layer(s|_num)?$|layers_|n_layer|blocks?$|depths?$|num_stages|repeats?$", 5000),
        (r"heads?$|groups?$|codebooks|levels$|channels$", 1_000_000),
        (r"position|seq|context|n_ctx|length|window|max_len", 10**40),
        (r"size|dim|units|features|^n_|^num_|vocab", 1 << 31),
    )
)
_MOST_EXPERTS = 200_000


def refuse_absurd(config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where config.json asks for more than any model has.

    Parameters
    ----------
    config
        Its content.

    Examples
    --------
    >>> refuse_absurd({"num_hidden_layers": 126, "hidden_size": 16384})
    >>> refuse_absurd({"num_hidden_layers": 2_000_000})
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: config.json: num_hidden_layers is 2,000,000, and at most 5,000 is built
    Fetch the checkpoint again; no model is that large.
    """
    numbers: dict[str, int] = {}
    for count, (key, value, depth) in enumerate(_walk(config)):
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise _refuse(f"it is nested more than {_DEEPEST} deep" if depth > _DEEPEST else "it has too many values")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        name = key.rpartition(".")[2]
        limit = next((most for pattern, most in _LIMITS if pattern.search(name)), None)
        if limit is not None and value > limit:
            raise _refuse(f"{key} is {value:,}, and at most {limit:,} is built")
        if isinstance(value, int):
            numbers[name] = max(value, numbers.get(name, 0))
    layers = max((value for name, value in numbers.items() if _LIMITS[3][0].search(name)), default=1)
    experts = max((value for name, value in numbers.items() if "experts" in name and "tok" not in name), default=1)
    if layers * experts > _MOST_EXPERTS:
        raise _refuse(f"{layers:,} layers of {experts:,} experts are more than {_MOST_EXPERTS:,} modules")
    _refuse_positions(numbers)


def _refuse_positions(numbers: Mapping[str, int]) -> None:
    """Refuse tables of positions that a model fills as it is made: they are real memory."""
    # What rotary models say beside that decides no table, and may be any number.
    for name in ("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"):
        if numbers.get(name, 0) > _MOST_POSITIONS:
            raise _refuse(f"{name} is {numbers[name]:,}, and at most {_MOST_POSITIONS:,} is built")
    side, patch = numbers.get("image_size", 0), max(1, numbers.get("patch_size", 1))
    if (side // patch) ** 2 > _MOST_POSITIONS:
        raise _refuse(f"an image_size of {side:,} in patches of {patch:,} gives {(side // patch) ** 2:,} of them")


def _walk(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    left: list[tuple[str, Any, int]] = [(key, value, depth)]
    while left:
        name, found, level = left.pop()
        yield name, found, level
        if isinstance(found, Mapping):
            left += [(f"{name}.{inner}" if name else str(inner), each, level + 1) for inner, each in found.items()]
        elif isinstance(found, list | tuple):
            left += [(name, each, level + 1) for each in found]


def _refuse(why: str) -> CheckpointError:
    return CheckpointError(f"config.json: {why}", hint="Fetch the checkpoint again; no model is that large.")

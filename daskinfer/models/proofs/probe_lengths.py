"""Lengths of the rows that a model is tried with, so that whatever its configuration says of lengths is passed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Tokens of rows that tell padding, order and history of most models.
_SHORT, _MIDDLE, _LONG = 7, 12, 25
_NAMES = re.compile(r"window|chunk|block|stride|local|landmark|segment|position|span|radius|context|bucket|index_topk")
# Attention in blocks begins where a row has several of them, and which of equally good tokens a row attends to may
# hang on its padded length where it has many more than are chosen.
_BLOCKS = re.compile(r"block|index_topk")
_BLOCKS_OF_A_ROW = 16
_ORIGINAL = re.compile(r"original_max_position|max_trained_position|^max_position_embeddings$")
# What a configuration recommends for other uses of the model.
_UNREAD = ("task_specific_params", "generation_config", "vision_config", "audio_config", "id2label", "label2id")


@dataclass(frozen=True, slots=True)
class ProbeLengths:
    """Lengths of rows in tokens."""

    short: int
    middle: int
    long: int
    beyond: int | None = None
    """Longer than whatever the configuration names; None where it names nothing that a row of the job can exceed."""
    limits: tuple[int, ...] = ()
    """Lengths that the model's positions were made for at first, ascending."""
    longest: int | None = None
    """Longest row of the job where config.json's positions end there: some models have fewer than it says."""


def choose_lengths(config: Mapping[str, Any], max_length: int) -> ProbeLengths:
    """Return lengths below and beyond every limit of a configuration that rows of a job can exceed.

    Parameters
    ----------
    config
        Content of config.json.
    max_length
        Longest row of the job in tokens.

    Examples
    --------
    >>> choose_lengths({"sliding_window": 64}, max_length=512)
    ProbeLengths(short=7, middle=12, long=25, beyond=72, limits=(), longest=None)
    """
    long = min(_LONG, max_length)
    passed: set[int] = set()
    limits: set[int] = set()
    for name, value in _numbers(config):
        if not _NAMES.search(name) or not 1 < value < max_length:
            continue
        passed.add(min(value * _BLOCKS_OF_A_ROW, max_length - 1) if _BLOCKS.search(name) else value)
        if _ORIGINAL.search(name):
            limits.add(value)
    furthest = max(passed, default=0)
    beyond = min(max_length, furthest + max(8, furthest // 8)) if furthest >= long else None
    return ProbeLengths(min(_SHORT, long), min(_MIDDLE, long), long, beyond, tuple(sorted(limits)))


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _UNREAD:
                yield from _numbers(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value

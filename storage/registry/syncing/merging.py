"""Two histories of one alias: which one has news for the other, and whether they go together. Pure.

Records are compared as stored bytes; their nonces make any two of them differ. A `merge` record names a record of the
other history, by number and digest, and so takes in everything up to it. Where it also kept the other's target, the two
histories stand at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from daskinfer.ids import parse_json, sha256_of

Side = Literal["source", "target"]
"""Whose target is kept where two histories are made one."""
Course = Literal["equal", "ahead", "forward", "adopt", "conflict"]
"""The target registry's history is equal, or ahead; the source's goes on where it ends; the source's has taken it in;
or both have news."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the source's history of an alias stands to the target's."""

    course: Course
    """What a sync has to do."""
    records: tuple[bytes, ...] = ()
    """What has to be appended to the target's history where it goes forward."""


def compare_histories(source: Sequence[bytes], target: Sequence[bytes]) -> Comparison:
    """Return how two histories of an alias stand to each other.

    Examples
    --------
    >>> first, second, third = (b'{"op":"set","snapshot":"sha256:%d"}' % number for number in range(3))
    >>> compare_histories([first, second], [first])
    Comparison(course='forward', records=(b'{"op":"set","snapshot":"sha256:1"}',))
    >>> compare_histories([first, second], [first, third]).course
    'conflict'
    """
    common = next(
        (number for number, (one, other) in enumerate(zip(source, target, strict=False)) if one != other),
        min(len(source), len(target)),
    )
    has_news = _count_known(source, target, common) < len(source)
    is_behind = _count_known(target, source, common) < len(target)
    if not has_news:
        return Comparison("ahead" if is_behind else "equal")
    if is_behind:
        return Comparison("conflict")
    if common == len(target):
        return Comparison("forward", tuple(source[common:]))
    return Comparison("adopt")


def make_merge(source: Sequence[bytes], target: Sequence[bytes], keep: Side) -> dict[str, Any]:
    """Return the record that, appended to the target's history, takes in the source's, without a signature.

    Examples
    --------
    >>> ours, theirs = (b'{"op":"set","snapshot":"sha256:%d"}' % number for number in range(2))
    >>> merge = make_merge([ours], [theirs], keep="target")
    >>> merge["snapshot"], merge["merged"]["sequence"]
    ('sha256:1', 0)
    """
    kept = parse_json((source if keep == "source" else target)[-1])
    merged = {"sequence": len(source) - 1, "record": sha256_of(source[-1])}
    return {"op": "merge", "snapshot": kept["snapshot"], "publish": None, "merged": merged, "kept": keep}


def _count_known(records: Sequence[bytes], other: Sequence[bytes], common: int) -> int:
    """Return how many of the records are no news to the other history."""
    # What the other one took in.
    taken = [number + 1 for number in map(_find_merged(records), other) if number is not None]
    # Where this one stands at the other's place, nothing before counts.
    find = _find_merged(other)
    adopted = [
        number + 1
        for number, data in enumerate(records)
        if find(data) is not None and parse_json(data)["kept"] == "source"
    ]
    return max([common, *taken, *adopted])


def _find_merged(history: Sequence[bytes]) -> Callable[[bytes], int | None]:
    def find(data: bytes) -> int | None:
        """Return which record of the history a merge record took in."""
        record = parse_json(data)
        if record["op"] != "merge":
            return None
        number = int(record["merged"]["sequence"])
        is_there = number < len(history) and sha256_of(history[number]) == record["merged"]["record"]
        return number if is_there else None

    return find

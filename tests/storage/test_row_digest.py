"""The digest by which rows of an input are compared with those that were computed."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from daskinfer.spec.rows import Partition
from daskinfer.storage.column_types import JSON
from daskinfer.storage.row_digest import add_digests, digest_rows
from daskinfer.storage.rows import RowBatch

VALUES: dict[str, tuple[pa.DataType, list[Any], Any]] = {
    "text": (pa.string(), ["a", None, "c"], "null"),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", None, "a"], "c"),
    "bytes": (pa.large_binary(), [b"a", b"b", b"\xff"], b""),
    "number": (pa.int64(), [1, 2, None], 0),
    "float": (pa.float64(), [1.0, float("nan"), 0.0], 2.0),
    "truth": (pa.bool_(), [True, None, True], False),
    "time": (pa.timestamp("ns"), [1, None, 3], 4),
    "date": (pa.date32(), [datetime.date(2020, 1, 1), None, None], datetime.date(2021, 1, 1)),
    "image": (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        [{"bytes": b"ab", "path": "x"}, None, {"bytes": b"ab", "path": "x"}],
        {"bytes": b"cd", "path": "x"},
    ),
    "numbers": (pa.list_(pa.float16()), [np.array([1, 2], np.float16), None, []], np.array([0], np.float16)),
    "vectors": (pa.list_(pa.float32(), 2), [[1, 2], None, [3, 4]], [4, 3]),
    "numbers and null": (pa.large_list(pa.int64()), [[1, None], None, []], [1, 0]),
    "lists": (pa.list_(pa.list_(pa.int8())), [[[1], None], None, [[], [1]]], [[1]]),
    "structs with null": (pa.list_(pa.struct([("a", pa.int8()), ("b", pa.string())])), [[{"a": 1}], None, []], [None]),
    "map": (pa.map_(pa.string(), pa.int8()), [[("a", 1)], None, [("a", None)]], []),
    "list": (pa.list_(pa.binary()), [[b"a"], None, []], [b"b"]),
}


def make_rows(own: pa.DataType, values: list[Any], positions: list[int]) -> RowBatch:
    table = pa.table({"value": pa.array(values, own) if own != JSON else json_array(values)})
    return RowBatch(
        partition=Partition(0, 0, 8, ()),
        positions=np.array(positions, np.int32),
        lines=np.array(positions, np.int64),
        sources=("f",) * len(positions),
        table=table,
        rejects=(),
    )


def json_array(texts: list[str]) -> pa.Array:
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


@pytest.mark.parametrize("name", VALUES)
def test_it_is_of_values_and_positions_and_a_sum_of_rows(name: str) -> None:
    own, values, other = VALUES[name]
    whole = digest_rows(make_rows(own, values, [0, 2, 5]))
    assert len(whole) == 32
    for row in range(3):
        changed = [*values]
        changed[row] = other
        assert digest_rows(make_rows(own, changed, [0, 2, 5])) != whole
    assert digest_rows(make_rows(own, values, [0, 2, 6])) != whole
    assert digest_rows(make_rows(own, values[:2], [0, 2])) != whole
    # As it is found in a larger table, or in parts of one.
    larger = make_rows(own, [other, *values, other], [7, 0, 2, 5, 6])
    assert digest_rows(larger.only({0, 2, 5})) == whole
    parts = [digest_rows(larger.only({2})), digest_rows(larger.only({0, 5}))]
    assert add_digests(*parts) == whole
    assert add_digests(whole, "") == ""


def test_a_string_of_json_is_what_it_stands_for() -> None:
    one, other = (digest_rows(make_rows(JSON, [text], [0])) for text in ('"\\u00e9"', '"é"'))
    assert one == other
    kinds = {digest_rows(make_rows(JSON, [text], [0])) for text in ('"1"', "1", "1.0", '"null"', "null", '"\\ud800"')}
    assert len(kinds) == 6


def test_arrays_count_too() -> None:
    table = pa.table({})
    batches = [
        RowBatch(
            Partition(0, 0, 2, ()), np.arange(2, dtype=np.int32), np.arange(2), ("f", "f"), table, (), {"x": values}
        )
        for values in (np.zeros((2, 3)), np.zeros((2, 3)), np.eye(2, 3))
    ]
    first, same, other = map(digest_rows, batches)
    assert first == same != other

"""What a partition's results were computed from, as one number by which a later look at its input can be compared.

The number is a sum over rows, so that the rows of a retry can be added to it, and some of a partition's rows be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from daskinfer.storage.columns.json_text import to_json_texts
from daskinfer.storage.columns.types import JSON, is_binary, is_fixed_binary, is_text
from daskinfer.storage.inputs.row_batch import RowBatch

_MODULUS = 1 << 128


def digest_rows(rows: RowBatch) -> str:
    """Return the digest of a batch's accepted rows and of where in the partition they are, 32 hex digits.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.spec.rows import Partition
    >>> def make_rows(texts, positions):
    ...     rows = Partition(number=0, first_row=0, rows=2, segments=())
    ...     return RowBatch(rows, np.array(positions), np.array(positions), (), pa.table({"text": texts}), ())
    >>> digest_rows(make_rows(["a", "b"], [0, 1])) == digest_rows(make_rows(["b", "a"], [1, 0]))
    True
    >>> digest_rows(make_rows(["a", "b"], [0, 1])) == digest_rows(make_rows(["b", "a"], [0, 1]))
    False
    """
    columns = [_digest_values(_read_values(column.combine_chunks())) for column in rows.table.columns]
    columns += [_digest_values([row.tobytes() for row in values]) for values in rows.arrays.values()]
    total = 0
    for index, position in enumerate(rows.positions.tolist()):
        total += xxhash.xxh3_128_intdigest(b"".join(column[index] for column in columns), seed=position)
    return f"{total % _MODULUS:032x}"


def add_digests(first: str, second: str) -> str:
    """Return the digest of two batches of one partition, none of whose rows is in both; "" where one is not known.

    Examples
    --------
    >>> add_digests("0f", "01"), add_digests("", "01")
    ('00000000000000000000000000000010', '')
    """
    return f"{(int(first, 16) + int(second, 16)) % _MODULUS:032x}" if first and second else ""


def _digest_values(values: Sequence[bytes | None]) -> list[bytes]:
    return [b"null" if value is None else xxhash.xxh3_128_digest(value) for value in values]


def _read_values(column: pa.Array) -> list[bytes | None]:
    own = column.type
    if own == JSON:
        return [None if text is None else _read_json(text) for text in column.storage.to_pylist()]
    if pa.types.is_dictionary(own):
        return _read_values(column.dictionary_decode())
    if is_text(own) or is_binary(own) or is_fixed_binary(own):
        values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
        return values
    if _is_plain_list(column):
        return _read_lists(column)
    if pa.types.is_map(own):
        return _read_values(column.cast(pa.list_(pa.struct([("key", own.key_type), ("value", own.item_type)]))))
    if pa.types.is_struct(own):
        fields = [_read_values(field) for field in column.flatten()]
        nulls = column.is_null().to_pylist()
        return [None if null else _frame([field[row] for field in fields]) for row, null in enumerate(nulls)]
    if _is_list(own):
        items, rows = iter(_read_values(column.flatten())), pc.list_value_length(column).to_pylist()
        return [None if length is None else _frame(list(islice(items, length))) for length in rows]
    return [text.encode() for text in to_json_texts(column)]


def _frame(values: Sequence[bytes | None]) -> bytes:
    """Return values as bytes that no other values give."""
    return b"".join(b"-" if value is None else b"%d:%b" % (len(value), value) for value in values)


def _is_list(own: pa.DataType) -> bool:
    return bool(pa.types.is_list(own) or pa.types.is_large_list(own) or pa.types.is_fixed_size_list(own))


def _is_plain_list(column: pa.Array) -> bool:
    if not _is_list(column.type):
        return False
    inner = column.type.value_type
    is_number = pa.types.is_integer(inner) or pa.types.is_floating(inner)
    return bool(is_number and column.flatten().null_count == 0)


def _read_lists(column: pa.Array) -> list[bytes | None]:
    """Return the bytes of lists of numbers, none of which is null."""
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    data, size = numbers.tobytes(), numbers.dtype.itemsize
    lengths: list[int | None] = pc.list_value_length(column).to_pylist()
    values: list[bytes | None] = []
    begin = 0
    for length in lengths:
        end = begin + size * (length or 0)
        values.append(None if length is None else data[begin:end])
        begin = end
    return values


def _read_json(text: str) -> bytes:
    """Return a JSON text; of a string, what it stands for, however it is escaped."""
    found = f'"{json.loads(text)}' if text.startswith('"') else text
    return found.encode(errors="surrogatepass")

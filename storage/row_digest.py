"""What a partition's results were computed from, as one number by which a later look at its input can be compared.

The number is a sum over rows, so that the rows of a retry can be added to it, and some of a partition's rows be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import xxhash

from daskinfer.storage.column_types import JSON, is_binary, is_fixed_binary, is_text
from daskinfer.storage.json_text import to_json_texts
from daskinfer.storage.rows import RowBatch

_MODULUS = 1 << 128


def digest_rows(rows: RowBatch) -> str:
    """Return the digest of a batch's accepted rows and of where in the partition they are, 32 hex digits."""
    columns = [_digest_values(_read_values(column.combine_chunks())) for column in rows.table.columns]
    columns += [_digest_values([row.tobytes() for row in values]) for values in rows.arrays.values()]
    total = 0
    for index, position in enumerate(rows.positions.tolist()):
        total += xxhash.xxh3_128_intdigest(b"".join(column[index] for column in columns), seed=position)
    return f"{total % _MODULUS:032x}"


def add_digests(first: str, second: str) -> str:
    """Return the digest of two batches of one partition, none of whose rows is in both; "" where one is not known."""
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
    if pa.types.is_nested(own):  # whose JSON may tell no more of bytes than how many they are
        # Taken one by one, else a row's bytes would depend on where it stands.
        return [
            pa.record_batch([column.take(pa.array([index]))], ["row"]).serialize().to_pybytes()
            for index in range(len(column))
        ]
    return [text.encode() for text in to_json_texts(column)]


def _read_json(text: str) -> bytes:
    """Return a JSON text; of a string, what it stands for, however it is escaped."""
    found = f'"{json.loads(text)}' if text.startswith('"') else text
    return found.encode(errors="surrogatepass")

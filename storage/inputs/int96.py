"""Times of 96 bits in Parquet, as Spark and Impala write them, some of which Arrow changes silently."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskinfer.storage.columns.values import convert_column

_LAST_MICROSECOND = (2**63 - 1) // 1000
_BEYOND = "a time beyond the years 1678 to 2262 has no nanoseconds"


def is_int96(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether a column has such times, by itself or in what it holds.

    Examples
    --------
    >>> table = pa.table({"at": pa.array([0], pa.timestamp("ns"))})
    >>> pq.write_table(table, "old.parquet", use_deprecated_int96_timestamps=True)
    >>> with pq.ParquetFile("old.parquet") as parquet:
    ...     is_int96(parquet, "at")
    True
    """
    nested = pa.types.is_nested(parquet.schema_arrow.field(column).type)
    leaves = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    return any(
        leaf.physical_type == "INT96" and (leaf.path == column or (nested and leaf.path.startswith(f"{column}.")))
        for leaf in leaves
    )


def correct_int96(
    fine: pa.ChunkedArray, coarse: pa.ChunkedArray, target: pa.DataType, column: str, errors: dict[int, str]
) -> pa.ChunkedArray:
    """Return the times of a column, which before 1678 and after 2262 differ from those that Arrow reads.

    Parameters
    ----------
    fine, coarse
        The same rows, read in nanoseconds and in microseconds.
    target
        Their type; in microseconds or coarser it holds those of all years.
    column
        Its name, for the errors.
    errors
        Row -> why its time does not fit; the first error of a row stays.

    Examples
    --------
    >>> fine = pa.chunked_array([pa.array([0], pa.timestamp("ns"))])
    >>> coarse = pa.chunked_array([pa.array([2**62], pa.timestamp("us"))])
    >>> errors = {}
    >>> _ = correct_int96(fine, coarse, pa.timestamp("ns"), "at", errors)
    >>> errors[0]
    "column 'at': a time beyond the years 1678 to 2262 has no nanoseconds; declare it under input.types as ..."
    """
    if pa.types.is_nested(fine.type):
        wrong: dict[int, str] = {}
        convert_column(coarse, fine.type, column, wrong)
        for offset in wrong:
            errors.setdefault(offset, f"column '{column}': {_BEYOND}")
        return fine
    missing = fine.is_null().to_numpy()
    nanos, micros = (
        values.cast(pa.timestamp(unit)).cast(pa.int64()).fill_null(0).to_numpy()
        for values, unit in ((fine, "ns"), (coarse, "us"))
    )
    # What was lost is a multiple of 2**64, so the digits behind the microseconds are right all the same.
    digits = (nanos.view(np.uint64) - micros.view(np.uint64) * np.uint64(1000)).astype(np.int64)
    far = (micros > _LAST_MICROSECOND) | (micros < -_LAST_MICROSECOND)
    if not far.any():
        return fine
    if pa.types.is_timestamp(target) and target.unit != "ns":
        for offset in np.flatnonzero(digits).tolist():
            errors.setdefault(offset, f"column '{column}': a time with nanoseconds does not fit {target}")
        return pa.chunked_array([pa.array(micros, pa.int64(), mask=missing).cast(pa.timestamp("us", fine.type.tz))])
    for offset in np.flatnonzero(far).tolist():
        errors.setdefault(offset, f"column '{column}': {_BEYOND}; declare it under input.types as timestamp[us]")
    return fine

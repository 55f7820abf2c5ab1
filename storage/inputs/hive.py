"""Columns that the folders of a file name, as in `year=2024/part-0.parquet`: Spark, pandas and DuckDB write them so."""

from __future__ import annotations

from urllib.parse import unquote

_MISSING = "__HIVE_DEFAULT_PARTITION__"


def folder_columns(url: str) -> dict[str, str | None]:
    """Return column -> value, None for the folder of those without one; of two folders of one name, the inner one.

    Examples
    --------
    >>> folder_columns("s3://bucket/year=2024/city=__HIVE_DEFAULT_PARTITION__/part-0.parquet")
    {'year': '2024', 'city': None}
    """
    pairs = [folder.partition("=") for folder in url.split("/")[:-1]]
    return {
        unquote(name): None if value == _MISSING else unquote(value)
        for name, is_pair, value in pairs
        if name and is_pair
    }

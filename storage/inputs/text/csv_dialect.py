"""Fields of csv rows, however they are delimited and quoted."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from typing import Literal

from daskinfer.spec.recipe.dialect import AUTO, Csv
from daskinfer.storage.inputs.compression import compression_of


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a csv file is written; all are ASCII characters."""

    delimiter: str = ","
    """Between fields."""
    quote: str | None = '"'
    """Around fields that hold delimiters and newlines, doubled inside them."""
    escape: str | None = None
    """Before a character that stands for itself."""

    def split(self, text: str) -> list[str]:
        """Return the fields of a row.

        Raises
        ------
        ValueError
            It is none.
        """
        if (self.quote is None or self.quote not in text) and (self.escape is None or self.escape not in text):
            if "\r" in text:
                raise ValueError("a carriage return outside quotes")
            return text.split(self.delimiter)
        # The limit of 128 KiB a field is the process's; long documents need more.
        csv.field_size_limit(sys.maxsize)
        quoting: Literal[0, 3] = csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL
        try:
            rows = csv.reader(
                [text],
                delimiter=self.delimiter,
                quotechar=self.quote,
                escapechar=self.escape,
                quoting=quoting,
                # Else a field such as "5" tall would lose its quotes. Strictly, no escaped newline is read in the last field.
                strict=self.escape is None or self.escape not in text,
            )
            return next(rows)
        except csv.Error as error:
            raise ValueError(f"not valid csv: {error}") from error


def dialect_of(options: Csv, url: str) -> Dialect:
    r"""Return how a file is written.

    Examples
    --------
    >>> dialect_of(Csv(), "rows.tsv.gz").delimiter, dialect_of(Csv(delimiter=";"), "rows.tsv").delimiter
    ('\t', ';')
    """
    delimiter = options.delimiter
    if delimiter == AUTO:
        name = url.lower()
        delimiter = "\t" if name.removesuffix(compression_of(name)).endswith(".tsv") else ","
    return Dialect(delimiter, options.quote, options.escape)

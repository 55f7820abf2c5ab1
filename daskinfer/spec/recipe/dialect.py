"""How csv and encoded text files are written, as a recipe says it."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from daskinfer.spec.section import DescribedSection

AUTO = "auto"
_UTF8 = "utf-8"

# They write texts of programs, or parts of names, rather than texts, or depend on the machine.
_NO_TEXT = {"charmap", "idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}


class Csv(DescribedSection):
    """How csv files are written."""

    delimiter: str = AUTO
    """Between fields: one ASCII character; `auto`: a tab in .tsv, else a comma."""
    quote: str | None = '"'
    """Around fields that hold delimiters and newlines, doubled inside them; `null`: none."""
    escape: str | None = None
    """Before a character that stands for itself; `null`: none."""
    header: Literal[True] | Annotated[tuple[str, ...], Field(min_length=1)] = True
    """`true`: the first row names the columns; a list: their names, where the files have no such row."""

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _check_character(cls, value: str | None) -> str | None:
        wrong = value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n\0")
        if wrong and value != AUTO:
            raise ValueError("must be one ASCII character")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Csv:
        if AUTO in (self.quote, self.escape):
            raise ValueError("only the delimiter can be auto")
        given = [each for each in (self.delimiter, self.quote, self.escape) if each is not None]
        if len({*given}) < len(given):
            raise ValueError("delimiter, quote and escape must differ")
        if self.header is not True and len({*self.header}) < len(self.header):
            raise ValueError("every column needs a name of its own")
        return self


def check_encoding(name: str) -> str:
    """Return the one spelling of a text encoding that Python knows, or `auto`.

    Raises
    ------
    ValueError
        It is none.

    Examples
    --------
    >>> check_encoding("Latin-1"), check_encoding("utf_8")
    ('iso8859-1', 'utf-8')
    >>> check_encoding("rot13")
    Traceback (most recent call last):
        ...
    ValueError: rot13 is not a text encoding
    """
    if name == AUTO:
        return name
    try:
        found = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
    except LookupError as error:
        raise ValueError(f"Python knows no encoding {name!r}; such as utf-8, utf-16-le, cp1252 or shift_jis") from error
    spelling = found.name.replace("_", "-")
    if not getattr(found, "_is_text_encoding", True) or spelling in _NO_TEXT:
        raise ValueError(f"{name} is not a text encoding")
    return _UTF8 if spelling == "utf-8-sig" else found.name

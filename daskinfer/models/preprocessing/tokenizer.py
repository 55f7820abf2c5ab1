"""Texts to token ids with the checkpoint's own tokenizer, by the `tokenizers` library alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from daskinfer.errors import CheckpointError, InputError, RecipeError
from daskinfer.ids import parse_json
from daskinfer.models.preprocessing.textconfig import max_positions, pad_id

Ids = NDArray[np.int32]
SETTINGS = "tokenizer_settings.json"
"""File of a snapshot that says what tokenizer.json does not; written at publish."""

_MASK_TOKENS = ("[MASK]", "<mask>")
_CONFIG = "tokenizer_config.json"
# From here on transformers says that a tokenizer has no limit.
_NO_LIMIT = 10**20


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What a checkpoint's tokenizer does besides what its tokenizer.json says."""

    tokenizer_class: str = ""
    """Class of transformers that it is."""
    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    """What it returns for the model."""
    model_max_length: int | None = None
    """Longest row in tokens that it gives; None where there is no limit."""
    truncation_side: str = "right"
    """`right` cuts the end of a long text, `left` its beginning."""
    mask_token: str | None = None
    """The token that stands for a masked one."""
    split_special_tokens: bool = False
    """Whether special tokens that stand in a text are taken as plain text."""
    token_types: int = 1
    """Its token types are below this number; 1 where they all are 0."""
    refused: str = ""
    """Why texts cannot be encoded as transformers does; empty where they can."""

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


class TokenizedRow(NamedTuple):
    """One text as tokens."""

    ids: Ids
    """Token ids, (tokens,)."""
    types: Ids | None
    """Their token types, (tokens,); None where all are 0."""
    is_truncated: bool
    """Whether the text was longer."""


class Tokenizer:
    r"""A checkpoint's tokenizer: special tokens added, long texts truncated, nothing padded.

    Parameters
    ----------
    backend
        What tokenizer.json says; its own padding and truncation are overruled.
    max_length
        Longest row in tokens, special tokens included.
    pad_id
        Id that microbatches are padded with.
    settings
        What tokenizer.json does not say.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> tokenizer = Tokenizer(read_backend(ask_tiny("embed").files["tokenizer.json"]), max_length=4)
    >>> [row.is_truncated for row in tokenizer.encode_rows(["cat", "a small cat"])]
    [False, True]
    >>> tokenizer.encode(["cat"])[0].dtype.name, tokenizer.find_unusable(["cat", "\ud800"])
    ('int32', {1: 'not valid Unicode: lone surrogate U+D800'})
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        max_length: int,
        pad_id: int = 0,
        settings: TokenizerSettings | None = None,
    ) -> None:
        self.pad_id = pad_id
        self.settings = settings or TokenizerSettings()
        self._tokenizer = backend
        self._tokenizer.encode_special_tokens = self.settings.split_special_tokens
        self._tokenizer.no_padding()
        self.truncate_to(max_length)

    def truncate_to(self, max_length: int) -> None:
        """Set the longest row in tokens, special tokens included.

        Raises
        ------
        RecipeError
            If there is no room for a word.
        """
        added = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= added:
            raise RecipeError(
                f"model.options.max_length is {max_length}, but {added} special tokens are added to every text",
                hint=f"Give at least {added + 1}.",
            )
        self.max_length = max_length
        self._tokenizer.enable_truncation(max_length, direction=self.settings.truncation_side)

    @property
    def has_types(self) -> bool:
        """Whether it returns token types that are not all 0."""
        return self.settings.token_types > 1 and "token_type_ids" in self.settings.model_input_names

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, shape (tokens,) int32; see `encode_rows`."""
        return [row.ids for row in self.encode_rows(texts)]

    def encode_rows(self, texts: Sequence[str]) -> list[TokenizedRow]:
        """Return the tokens of each text.

        Raises
        ------
        InputError
            If a text is not valid Unicode; `find_unusable` tells which ones are not.
        """
        rows, has_types, most = [], self.has_types, self.max_length
        for encoding in self._encode(texts):
            ids = np.array(encoding.ids, dtype=np.int32)
            types = np.array(encoding.type_ids, dtype=np.int32) if has_types else None
            # A row that was cut is as long as can be: what was cut off need not be made for the others.
            rows.append(TokenizedRow(ids, types, len(ids) == most and bool(encoding.overflowing)))
        return rows

    def find_words(self, texts: Sequence[str]) -> list[Ids]:
        """Return the positions of each text's tokens that are its own, not added to every text, (tokens,) int32."""
        return [
            np.flatnonzero(np.array(encoding.special_tokens_mask) == 0).astype(np.int32)
            for encoding in self._encode(texts)
        ]

    def token_id(self, token: str) -> int | None:
        """Return a token's id; None where the vocabulary lacks it."""
        return self._tokenizer.token_to_id(token)

    @staticmethod
    def find_unusable(texts: Sequence[str]) -> dict[int, str]:
        """Return why a text cannot be encoded, by its position; empty where all can."""
        reasons = {}
        for position, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                reasons[position] = f"not valid Unicode: lone surrogate U+{ord(text[error.start]):04X}"
        return reasons

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        try:
            return self._tokenizer.encode_batch_fast(list(texts))
        except (TypeError, UnicodeEncodeError) as error:
            unusable = self.find_unusable(texts)
            if not unusable:
                raise
            raise InputError(f"text {min(unusable)} of {len(texts)}: {unusable[min(unusable)]}") from error


def read_backend(tokenizer_json: bytes) -> tokenizers.Tokenizer:
    """Return what a tokenizer.json holds.

    Raises
    ------
    CheckpointError
        If it cannot be read.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> read_backend(ask_tiny("embed").files["tokenizer.json"]).encode("cat").tokens
    ['[CLS]', 'cat', '[SEP]']
    """
    try:
        # The library raises the bare Exception class for a file that it cannot parse.
        return tokenizers.Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:
        raise CheckpointError(
            f"tokenizer.json cannot be read: {error}", hint="Publish the checkpoint with a whole tokenizer.json."
        ) from error


def make_tokenizer(files: Mapping[str, bytes], max_length: int) -> Tokenizer:
    """Return the tokenizer of a checkpoint's plain files.

    Parameters
    ----------
    files
        `tokenizer.json` and `config.json`, and the tokenizer's settings where there are any.
    max_length
        Longest row that the recipe wants; the model's own limit holds where it is lower.

    Raises
    ------
    CheckpointError
        If there is no tokenizer.json, it cannot be read, or it does not do what the checkpoint's own tokenizer does.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> make_tokenizer(ask_tiny("embed").files, max_length=256).max_length
    64
    """
    if "tokenizer.json" not in files:
        raise CheckpointError(
            "the checkpoint has no tokenizer.json, so its texts cannot be tokenised",
            hint="Write one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR); publish again.",
        )
    config: dict[str, Any] = parse_json(files["config.json"])
    settings = read_settings(files)
    if settings.refused:
        raise CheckpointError(
            f"the checkpoint's tokenizer ({_CONFIG}) cannot be used: {settings.refused}",
            hint="Save a fast tokenizer beside the model with transformers' `save_pretrained`, and publish again.",
        )
    limit = max_positions(config)
    # The model's pad id, not the tokenizer's: some models count their positions by it.
    backend = read_backend(files["tokenizer.json"])
    return Tokenizer(backend, max_length if limit is None else min(max_length, limit), pad_id(config), settings)


def read_settings(files: Mapping[str, bytes]) -> TokenizerSettings:
    """Return what a snapshot says of its tokenizer; of one published before that was written down, what its files tell.

    Raises
    ------
    CheckpointError
        If a file cannot be read.

    Examples
    --------
    >>> read_settings({"tokenizer_config.json": b'{"model_max_length": 512, "mask_token": "[MASK]"}'}).model_max_length
    512
    """
    name = SETTINGS if SETTINGS in files else _CONFIG
    try:
        found = parse_json(files.get(name, b"{}"))
        if name == SETTINGS:
            return TokenizerSettings(**found | {"model_input_names": tuple(found["model_input_names"])})
        mask = found.get("mask_token")
        limit = found.get("model_max_length") or _NO_LIMIT
        return TokenizerSettings(
            model_max_length=int(limit) if limit < _NO_LIMIT else None,
            truncation_side=str(found.get("truncation_side", "right")),
            mask_token=mask.get("content") if isinstance(mask, Mapping) else mask,
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{name} cannot be read: {error}", hint="Publish the checkpoint again.") from error


def mask_id(files: Mapping[str, bytes], tokenizer: Tokenizer) -> int:
    """Return the id that stands for a masked token.

    Raises
    ------
    CheckpointError
        If the tokenizer has none.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> files = ask_tiny("score", "BertForMaskedLM").files
    >>> mask_id(files, make_tokenizer(files, max_length=16))
    4
    """
    named = read_settings(files).mask_token
    names = _MASK_TOKENS if named is None else (named,)
    found = next((number for name in names if (number := tokenizer.token_id(name)) is not None), None)
    if found is None:
        raise CheckpointError(
            "the checkpoint's tokenizer has no mask token, which a masked language model is scored by",
            hint="Name it as mask_token in tokenizer_config.json and publish again.",
        )
    return found

"""Texts to token ids with the checkpoint's own tokenizer, by the `tokenizers` library alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from daskinfer.errors import CheckpointError, InputError, RecipeError
from daskinfer.models.textconfig import max_positions, pad_id

Ids = NDArray[np.int32]
_MASK_TOKENS = ("[MASK]", "<mask>")


class Tokenizer:
    """A checkpoint's tokenizer: special tokens added, long texts truncated, nothing padded.

    Parameters
    ----------
    tokenizer_json
        Content of tokenizer.json; its own padding and truncation are overruled.
    max_length
        Longest row in tokens, special tokens included.
    pad_id
        Id that microbatches are padded with.
    truncation_side
        `right` cuts the end of a long text, `left` its beginning.
    """

    def __init__(self, tokenizer_json: bytes, max_length: int, pad_id: int = 0, truncation_side: str = "right") -> None:
        self.max_length = max_length
        self.pad_id = pad_id
        try:
            # The library raises the bare Exception class for a file that it cannot parse.
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
        except Exception as error:
            raise CheckpointError(
                f"tokenizer.json cannot be read: {error}", hint="Publish the checkpoint with a whole tokenizer.json."
            ) from error
        added = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= added:
            raise RecipeError(
                f"model.options.max_length is {max_length}, but {added} special tokens are added to every text",
                hint=f"Give at least {added + 1}.",
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction=truncation_side)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, shape (tokens,) int32.

        Raises
        ------
        InputError
            If a text is not valid Unicode; `find_unusable` tells which ones are not.
        """
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._encode(texts)]

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


def make_tokenizer(files: Mapping[str, bytes], max_length: int) -> Tokenizer:
    """Return the tokenizer of a checkpoint's plain files.

    Parameters
    ----------
    files
        `tokenizer.json` and `config.json`, and `tokenizer_config.json` where there is one.
    max_length
        Longest row that the recipe wants; the model's own limit holds where it is lower.

    Raises
    ------
    CheckpointError
        If there is no tokenizer.json, or it cannot be read.
    """
    if "tokenizer.json" not in files:
        raise CheckpointError(
            "the checkpoint has no tokenizer.json, so its texts cannot be tokenised",
            hint="Write one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR); publish again.",
        )
    config: dict[str, Any] = json.loads(files["config.json"])
    settings = _settings(files)
    limit = max_positions(config)
    # The model's pad id, not the tokenizer's: some models count their positions by it.
    return Tokenizer(
        files["tokenizer.json"],
        max_length if limit is None else min(max_length, limit),
        pad_id(config),
        str(settings.get("truncation_side", "right")),
    )


def mask_id(files: Mapping[str, bytes], tokenizer: Tokenizer) -> int:
    """Return the id that stands for a masked token.

    Raises
    ------
    CheckpointError
        If the tokenizer has none.
    """
    named = _settings(files).get("mask_token")
    named = named.get("content") if isinstance(named, Mapping) else named
    names = _MASK_TOKENS if named is None else (str(named),)
    found = next((number for name in names if (number := tokenizer.token_id(name)) is not None), None)
    if found is None:
        raise CheckpointError(
            "the checkpoint's tokenizer has no mask token, which a masked language model is scored by",
            hint="Name it as mask_token in tokenizer_config.json and publish again.",
        )
    return found


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(files.get("tokenizer_config.json", b"{}"))
    return settings

"""A checkpoint's tokenizer as transformers loads it, written down so that the `tokenizers` library alone repeats it.

transformers reads tokenizer_config.json, special_tokens_map.json and added_tokens.json beside tokenizer.json, and some
of its classes rebuild half of the tokenizer from them. What comes out of that is stored; jobs never load transformers
for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tokenizers
from transformers import AutoTokenizer

from daskinfer.errors import CheckpointError
from daskinfer.models.folder import Folder
from daskinfer.models.preprocessing.tokenizer import SETTINGS, Tokenizer, TokenizerSettings, read_backend

VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
"""Files that transformers can make a tokenizer of, where there is no tokenizer.json."""

_READ = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
# From here on transformers says that a tokenizer has no limit.
_NO_LIMIT = 10**20
_WHOLE = 10**6
_HINT = "Save a fast tokenizer of transformers beside the model with `tokenizer.save_pretrained`."

PROBES = (
    "",
    " ",
    "a",
    "The small cat sleeps.",
    "Hello World, UPPER case and Title Case",
    "  two spaces before,  between  and after  ",
    "tabs\tand\nlines\r\nand\u00a0no-break\u3000wide spaces\n",
    "na\u00efve caf\u00e9 \u2014 d\u00e9j\u00e0 vu, \u00c5ngstr\u00f6m, \u0130stanbul, Stra\u00dfe",
    "combining: e\u0301 n\u0303 a\u030a, compatibility: \ufb01 \u2460 \uff21\uff22\uff23 \u00bd",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587\u5b57\u7b26 \ud55c\uad6d\uc5b4 \ud55c",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u200frtl\u200e \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "emoji \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u200b\ufeff zero width",
    "\x00 control \x07 and \x1b \x7f \ufffd \u2028 characters",
    "[CLS] [SEP] [PAD] [MASK] [UNK] <s> </s> <pad> <unk> <mask> <|endoftext|> <eos> <bos>",
    "word[SEP]word <mask>. </s>word <s>",
    "1,234.56 3.14e-10 2024-01-31 50% $9 don't I'll we're http://a.b/c?d=e#f x_y snake_case camelCase",
    "x" * 300,
    "a long one " * 60,
)
"""Texts that both ways must give the same ids for."""


def convert_tokenizer(folder: Folder, names: Sequence[str], config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return tokenizer.json and the settings to store of a checkpoint's tokenizer; empty where it has none.

    Parameters
    ----------
    folder
        The checkpoint.
    names
        Its files.
    config
        Content of config.json.

    Returns
    -------
    dict
        `tokenizer.json`, its bytes unchanged where transformers takes it as it is, and `tokenizer_settings.json`. Where
        texts cannot be encoded as transformers does, the settings say why, and tasks on texts refuse the checkpoint.

    Raises
    ------
    CheckpointError
        Where there is no tokenizer.json and none can be made of the vocabulary, or it does not fit the model.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = LocalFolder(make_tiny_bert(Path("tiny"), layers=1))
    >>> list(convert_tokenizer(folder, folder.names(), {})), convert_tokenizer(folder, [], {})
    (['tokenizer.json', 'tokenizer_settings.json'], {})
    """
    own = folder.read("tokenizer.json") if "tokenizer.json" in names else b""
    # Without a vocabulary transformers would build a tokenizer of its special tokens alone, and say nothing.
    if not own and not any(name in names for name in VOCABULARIES):
        return {}
    try:
        loaded = _load(folder, names)
        if not own:
            _check_size(folder, loaded, config)
        settings = _read_settings(loaded)
        stored, backend = _write_down(own, loaded)
        _compare(backend, settings, loaded)
    except CheckpointError as error:
        if own:  # other tasks than those on texts can do without it
            return {"tokenizer.json": own, SETTINGS: TokenizerSettings(refused=error.message).to_json()}
        raise CheckpointError(
            f"{folder.url}: no tokenizer.json, and none could be built ({error.message})", hint=_HINT
        ) from error
    return {"tokenizer.json": stored, SETTINGS: settings.to_json()}


def _load(folder: Folder, names: Sequence[str]) -> Any:
    """Return the tokenizer that transformers makes of a checkpoint's files."""
    with TemporaryDirectory(prefix="daskinfer-tokenizer-") as scratch:
        for name in {*_READ, *VOCABULARIES}.intersection(names):
            (Path(scratch) / name).write_bytes(folder.read(name))
        try:
            loaded: Any = AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever those files make transformers raise
            told = " ".join(str(error).replace(scratch, folder.url).split())
            raise CheckpointError(f"{type(error).__name__}: {told[:300]}", hint=_HINT) from error
    if not hasattr(loaded, "backend_tokenizer"):
        raise CheckpointError(f"tokenizer_class {type(loaded).__name__} is written in Python", hint=_HINT)
    return loaded


def _check_size(folder: Folder, loaded: Any, config: Mapping[str, Any]) -> None:
    size = config.get("vocab_size")
    if isinstance(size, int) and len(loaded) > size:
        raise CheckpointError(
            f"{folder.url}: the tokenizer knows {len(loaded)} tokens, the model {size}",
            hint="Take tokenizer and weights from the same checkpoint.",
        )


def _write_down(own: bytes, loaded: Any) -> tuple[bytes, tokenizers.Tokenizer]:
    """Return the tokenizer.json of a loaded tokenizer, the checkpoint's own where both encode alike, and what it holds."""
    backend = loaded.backend_tokenizer
    # Overruled by every call, or no part of the way from a text to ids.
    before = read_backend(own) if own else backend
    for one in (backend, before):
        one.no_padding()
        one.no_truncation()
    try:
        text: str = backend.to_str()
        if own:
            before.decoder = backend.decoder
            if before.to_str() == text:
                return own, before
    except Exception as error:  # the library's only class
        raise CheckpointError(
            f"tokenizer_class {type(loaded).__name__} cannot be written down: {error}", hint=_HINT
        ) from error
    return text.encode(), read_backend(text.encode())


def _read_settings(loaded: Any) -> TokenizerSettings:
    """Return what a loaded tokenizer does besides what its backend does."""
    limit = int(loaded.model_max_length)
    if limit < 1:
        raise CheckpointError(f"model_max_length is {limit}", hint="Correct it in tokenizer_config.json.")
    try:
        encodings = loaded.backend_tokenizer.encode_batch(list(PROBES))
    except Exception as error:  # the library's only class
        raise CheckpointError(
            f"tokenizer_class {type(loaded).__name__} cannot encode a text: {error}", hint=_HINT
        ) from error
    return TokenizerSettings(
        tokenizer_class=type(loaded).__name__,
        model_input_names=tuple(str(name) for name in loaded.model_input_names),
        model_max_length=None if limit >= _NO_LIMIT else limit,
        truncation_side=str(loaded.truncation_side),
        mask_token=None if loaded.mask_token is None else str(loaded.mask_token),
        split_special_tokens=bool(loaded.split_special_tokens),
        token_types=1 + max(max(encoding.type_ids, default=0) for encoding in encodings),
    )


def _compare(backend: tokenizers.Tokenizer, settings: TokenizerSettings, loaded: Any) -> None:
    """Refuse a tokenizer that encodes any of the texts in another way than what is stored of it."""
    name = settings.tokenizer_class
    ours = Tokenizer(backend, _WHOLE, settings=settings)
    for limit in (_WHOLE, loaded.num_special_tokens_to_add() + 4):
        ours.truncate_to(limit)
        try:
            theirs = loaded(list(PROBES), truncation=True, max_length=limit)
        except Exception as error:  # a class that wants more than texts may raise anything
            raise CheckpointError(
                f"tokenizer_class {name} does not encode texts alone: {type(error).__name__}: {error}", hint=_HINT
            ) from error
        if more := set(theirs) - {"input_ids", "token_type_ids", "attention_mask"}:
            raise CheckpointError(
                f"tokenizer_class {name} returns {', '.join(sorted(more))}, which no task on texts gives the model",
                hint=_HINT,
            )
        types = theirs.get("token_type_ids", [None] * len(PROBES))
        for text, ids, kinds, row in zip(PROBES, theirs["input_ids"], types, ours.encode_rows(PROBES), strict=True):
            found = np.zeros_like(row.ids) if row.types is None else row.types
            if row.ids.tolist() != list(ids) or (kinds is not None and found.tolist() != list(kinds)):
                raise CheckpointError(
                    f"tokenizer_class {name} encodes {text[:40]!r} in another way than its tokenizer.json", hint=_HINT
                )

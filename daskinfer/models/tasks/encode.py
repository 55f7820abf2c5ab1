"""A partition's texts as the model takes them: prompts put before, tokenised, too odd ones refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np

from daskinfer.errors import DaskinferError
from daskinfer.models.preprocessing.encoding import EncodedRows, Variants
from daskinfer.models.preprocessing.textconfig import max_positions, vocab_size
from daskinfer.models.preprocessing.tokenizer import (
    Ids,
    TokenizedRow,
    Tokenizer,
    make_tokenizer,
    mask_id,
    read_settings,
)
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.fields import score_kind, takes_text
from daskinfer.models.tasks.sentence import read_sentence
from daskinfer.redaction import conceal
from daskinfer.spec.recipe.schema import ModelOptions

_LONGEST_REASON = 300
# All of fewer rows may well be bad ones.
_FEWEST_TO_BLAME = 7

Columns = Mapping[str, Any]
"""Column name -> values of a partition's rows: a sequence of texts or images, or an array."""


class Encoder(Protocol):
    """Turns a partition's rows into model inputs."""

    def encode(self, columns: Columns) -> tuple[EncodedRows, dict[int, str]]:
        """Return the rows that can be computed, in order, and why the others cannot, by position in the columns."""
        ...


class TextEncoder:
    """Turns texts into token ids.

    Parameters
    ----------
    tokenizer
        The checkpoint's.
    prompt
        Put before every text.
    lower_case
        Whether prompt and text are lower-cased.
    strip
        Whether white space around both together is taken off.
    vocabulary
        Ids from this number on are unknown to the model; None where it does not say.
    mask
        Id of the mask token, where every token of a text is to be masked in turn.
    max_characters
        Longer texts are refused.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> encoder = TextEncoder(make_tokenizer(ask_tiny("embed").files, 16), prompt="the ", max_characters=100)
    >>> rows, refused = encoder.encode({"text": ["cat", "a" * 101]})
    >>> rows.lengths, refused
    (array([4]), {1: 'the text has 101 characters, more than model.options.max_characters, 100'})
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str = "",
        lower_case: bool = False,
        strip: bool = False,
        vocabulary: int | None = None,
        mask: int | None = None,
        max_characters: int = ModelOptions().max_characters,
    ) -> None:
        self._max_characters = max_characters
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._lower_case = lower_case
        self._strip = strip
        self._vocabulary = vocabulary
        self._mask = mask

    def encode(self, columns: Columns) -> tuple[EncodedRows, dict[int, str]]:
        """Encode the column `text`; refused are texts that are not Unicode, and those without a single token."""
        given = columns["text"]
        too_long = {
            number: f"the text has {len(text):,} characters, more than model.options.max_characters, "
            f"{self._max_characters:,}"
            for number, text in enumerate(given)
            if len(text) > self._max_characters
        }
        texts = ["" if number in too_long else self._prepare(text) for number, text in enumerate(given)]
        refused = self._tokenizer.find_unusable(texts) | too_long
        numbers = [number for number in range(len(texts)) if number not in refused]
        rows: dict[int, TokenizedRow] = {}
        for number, row in zip(numbers, self._tokenizer.encode_rows([texts[n] for n in numbers]), strict=True):
            reason = self._find_fault(row.ids)
            if reason is None:
                rows[number] = row
            else:
                refused[number] = reason
        lengths = [len(row.ids) for row in rows.values()]
        types = [row.types for row in rows.values() if row.types is not None]
        return EncodedRows(
            ids=_join([row.ids for row in rows.values()]),
            starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            pad=self._tokenizer.pad_id,
            variants=None if self._mask is None else self._make_variants([texts[n] for n in rows], self._mask),
            types=_join(types) if types else None,
            truncated=np.array([place for place, row in enumerate(rows.values()) if row.is_truncated], np.int32),
        ), refused

    def _prepare(self, text: str) -> str:
        text = self._prompt + text
        text = text.strip() if self._strip else text
        return text.lower() if self._lower_case else text

    def _find_fault(self, ids: Ids) -> str | None:
        if not len(ids):
            return "the text gives no tokens"
        if self._vocabulary is not None and (highest := int(ids.max())) >= self._vocabulary:
            return f"token id {highest} is unknown to the model, whose vocabulary has {self._vocabulary}"
        return None

    def _make_variants(self, texts: list[str], mask: int) -> Variants:
        words = self._tokenizer.find_words(texts)
        rows = np.repeat(np.arange(len(words), dtype=np.int32), [len(positions) for positions in words])
        return Variants(rows=rows, positions=_join(words), mask=mask)


def _join(rows: list[Ids]) -> Ids:
    return np.concatenate([np.empty(0, np.int32), *rows])


def make_encoder(request: TaskRequest, max_length: int) -> Encoder:
    """Return what encodes a task's rows.

    Parameters
    ----------
    request
        The task.
    max_length
        Longest row in tokens; see `row_length`.

    Raises
    ------
    CheckpointError
        If the checkpoint lacks the files that it takes.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("embed", prompt="the ")
    >>> rows, refused = make_encoder(request, row_length(request)).encode({"text": ["cat", "a small cat"]})
    >>> rows.lengths, rows.batch([0], length=4)["attention_mask"]
    (array([4, 6]), array([[1, 1, 1, 1]]))
    """
    if request.task == "forward":
        from daskinfer.models.preprocessing.arrays import ArrayEncoder

        return ArrayEncoder(request)
    if not takes_text(request):
        from daskinfer.models.preprocessing.images import ImageEncoder

        return ImageEncoder(request.files, request.options.max_pixels)
    return _make_text_encoder(request, max_length)


def _make_text_encoder(request: TaskRequest, max_length: int) -> TextEncoder:
    make = partial(
        TextEncoder,
        make_tokenizer(request.files, max_length),
        vocabulary=vocab_size(request.config),
        max_characters=request.options.max_characters,
    )
    if request.task == "embed":
        sentence = read_sentence(request)
        return make(sentence.prompt, sentence.lower_case, sentence.strip)
    if request.task == "score" and score_kind(request) == "masked":
        return make(mask=mask_id(request.files, make_tokenizer(request.files, max_length)))
    return make()


def encode_rows(encoder: Encoder, columns: Columns) -> tuple[EncodedRows, dict[int, str]]:
    """Encode rows; where that fails, find the rows that it fails with, one by one, and refuse them.

    Raises
    ------
    Exception
        What every row raises is no fault of the rows.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> encoder = make_encoder(ask_tiny("embed"), max_length=16)
    >>> rows, refused = encode_rows(encoder, {"text": ["cat", None, "dog"]})
    >>> len(rows.lengths), refused
    (2, {1: "preparing it raised TypeError: object of type 'NoneType' has no len()"})
    """
    try:
        return encoder.encode(columns)
    except DaskinferError:
        raise
    except Exception:
        count = len(next(iter(columns.values())))
        failed: dict[int, str] = {}
        for number in range(count):
            try:
                encoder.encode({role: values[number : number + 1] for role, values in columns.items()})
            except DaskinferError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the row makes it raise
                failed[number] = conceal(f"preparing it raised {type(error).__name__}: {error}"[:_LONGEST_REASON])
        if not failed or len(failed) == count > _FEWEST_TO_BLAME:
            raise
    kept = [number for number in range(count) if number not in failed]
    encoded, refused = encoder.encode({role: _choose(values, kept) for role, values in columns.items()})
    return encoded, {**failed, **{kept[number]: reason for number, reason in refused.items()}}


def _choose(values: Any, numbers: list[int]) -> Any:
    return values[numbers] if isinstance(values, np.ndarray) else [values[number] for number in numbers]


def row_length(request: TaskRequest) -> int:
    """Return the longest row in tokens: as the recipe says, or less where model or checkpoint have less.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> row_length(ask_tiny("embed", max_length=16)), row_length(ask_tiny("embed", max_length=256))
    (16, 64)
    """
    return min(_limits(request).values())


def explain_length(request: TaskRequest) -> str:
    """Return what makes rows shorter than the recipe asks for, in a sentence; empty where nothing does.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> explain_length(ask_tiny("embed", max_length=256)), explain_length(ask_tiny("embed", max_length=16))
    ('texts have at most 64 tokens by model_max_length of tokenizer_config.json, not 256', '')
    """
    limits = _limits(request)
    where = min(limits, key=lambda name: limits[name])
    asked = request.options.max_length
    return "" if limits[where] == asked else f"texts have at most {limits[where]:,} tokens by {where}, not {asked:,}"


def _limits(request: TaskRequest) -> dict[str, int]:
    """Return every limit of a row's length in tokens, by where it stands; the recipe's comes first."""
    limits = {"model.options.max_length": request.options.max_length}
    sentence = read_sentence(request).max_length if request.task == "embed" else None
    if sentence is not None:
        # sentence-transformers sets the tokenizer's own limit to this one.
        limits["max_seq_length of sentence_bert_config.json"] = sentence
    elif (own := read_settings(request.files).model_max_length) is not None:
        limits["model_max_length of tokenizer_config.json"] = own
    if (positions := max_positions(request.config)) is not None:
        limits["the positions of config.json"] = positions
    return limits


def count_prompt(request: TaskRequest) -> int:
    """Return how many tokens at the beginning of every row are the prompt's, so that pooling may leave them out.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> count_prompt(ask_tiny("embed", prompt="the small ")), count_prompt(ask_tiny("embed"))
    (3, 0)
    """
    sentence = read_sentence(request)
    if not sentence.prompt:
        return 0
    tokenizer = make_tokenizer(request.files, row_length(request))
    text = sentence.prompt.strip() if sentence.strip else sentence.prompt
    prompt = [text.lower() if sentence.lower_case else text]
    length = len(tokenizer.encode(prompt)[0])
    words = tokenizer.find_words(prompt)[0]
    # What is added after a text stands after the prompt's end, not inside it.
    return int(words[-1]) + 1 if len(words) else length

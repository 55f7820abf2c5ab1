"""Translates pydantic's errors into messages for users, each at the place where the mistake was typed."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from daskinfer.spec.recipe.yamltext import KeyPath, Problem, Spots, dotted
from daskinfer.spec.section import Section

_BOUNDS = (
    (annotated_types.Ge, "ge", "at least"),
    (annotated_types.Gt, "gt", "above"),
    (annotated_types.Le, "le", "at most"),
    (annotated_types.Lt, "lt", "below"),
)


def explain(error: ValidationError, model: type[Section], value: Any, spots: Mapping[KeyPath, Spots]) -> list[Problem]:
    """Return one problem for each mistake: the several errors of a union become one sentence.

    Parameters
    ----------
    error
        What `model` said about `value`.
    model
        Class that was validated.
    value
        Plain value that was read.
    spots
        Where each part of it was written.

    Examples
    --------
    >>> from daskinfer.spec.recipe.gate import Gate
    >>> from daskinfer.spec.recipe.yamltext import Source, read_document
    >>> text = "min_rows: none"
    >>> document = read_document(Source("gate.yaml", (text,)), text, {})
    >>> try:
    ...     Gate.model_validate(document.value)
    ... except ValidationError as error:
    ...     print(explain(error, Gate, document.value, document.spots)[0])
    gate.yaml:1:11: min_rows: must be a whole number of at least 1, not 'none'
        1 | min_rows: none
          |           ^^^^
    """
    problems: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False):
        path, in_union = _locate(detail, value)
        problems.setdefault(path, _problem(detail, path, in_union, model, value, spots))
    # A misspelt key is one mistake, not an unknown key and a missing one.
    misspelt = {(*path[:-1], problem.suggestion) for path, problem in problems.items()}
    return [problem for path, problem in problems.items() if path not in misspelt]


def describe(annotation: Any, many: bool = False) -> str:
    """Return what a value of this type looks like: `'auto', a whole number of at least 1, or text`.

    Examples
    --------
    >>> from typing import Literal
    >>> describe(Literal["auto"] | int | None)
    "'auto', a whole number, or null"
    >>> describe(tuple[str, ...])
    'a list of text'
    """
    metadata: list[Any] = []
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *extras = typing.get_args(annotation)
        metadata = [
            entry for extra in extras for entry in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _enumerate([describe(argument, many) for argument in arguments])
    if origin is typing.Literal:
        return _enumerate([repr(argument) for argument in arguments])
    if origin is dict:
        return f"{'mappings' if many else 'a mapping'} of names to {describe(arguments[1], many=True)}"
    if origin is tuple:
        return f"{'lists' if many else 'a list'} of {describe(arguments[0], many=True)}"
    if annotation in (int, float):
        noun = "whole number" if annotation is int else "number"
        return (f"{noun}s" if many else f"a {noun}") + _bounds(metadata)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mappings" if many else "a mapping"
    return {str: "text", bool: "true or false", type(None): "null"}.get(annotation, "something else")


def _locate(detail: ErrorDetails, value: Any) -> tuple[KeyPath, bool]:
    """Return the path of an error without pydantic's union tags, cut at the first union on it."""
    path: KeyPath = ()
    step: Any
    for step in detail["loc"]:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            value = value[step]
            path = (*path, step)
        elif detail["type"] == "missing":
            return (*path, step), False
        else:
            return path, True
    return path, False


def _problem(
    detail: ErrorDetails,
    path: KeyPath,
    in_union: bool,
    model: type[Section],
    value: Any,
    spots: Mapping[KeyPath, Spots],
) -> Problem:
    kind, name = detail["type"], dotted(path)
    if kind == "missing":
        return Problem(spots[path[:-1]].key, name, "missing, and it has no default")
    if kind == "extra_forbidden":
        return Problem(spots[path].key, name, "unknown key", _suggest_key(model, path))
    found = _lookup(value, path)
    if kind == "value_error":
        spot = spots[path].key if isinstance(found, dict) else spots[path].value
        return Problem(spot, name, detail["msg"].removeprefix("Value error, "))
    spot = spots[path].value
    if kind == "string_pattern_mismatch":
        return Problem(spot, name, f"{_show(found)} is not allowed: {_documentation(model, path)}")
    annotation = _annotation(model, path)
    message = f"must be {describe(annotation)}, not {_show(found)}"
    if found is None and not in_union:
        message += "; leave the key out for its default"
    elif isinstance(found, int | float) and "text" in describe(annotation):
        message += "; put it in quotes"
    return Problem(spot, name, message, _closest(str(found), _literals(annotation)))


def _annotation(model: type[Section], path: KeyPath) -> Any:
    """Return the type at `path`, with its constraints."""
    annotation: Any = model
    for step in path:
        section = _section(annotation)
        if section is not None:
            annotation = typing.get_type_hints(section, include_extras=True)[str(step)]
        else:
            annotation = typing.get_args(annotation)[1 if typing.get_origin(annotation) is dict else 0]
    return annotation


def _section(annotation: Any) -> type[Section] | None:
    """Return the model that an annotation means, through `| None`."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) is types.UnionType else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


def _suggest_key(model: type[Section], path: KeyPath) -> str | None:
    parent = _section(_annotation(model, path[:-1]))
    wanted = str(path[-1])
    siblings = list(parent.model_fields) if parent else []
    # A right key in the wrong section is as common as a misspelt one.
    elsewhere = [found for found in _all_keys(model) if found.rpartition(".")[2] == wanted]
    return _closest(wanted, siblings) or (elsewhere[0] if elsewhere else None)


def _all_keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, annotation in typing.get_type_hints(model, include_extras=True).items():
        if name in model.model_fields:
            yield prefix + name
            if (section := _section(annotation)) is not None:
                yield from _all_keys(section, f"{prefix}{name}.")


def _documentation(model: type[Section], path: KeyPath) -> str:
    parent = _section(_annotation(model, path[:-1]))
    text = parent.model_fields[str(path[-1])].description if parent else None
    return (text or "see `daskinfer schema`").rstrip(".")


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(argument) for argument in typing.get_args(annotation)]
    return [text for argument in typing.get_args(annotation) for text in _literals(argument)]


def _closest(word: str, choices: list[str]) -> str | None:
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def _lookup(value: Any, path: KeyPath) -> Any:
    for step in path:
        value = value[step]
    return value


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bounds(metadata: list[Any]) -> str:
    said = [
        f"{words} {getattr(entry, name):,}"
        for kind, name, words in _BOUNDS
        for entry in metadata
        if isinstance(entry, kind)
    ]
    if not said:
        return ""
    return (" of " if said[0].startswith("at ") else " ") + " and ".join(said)


def _enumerate(options: list[str]) -> str:
    if len(options) < 3:
        return " or ".join(options)
    return f"{', '.join(options[:-1])}, or {options[-1]}"

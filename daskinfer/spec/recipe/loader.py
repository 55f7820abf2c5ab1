"""From a recipe file to a `Recipe`, or to every mistake in it at once."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daskinfer.errors import RecipeError
from daskinfer.spec.recipe.explain import explain
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.recipe.yamltext import Document, KeyPath, Problem, Source, Spots, dotted, read_document
from daskinfer.units import format_bytes

_SCHEMA_HINT = "`daskinfer schema` lists every key with its meaning"
_LARGEST = 1_000_000  # bytes; more is a data file given by mistake
_GIVEN = "the recipe"
_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")

RecipeSource = Recipe | Mapping[str, Any] | str | Path
"""What Python code may give as a recipe: see `read_recipe`."""


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Recipe:
    r"""Read, check and freeze a recipe.

    Parameters
    ----------
    path
        YAML file. Relative paths in it are relative to the current directory.
    overrides
        `key.path=value`, each value parsed as YAML; they win over the file, later ones over earlier ones.
    environment
        Where `${VAR}` is looked up; the process's own by default.

    Raises
    ------
    RecipeError
        With every problem that was found: file, line, column, key path, the line and a caret.

    Examples
    --------
    >>> parts = "name: demo, model: {checkpoint: minilm@prod}, input: {url: a.jsonl}, output: {url: a.zarr}"
    >>> _ = Path("recipe.yaml").write_text(f"{{daskinfer: 1, {parts}}}")
    >>> load_recipe("recipe.yaml", ["model.task=classify"]).model.task
    'classify'
    >>> load_recipe("recipe.yaml", ["model.tusk=classify"])
    Traceback (most recent call last):
        ...
    daskinfer.errors.RecipeError: --set model.tusk=classify: model.tusk: unknown key. Did you mean 'task'?
          | model.tusk=classify
          |       ^^^^
    `daskinfer schema` lists every key with its meaning
    """
    return _whole(str(path), *_read(path, overrides, environment))


def read_recipe(
    source: RecipeSource, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Recipe:
    r"""Return the recipe that something at hand in Python is.

    Parameters
    ----------
    source
        A `Recipe`; a mapping of its keys, with mappings in it; YAML text of more than one line; or the path of a file.
    overrides, environment
        As of `load_recipe`. `${VAR}` is looked up in texts of a mapping, too.

    Raises
    ------
    RecipeError
        With every problem that was found; those of a mapping are shown as it reads in JSON.

    Examples
    --------
    >>> keys = {"daskinfer": 1, "name": "demo", "input": {"url": Path("a.jsonl")}, "output": {"url": "a.zarr"}}
    >>> read_recipe({**keys, "model": {"checkpoint": "minilm@prod"}}).input.url
    'a.jsonl'
    >>> read_recipe({**keys, "model": {"checkpoint": "minilm@prod", "tusk": "score"}})
    Traceback (most recent call last):
        ...
    daskinfer.errors.RecipeError: the recipe:12:5: model.tusk: unknown key. Did you mean 'task'?
    ...
    """
    if isinstance(source, Recipe):
        return override_recipe(source, overrides, environment) if overrides else source
    text = source if isinstance(source, str) and "\n" in source else None
    if isinstance(source, Mapping):
        # JSON is YAML, in which no text is taken for a number.
        text = json.dumps(_plain(source, ()), indent=2, ensure_ascii=False)
    if text is not None:
        return _whole(_GIVEN, *_read_text_of(_GIVEN, text, overrides, environment))
    if isinstance(source, str | Path):
        return load_recipe(source, overrides, environment)
    raise RecipeError(
        f"expected a recipe, got {type(source).__name__}",
        hint="Give a path, a mapping of keys, YAML text, or a daskinfer.Recipe.",
    )


def override_recipe(recipe: Recipe, overrides: Sequence[str], environment: Mapping[str, str] | None = None) -> Recipe:
    """Return a recipe with keys changed; `overrides` and `environment` are those of `load_recipe`.

    Raises
    ------
    RecipeError
        With every problem that was found.

    Examples
    --------
    >>> parts = {"model": {"checkpoint": "minilm@prod"}, "input": {"url": "a.jsonl"}, "output": {"url": "a.zarr"}}
    >>> recipe = Recipe(daskinfer=1, name="demo", **parts)
    >>> override_recipe(recipe, ["pipeline.stages=3", "name=other"]).pipeline.stages
    3
    """
    value = recipe.model_dump(mode="json", exclude_none=True)
    document = Document(Source("--set", ("",), numbered=False), value=value)
    changed = _finish(document, overrides, os.environ if environment is None else environment)
    if changed is None:
        raise RecipeError("\n".join(map(str, document.problems)), hint=_SCHEMA_HINT)
    return changed


def validate_recipe(
    path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[Problem, ...]:
    r"""Return everything that is wrong with a recipe, in the order it was written; nothing if it is right.

    Parameters are those of `load_recipe`.

    Raises
    ------
    RecipeError
        Where there is no text to look at: no such file, a directory, not UTF-8.

    Examples
    --------
    >>> _ = Path("recipe.yaml").write_text("daskinfer: 1\nname: demo\nmodle: {checkpoint: minilm@prod}\n")
    >>> for problem in validate_recipe("recipe.yaml"):
    ...     print(problem.path, "-", problem.message, "-", problem.suggestion)
    input - missing, and it has no default - None
    output - missing, and it has no default - None
    modle - unknown key - model
    """
    return _read(path, overrides, environment)[1]


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, with a description of every key, for editors and checkers.

    Examples
    --------
    >>> recipe_schema()["required"]
    ['daskinfer', 'name', 'model', 'input', 'output']
    >>> recipe_schema()["properties"]["name"]["description"]
    'Short name of the job; letters, digits, dot, dash and underscore.'
    """
    schema = Recipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["description"] = part["description"].partition("\n\nExamples\n")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "daskinfer recipe"}


def _read(
    path: str | Path, overrides: Sequence[str], environment: Mapping[str, str] | None
) -> tuple[Recipe | None, tuple[Problem, ...]]:
    return _read_text_of(str(path), _read_text(path), overrides, environment)


def _read_text_of(
    name: str, text: str, overrides: Sequence[str], environment: Mapping[str, str] | None
) -> tuple[Recipe | None, tuple[Problem, ...]]:
    environment = os.environ if environment is None else environment
    source = Source(name, tuple(text.splitlines()))
    document = read_document(source, text, environment)
    if not document.problems and not isinstance(document.value, dict):
        kind = "is empty" if document.value is None else "must be a mapping of keys, such as `name: my-job`"
        document.problems.append(Problem(source.spot(0, 0), "", f"the recipe {kind}"))
    if not isinstance(document.value, dict):
        return None, tuple(document.problems)
    recipe = _finish(document, overrides, environment)
    ordered = sorted(document.problems, key=lambda problem: (problem.spot.line or 10**9, problem.spot.column))
    return recipe, tuple(ordered)


def _whole(name: str, recipe: Recipe | None, problems: Sequence[Problem]) -> Recipe:
    if recipe is None:
        blocks = [str(problem) for problem in problems]
        if len(blocks) > 1:
            blocks.insert(0, f"{len(blocks)} problems in {name}")
        raise RecipeError("\n".join(blocks), hint=_SCHEMA_HINT)
    return recipe


def _plain(value: Any, at: KeyPath) -> Any:
    """Return a value as YAML holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part, (*at, str(key))) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, (*at, index)) for index, part in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise RecipeError(
        f"{_GIVEN}: {dotted(at)}: {type(value).__name__} cannot be a value of a recipe",
        hint="Values are text, numbers, true or false, lists and mappings.",
    )


def _finish(document: Document, overrides: Sequence[str], environment: Mapping[str, str]) -> Recipe | None:
    """Apply the overrides and return the recipe that the document is; None where it has problems."""
    for override in overrides:
        _override(document, override, environment)
    recipe = None
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        known = {problem.path for problem in document.problems}
        found = explain(error, Recipe, document.value, document.spots)
        document.problems += [problem for problem in found if problem.path not in known]
    return None if document.problems else recipe


def _read_text(path: str | Path) -> str:
    path = Path(path)
    try:
        # Whoever opens a pipe that nobody writes to waits for ever; the shell's own, <(command) and -, are written to.
        if not (path.is_file() or path.is_dir() or str(path).startswith(_STREAMS)) and path.exists():
            raise RecipeError(f"{path}: is a pipe, device or socket, not a recipe", hint="write the recipe to a file")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file", hint=_neighbours(path)) from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a directory, not a recipe", hint=_recipes_in(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(f"{path}: cannot be read: {reason}") from None
    if len(data) > _LARGEST:
        size = format_bytes(max(len(data), path.stat().st_size))
        raise RecipeError(f"{path}: {size} is no recipe", hint="is this the data file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path}:{line}: not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        raise RecipeError(message, hint="save the file as UTF-8") from None


def _neighbours(path: Path) -> str | None:
    return _recipes_in(path.parent) if path.parent.is_dir() else f"there is no directory {path.parent}"


def _recipes_in(directory: Path) -> str | None:
    names = sorted(str(found) for found in directory.glob("*.y*ml"))[:5]
    return f"there is {', '.join(names)}" if names else None


def _override(document: Document, override: str, environment: Mapping[str, str]) -> None:
    """Apply one `key.path=value` to the document's value and spots."""
    source = Source(f"--set {override}", tuple(override.splitlines()) or ("",), numbered=False)
    key, equals, text = override.partition("=")
    steps = key.split(".")
    whole = source.spot(0, 0, len(override))
    if not equals or not all(steps):
        document.problems.append(Problem(whole, "", "an override reads key.path=value"))
        return
    place, column = document.value, 0
    at: KeyPath = ()
    for number, step in enumerate(steps):
        spot = source.spot(0, column, len(step))
        column += len(step) + 1
        last = number == len(steps) - 1
        index = _index(place, step)
        if index is None:
            message = f"{dotted(at)} is {_kind(place)}, which has no {step!r}"
            document.problems.append(Problem(spot, dotted((*at, step)), message))
            return
        at = (*at, index)
        if last:
            # Spaces in place of the key keep the columns of the value as they were typed.
            parsed = read_document(source, " " * (len(key) + 1) + text, environment, at)
            document.problems += parsed.problems
            place[index] = parsed.value
            document.spots = {old: spots for old, spots in document.spots.items() if old[: len(at)] != at}
            document.spots |= parsed.spots | {at: Spots(spot, parsed.spots[at].value if at in parsed.spots else whole)}
        else:
            if isinstance(place, dict) and place.get(step) is None:
                place[step] = {}
                document.spots[at] = Spots(spot, spot)
            # An alias in the file may share this value with another key, which must not change.
            place[index] = copy.copy(place[index])
            place = place[index]


def _index(place: Any, step: str) -> str | int | None:
    """Return what `step` means inside `place`; None where it cannot be inside."""
    if isinstance(place, dict):
        return step
    if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
        return int(step)
    return None


def _kind(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)

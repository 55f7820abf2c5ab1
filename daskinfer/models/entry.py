"""Models that a user's own code builds: `package.module:function`, named in the recipe and pinned by its source."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskinfer.errors import CheckpointError
from daskinfer.ids import sha256_of
from daskinfer.spec.snapshot import EntryPoint

if TYPE_CHECKING:
    from torch import nn

_HINT = "Install the package that it is in, or put its folder on PYTHONPATH, on every machine."


def find_entry(function: str) -> EntryPoint:
    r"""Return the entry point that `package.module:function` names, with the digest of its source file.

    The code is not run, and torch is not imported.

    Raises
    ------
    CheckpointError
        Where there is no such module, or it is not a Python file.

    Examples
    --------
    >>> _ = Path("mymodel.py").write_text("def build():\n    ...\n")
    >>> entry = find_entry("mymodel:build")
    >>> entry.function, entry.source == digest_code(b"def build(): ...")
    ('mymodel:build', True)
    >>> find_entry("mymodel.build")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: model.entry 'mymodel.build' is not of the form package.module:function
    E.g. mymodels.unet:build.
    """
    module, _, name = function.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise CheckpointError(
            f"model.entry {function!r} is not of the form package.module:function", hint="E.g. mymodels.unet:build."
        )
    return EntryPoint(function=function, source=digest_code(_find_source(function, module).read_bytes()))


def digest_code(source: bytes) -> str:
    """Return the digest of what Python code says: of its syntax tree, without comments, layout and line numbers.

    Docstrings count, for a program can read them. Code that is none has the digest of its bytes.

    Examples
    --------
    >>> digest_code(b"x = 1") == digest_code(b"x = 1  # one"), digest_code(b"x = 1") == digest_code(b"x = 2")
    (True, False)
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return sha256_of(source)
    return sha256_of(repr(_describe_node(tree)).encode(errors="surrogatepass"))


def _describe_node(node: Any) -> Any:
    """Return a syntax tree as nested tuples, the same under every version of Python: empty fields come and go."""
    if isinstance(node, ast.AST):
        fields = ((name, _describe_node(value)) for name, value in ast.iter_fields(node))
        return (type(node).__name__, *(pair for pair in fields if pair[1] not in (None, ())))
    if isinstance(node, list):
        return tuple(_describe_node(each) for each in node)
    return None if node is None else repr(node)


def confirm_entry(entry: EntryPoint) -> None:
    """Check that the code is here, and still what it was when the model was published; it is not run.

    Raises
    ------
    CheckpointError
        Where it is absent or has changed.

    Examples
    --------
    >>> from daskinfer.testing.models import ownmodels
    >>> confirm_entry(find_entry("daskinfer.testing.models.ownmodels:make_own"))
    >>> confirm_entry(EntryPoint(function="daskinfer.testing.models.ownmodels:make_own", source="sha256:0"))
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: model.entry daskinfer.testing.models.ownmodels:make_own: its source has changed since ...
    """
    found = find_entry(entry.function)
    module, _, _ = entry.function.partition(":")
    # Earlier versions of daskinfer took the digest of the file's bytes.
    if entry.source not in (found.source, sha256_of(_find_source(entry.function, module).read_bytes())):
        raise CheckpointError(
            f"model.entry {entry.function}: its source has changed since it was published\n"
            f"  now {found.source}\n  published {entry.source}",
            hint="Publish the model again, or install the code that it was published with on every machine.",
        )


def load_entry(entry: EntryPoint, *, weights: bool = False) -> nn.Module:
    """Call an entry point and return the module it builds, in evaluation mode.

    Parameters
    ----------
    entry
        What to call; its source must still be what it was published as.
    weights
        Build it with weights of its own; by default all parameters are on the meta device.

    Raises
    ------
    CheckpointError
        Where the code is absent, has changed, fails, or returns something else than a module.

    Examples
    --------
    >>> model = load_entry(find_entry("daskinfer.testing.models.ownmodels:make_own"))
    >>> model.training, {parameter.device.type for parameter in model.parameters()}
    (False, {'meta'})
    """
    confirm_entry(entry)
    return _call(entry, _import_function(entry.function), weights)


def check_builds(entry: EntryPoint, model: nn.Module | None = None) -> None:
    """Build a user's module again, and refuse it where what it holds beside its saved state comes out differently.

    Once with weights and once without, under other seeds; once by its source file run anew; and with weights once in
    another process.

    Parameters
    ----------
    entry
        What builds it.
    model
        The module with its weights; by default only builds without weights are compared.

    Raises
    ------
    CheckpointError
        Where a value differs, with its name.

    Examples
    --------
    >>> check_builds(find_entry("daskinfer.testing.models.ownmodels:make_own"))
    """
    from daskinfer.models.unsaved import collect_unsaved, refuse_unsaved, seeded

    weights = model is not None
    with seeded(1):
        first = collect_unsaved(model or load_entry(entry))
    builds = {"": first}
    with seeded(2):
        builds["from build to build"] = collect_unsaved(_call(entry, _run_again(entry), weights))
    if weights:
        with seeded(3):
            builds["where it is built without weights, as workers build it"] = collect_unsaved(load_entry(entry))
    refuse_unsaved(entry.function, builds)
    if weights:
        from daskinfer.models.entry_apart import refuse_process_values

        refuse_process_values(entry, first)


def call_with_weights(entry: EntryPoint) -> nn.Module:
    """Return the module that an entry point builds, with weights of its own; its source is taken as it is.

    Examples
    --------
    >>> model = call_with_weights(find_entry("daskinfer.testing.models.ownmodels:make_own"))
    >>> {parameter.device.type for parameter in model.parameters()}
    {'cpu'}
    """
    return _call(entry, _import_function(entry.function), weights=True)


def _run_again(entry: EntryPoint) -> Callable[[], Any]:
    """Return the function out of a fresh run of its file; the imported one, where the file cannot be run twice."""
    module, _, name = entry.function.partition(":")
    spec = importlib.util.spec_from_file_location(module, _find_source(entry.function, module))
    if spec is not None and spec.loader is not None:
        with suppress(Exception):
            fresh = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(fresh)
            again: Callable[[], Any] = getattr(fresh, name)
            return again
    return _import_function(entry.function)


def _import_function(function: str) -> Callable[[], Any]:
    """Return what an entry point names; its module, and the packages that it is in, are run for it."""
    module, _, name = function.partition(":")
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"model.entry {function} cannot be imported: {error}", hint=_HINT) from error
    except (Exception, SystemExit) as error:
        raise CheckpointError(_describe_failure(function, error), hint="Correct the module.") from error
    return found


def _describe_failure(function: str, error: BaseException) -> str:
    """Say why the user's code cannot be imported, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where, what = f"{place.filename}:{place.lineno}", str(error)
    if isinstance(error, SyntaxError) and error.filename:
        where, what = f"{error.filename}:{error.lineno}", error.msg
    return f"model.entry {function} cannot be imported: {where}: {type(error).__name__}: {what}"


def _call(entry: EntryPoint, function: Callable[[], Any], weights: bool) -> nn.Module:
    # Torch stays out of processes that only look for an entry point.
    from torch import nn

    try:
        if weights:
            model = function()
        else:
            from daskinfer.models.architecture import without_weights

            with without_weights():
                model = function()
    except Exception as error:
        raise CheckpointError(
            f"model.entry {entry.function} failed: {type(error).__name__}: {error}",
            hint="It is called without arguments.",
        ) from error
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"model.entry {entry.function} returned a {type(model).__name__}", hint="Return a torch.nn.Module."
        )
    return model.eval()


def _find_source(function: str, module: str) -> Path:
    # `python` has the working directory on its path; the daskinfer command and Dask's workers have not.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise CheckpointError(f"model.entry {function}: {error}", hint=_HINT) from error
    except (Exception, SystemExit) as error:  # of a package that the module is in
        raise CheckpointError(_describe_failure(function, error), hint="Correct the package.") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise CheckpointError(f"model.entry {function}: there is no Python file for {module}", hint=_HINT)
    return Path(spec.origin)

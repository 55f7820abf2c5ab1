"""Code that comes with a checkpoint: .py files beside config.json, whose `auto_map` says which classes they hold.

transformers would copy them to a folder in the user's home and run the copy; here exactly the bytes of the snapshot run.
"""

from __future__ import annotations

import atexit
import importlib
import re
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import TYPE_CHECKING, Any

from daskinfer.errors import CheckpointError
from daskinfer.ids import digest_of, sha256_of, shorten
from daskinfer.spec.snapshot import Manifest

if TYPE_CHECKING:
    from daskinfer.models.folder import Folder

PACKAGE = "daskinfer_code_"
"""What the names of packages made of a snapshot's code begin with; the rest is their digest."""

_REFERENCE = re.compile(r"([^\W\d]\w*)\.([^\W\d]\w*)")
_LOCK = threading.Lock()


def read_code(folder: Folder, names: list[str], config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the .py files of a checkpoint whose configuration names code; nothing is run.

    Parameters
    ----------
    folder
        Where the checkpoint is.
    names
        Its files.
    config
        Content of config.json.

    Raises
    ------
    CheckpointError
        Where `auto_map` names code of another repository, or a file that is not there.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> _ = Path("modeling_tiny.py").write_text("class TinyModel: ...")
    >>> here, names = LocalFolder(Path(".")), ["modeling_tiny.py"]
    >>> read_code(here, names, {"auto_map": {"AutoModel": "modeling_tiny.TinyModel"}})
    {'modeling_tiny.py': b'class TinyModel: ...'}
    >>> read_code(here, names, {"auto_map": {"AutoModel": "other/repository--a.Model"}})
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: .../config.json: auto_map takes AutoModel from another repository: ...
    """
    where = f"{folder.url}/config.json"
    for name, reference in _read_map(config, where).items():
        if "--" in reference:
            raise CheckpointError(
                f"{where}: auto_map takes {name} from another repository: {reference}; nothing is ever downloaded",
                hint="Put that repository's .py files beside config.json, and leave out what stands before the --.",
            )
        found = _REFERENCE.fullmatch(reference)
        if found is None or f"{found[1]}.py" not in names:
            raise CheckpointError(
                f"{where}: auto_map takes {name} from {reference!r}, and there is no such file",
                hint="Fetch the checkpoint again, with its .py files.",
            )
    code = {name: folder.read(name) for name in names if name.endswith(".py")} if config.get("auto_map") else {}
    return {name: data for name, data in code.items() if data}


def check_trust(manifest: Manifest, trusted: bool) -> None:
    """Refuse a snapshot that holds code, unless it is trusted.

    Raises
    ------
    CheckpointError
        Where its code may not be run.

    Examples
    --------
    >>> from daskinfer.spec.snapshot import PlainFile
    >>> code = PlainFile(path="modeling_tiny.py", size=1, sha256="0" * 64, blob="blobs/0")
    >>> manifest = Manifest(model="tiny", architecture="TinyModel", dtype="float32", files=[code], groups=[])
    >>> check_trust(manifest, trusted=True)
    >>> check_trust(manifest, trusted=False)
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: tiny (...) holds code of its own, which is not run unasked: ...
    """
    if manifest.code and not trusted:
        raise CheckpointError(
            f"{manifest.model} ({shorten(manifest.digest)}) holds code of its own, which is not run unasked: "
            f"{', '.join(manifest.code)}",
            hint="If you trust these files, set model.trust_code: true in the recipe; publish and profile take --trust-code.",
        )


def find_class(config: Mapping[str, Any], files: Mapping[str, bytes], name: str) -> Any:
    """Return a class of a checkpoint's own code, which is run for it; None where it is left to transformers.

    Parameters
    ----------
    config
        Content of config.json.
    files
        The snapshot's plain files; only code that is among them is run.
    name
        An Auto class (`AutoConfig`, `AutoModel`), or the name of the class itself.

    Raises
    ------
    CheckpointError
        Where the code cannot be imported, or has models but not this one.

    Examples
    --------
    >>> config = {"auto_map": {"AutoModel": "modeling_tiny.TinyModel"}}
    >>> find_class(config, {"modeling_tiny.py": b"class TinyModel: ..."}, "AutoModel").__name__
    'TinyModel'
    >>> find_class({}, {"config.json": b"{}"}, "AutoModel") is None
    True
    """
    code = {path: data for path, data in files.items() if path.endswith(".py")}
    if not code:
        return None
    references = _read_map(config, "config.json")
    reference = references.get(name) or next((one for one in references.values() if one.endswith(f".{name}")), None)
    if reference is None:
        if name != "AutoConfig" and any(key.startswith("AutoModel") for key in references):
            # A class of transformers by that name would be another model.
            raise CheckpointError(
                f"config.json: auto_map has no {name}, only {', '.join(references)}", hint="Choose another task."
            )
        return None
    module, _, class_name = reference.partition(".")
    found = getattr(_import_module(code, module), class_name, None)
    if not isinstance(found, type):
        raise CheckpointError(
            f"config.json: auto_map names {reference}, but {module}.py has no such class",
            hint="Fetch the checkpoint again.",
        )
    return found


def _read_map(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return what `auto_map` says of configurations and models; other code, such as tokenizers, is never used."""
    listed = config.get("auto_map") or {}
    if not isinstance(listed, Mapping):
        raise CheckpointError(f"{where}: auto_map is not an object", hint="Fetch the checkpoint again.")
    return {name: str(value) for name, value in listed.items() if name.startswith(("AutoConfig", "AutoModel"))}


def _import_module(code: Mapping[str, bytes], module: str) -> ModuleType:
    """Import a module of a package that consists of these files alone, made once in a process."""
    package = PACKAGE + shorten(digest_of({path: sha256_of(data) for path, data in code.items()}), 32)
    with _LOCK:
        if package not in sys.modules:
            folder = Path(mkdtemp(prefix=f"{package}-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            for path, data in code.items():
                (folder / path).write_bytes(data)
            made = ModuleType(package)
            made.__path__ = [str(folder)]
            sys.modules[package] = made
    try:
        return importlib.import_module(f"{package}.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").removeprefix(f"{package}.")
        raise CheckpointError(
            f"{module}.py of the checkpoint needs the module {missing}, which is not installed",
            hint=f"Install it on every machine, or put {missing}.py beside config.json where it is the checkpoint's own.",
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{module}.py of the checkpoint cannot be imported: {type(error).__name__}: {error}",
            hint="It may want another version of transformers; or publish the model through code of your own: model.entry.",
        ) from error

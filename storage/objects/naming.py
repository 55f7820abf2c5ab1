"""Names that become paths, what someone may have meant by a wrong one, and who wrote a record."""

from __future__ import annotations

import difflib
import getpass
import os
import re
import socket
from collections.abc import Iterable
from datetime import UTC, datetime

from daskinfer.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"v\d+")


def check_name(name: str, what: str) -> str:
    """Return the name if it may be one of a checkpoint, an alias or a job.

    Raises
    ------
    CheckpointError
        Where it may not; the message calls it a `what` name.

    Examples
    --------
    >>> check_name("minilm-v2.1", "checkpoint")
    'minilm-v2.1'
    >>> check_name("../minilm", "checkpoint")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: '../minilm' is not allowed as checkpoint name
    Use up to 100 letters, digits, dots, dashes and underscores; begin with a letter or a digit.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not allowed as {what} name",
            hint="Use up to 100 letters, digits, dots, dashes and underscores; begin with a letter or a digit.",
        )
    return name


def check_alias(alias: str) -> str:
    """Return the alias if it may be one: a name that does not read as a version number.

    Examples
    --------
    >>> check_alias("prod")
    'prod'
    >>> check_alias("v3")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: 'v3' is not allowed as alias: it reads as a version number
    Use a word.
    """
    if alias == "versions":  # rights to models/*/versions/* would be rights to models/NAME/aliases/versions/
        raise CheckpointError(f"{alias!r} is not allowed as alias: it names the versions", hint="Use another word.")
    if _VERSION.fullmatch(alias):
        raise CheckpointError(f"{alias!r} is not allowed as alias: it reads as a version number", hint="Use a word.")
    return check_name(alias, "alias")


def suggest(wrong: str, known: Iterable[str], empty: str | None = None) -> str | None:
    """Return "Did you mean ...?", or what there is; `empty` where there is nothing.

    Examples
    --------
    >>> suggest("pord", ["prod", "test"]), suggest("x", ["prod", "test"]), suggest("x", [], "There is none.")
    ('Did you mean prod?', 'There is: prod, test.', 'There is none.')
    """
    known = sorted(known)
    if close := difflib.get_close_matches(wrong, known, n=1):
        return f"Did you mean {close[0]}?"
    return f"There is: {', '.join(known[:10])}." if known else empty


def name_principal() -> str:
    """Return who this process acts for: user@host.

    Examples
    --------
    >>> user, host = name_principal().split("@")
    >>> host == socket.gethostname()
    True
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers run under ids without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def make_signature() -> dict[str, str]:
    """Return who writes a record (`by`: user@host) and when (`at`: ISO 8601, UTC).

    Examples
    --------
    >>> sorted(make_signature())
    ['at', 'by']
    """
    return {"by": name_principal(), "at": datetime.now(UTC).isoformat(timespec="seconds")}

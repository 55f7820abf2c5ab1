"""Log records that say what they are about: the job, and its epoch, snapshot, partition ... as far as they apply.

Records of daskinfer, and those that a user's own model code makes while a task runs, go through the standard `logging`
module. Nothing is written unless somebody asks for it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from daskinfer.hidden import escape_json, escape_text
from daskinfer.redaction import conceal

Format = Literal["text", "json"]
Level = Literal["info", "debug"]

FIELDS = ("job", "epoch", "snapshot", "partition", "microbatch", "attempt", "stage")
"""What a record may be about, in the order in which it is told."""

# What they have to say below a warning is for those who work on them.
_CHATTY = frozenset(
    {
        "aiobotocore", "aiohttp", "asyncio", "botocore", "dask", "distributed", "filelock", "fsspec", "gcsfs", "google",
        "h5py", "numcodecs", "numexpr", "PIL", "s3fs", "tornado", "torch", "transformers", "urllib3", "zarr",
    }
)  # fmt: skip
_ORDINARY = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})

_about: ContextVar[Mapping[str, Any]] = ContextVar("daskinfer_about", default={})  # noqa: B039 - never changed in place

# Else Python prints warnings of a library that nobody has set up logging for.
logging.getLogger("daskinfer").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How records are written."""

    format: Format = "text"
    """`json`: an object a line."""
    file: str | None = None
    """Absolute path of a file to append to; None for stderr."""
    level: Level = "info"
    """`debug` tells of every microbatch."""


@contextmanager
def logging_context(**about: Any) -> Iterator[None]:
    """Let every record of this thread say what it is about, beside what it says already.

    Examples
    --------
    >>> record = logging.makeLogRecord({"name": "daskinfer", "levelname": "INFO", "msg": "committed", "created": 0})
    >>> with logging_context(job="embed-1", partition=3):
    ...     print(TextFormatter().format(record))
    1970-01-01T00:00:00.000+00:00 INFO daskinfer [job=embed-1 partition=3] committed
    """
    token = _about.set({**_about.get(), **about})
    try:
        yield
    finally:
        _about.reset(token)


class TextFormatter(logging.Formatter):
    """A line for people: time, level, logger, what it is about, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it where there is one."""
        about = " ".join(f"{name}={value}" for name, value in _facts_of(record).items())
        head = f"{_time_of(record)} {record.levelname} {record.name}"
        # What begins at the margin is a record: text from outside may hold newlines.
        message = record.getMessage().replace("\n", "\n  ")
        about = about.replace("\n", "\\n")
        lines = [f"{head} [{about}] {message}", *_trace_of(record)]
        return escape_text(conceal("\n".join(lines)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, process, message, what it is about, and what `extra` added."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": f"{socket.gethostname()}:{record.process}",
            "message": record.getMessage(),
            **_facts_of(record),
        }
        if trace := _trace_of(record):
            facts["traceback"] = "\n".join(trace)
        return escape_json(conceal(json.dumps(facts, ensure_ascii=False, default=str)))


class _Lines(logging.Handler):
    """Writes each record at once, so that the lines of several processes that append to one file stay whole."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self.settings = settings
        self._file = None
        if settings.file is not None:
            self._file = os.open(settings.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
        self.addFilter(_is_wanted)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n"
            if self._file is not None:
                os.write(self._file, line.encode(errors="backslashreplace"))
            else:
                sys.stderr.write(line)  # which a progress display may have put itself before
                sys.stderr.flush()
        except Exception:  # noqa: BLE001 - logging must never stop what it tells of
            self.handleError(record)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        super().close()


def set_up_logging(settings: LogSettings | None) -> None:
    """Write this process's records from now on; None ends it.

    Raises
    ------
    OSError
        The file cannot be written.

    Examples
    --------
    >>> set_up_logging(LogSettings(format="json", file="run.log"))
    >>> logging.getLogger("daskinfer").info("begun")
    >>> set_up_logging(None)
    >>> from pathlib import Path
    >>> json.loads(Path("run.log").read_text())["message"]
    'begun'
    """
    root = logging.getLogger()
    handler = None if settings is None else _Lines(settings)
    for other in [each for each in root.handlers if isinstance(each, _Lines)]:
        root.removeHandler(other)
        other.close()
    if handler is None:
        root.setLevel(logging.WARNING)
    else:
        root.addHandler(handler)
        root.setLevel(handler.settings.level.upper())


def log_settings() -> LogSettings | None:
    """Return how this process's records are written; None where they are not.

    Examples
    --------
    >>> set_up_logging(LogSettings(level="debug"))
    >>> log_settings()
    LogSettings(format='text', file=None, level='debug')
    >>> set_up_logging(None)
    >>> log_settings() is None
    True
    """
    return next((each.settings for each in logging.getLogger().handlers if isinstance(each, _Lines)), None)


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _CHATTY


def _facts_of(record: logging.LogRecord) -> dict[str, Any]:
    about = _about.get()
    facts = {name: about[name] for name in FIELDS if about.get(name) is not None}
    return facts | {name: value for name, value in vars(record).items() if name not in _ORDINARY}


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _trace_of(record: logging.LogRecord) -> list[str]:
    return [logging.Formatter().formatException(record.exc_info)] if record.exc_info else []

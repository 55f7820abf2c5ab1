"""Trying again what a store refused for the moment: busy, overloaded, out of reach."""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
    wait_random_exponential,
)

from daskinfer.errors import StorageRefused
from daskinfer.knobs import STORE_ATTEMPTS

T = TypeVar("T")

_TRANSIENT = {errno.EBUSY, errno.EREMOTEIO, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT}
_AWAY = {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESTALE}
_TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
_TRANSIENT_CLASSES = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.HTTPClientError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
}
_AWAY_CLASSES = {"botocore.exceptions.ConnectionError"}


def persist(url: str, call: Callable[[], T]) -> T:
    """Return what a call gives that may be repeated, once the store lets it through.

    Raises
    ------
    StorageRefused
        Where the store stays busy.

    Examples
    --------
    >>> answers = [ConnectionError("reset"), "here"]
    >>> def call():
    ...     answer = answers.pop(0)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> persist("s3://bucket/a", call)
    'here'
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_after_attempt(STORE_ATTEMPTS.get()),
    )
    try:
        return retrying(call)
    except RetryError as error:
        raise StorageRefused(
            f"{url} stayed busy for {STORE_ATTEMPTS.get()} attempts: {error.last_attempt.exception()}",
            hint="The store is overloaded or refuses conditional writes; run the command again later.",
        ) from error


def outlast(
    call: Callable[[], T],
    seconds: float,
    tell: Callable[[StorageRefused], object] = lambda error: None,
    stopping: Event | None = None,
) -> T:
    """Return what a call gives that may be repeated, when the store is back.

    Parameters
    ----------
    call
        What to do.
    seconds
        For how long to try again.
    tell
        Called after the first refusal.
    stopping
        Ends the waiting when it is set.

    Raises
    ------
    StorageRefused
        Where the store stays away.

    Examples
    --------
    >>> def call():
    ...     raise StorageRefused("s3://bucket is away")
    >>> outlast(call, seconds=0)
    Traceback (most recent call last):
        ...
    daskinfer.errors.StorageRefused: s3://bucket is away
    """
    stopping = Event() if stopping is None else stopping
    refused: list[StorageRefused] = []

    def attempt() -> T:
        try:
            return call()
        except StorageRefused as error:
            if not refused:
                refused.append(error)
                tell(error)
            raise

    retrying = Retrying(
        retry=retry_if_exception_type(StorageRefused),
        wait=wait_exponential(max=30),
        stop=stop_after_delay(seconds) | stop_when_event_set(stopping),
        sleep=sleep_using_event(stopping),
        reraise=True,
    )
    return retrying(attempt)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help.

    Examples
    --------
    >>> is_transient(ConnectionResetError()), is_transient(PermissionError())
    (True, False)
    """
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return True
    # Clients raise classes of their own, and s3fs knows too few of the codes that S3 sends with a 409.
    return _http_status(error) in _TRANSIENT_STATUS or not _class_names(error).isdisjoint(_TRANSIENT_CLASSES)


def is_away(error: BaseException) -> bool:
    """Whether the store may be back in a minute or an hour, though trying again at once may not help.

    Examples
    --------
    >>> is_away(OSError(errno.EHOSTUNREACH, "no route")), is_away(FileNotFoundError())
    (True, False)
    """
    if is_transient(error) or (isinstance(error, OSError) and error.errno in _AWAY):
        return True
    return not _class_names(error).isdisjoint(_AWAY_CLASSES)


def _class_names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _http_status(error: BaseException) -> int:
    """Return the status that a store answered with, where its client tells: gcsfs in `code`, s3fs in the cause."""
    code = getattr(error, "code", 0)
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(code) if str(code).isdecimal() else 0

"""Trying again what a store refused for the moment: busy, overloaded, out of reach."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from daskinfer.errors import StorageError

T = TypeVar("T")

ATTEMPTS = 8

_TRANSIENT = {errno.EBUSY, errno.EREMOTEIO, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT}
_TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
_TRANSIENT_CLASSES = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.HTTPClientError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
}


def persist(url: str, call: Callable[[], T]) -> T:
    """Return what a call gives that may be repeated, once the store lets it through.

    Raises
    ------
    StorageError
        Where the store stays busy.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_after_attempt(ATTEMPTS),
    )
    try:
        return retrying(call)
    except RetryError as error:
        raise StorageError(
            f"{url} stayed busy for {ATTEMPTS} attempts: {error.last_attempt.exception()}",
            hint="The store is overloaded or refuses conditional writes; run the command again later.",
        ) from error


def is_transient(error: BaseException) -> bool:
    """Say whether trying again may help."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return True
    # Clients raise classes of their own, and s3fs knows too few of the codes that S3 sends with a 409.
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return _http_status(error) in _TRANSIENT_STATUS or not names.isdisjoint(_TRANSIENT_CLASSES)


def _http_status(error: BaseException) -> int:
    """Return the status that a store answered with, where its client tells: gcsfs in `code`, s3fs in the cause."""
    code = getattr(error, "code", 0)
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(code) if str(code).isdecimal() else 0

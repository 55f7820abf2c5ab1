"""An S3 server process for tests: moto, with what some stores and networks do wrong on demand.

::

    python -m daskinfer.testing.servers.s3server PORT [--host ADDRESS] [--ignore-conditions] [--ignore-if-match] [--seed N] [--FAULT RATE]...

Faults hit a share of the requests: `--busy` answers 503 and `--conflict` 409 to a conditional write, both without
doing anything; `--drop` does what was asked and breaks the connection instead of answering; `--short` breaks it in the
middle of an object.
"""

from __future__ import annotations

import argparse
import random
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

FAULTS = ("busy", "conflict", "drop", "short")

_ANSWERS = {
    "busy": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "conflict": ("409 Conflict", "ConditionalRequestConflict", "A conflicting operation occurred."),
}

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class FaultyApplication:
    """A WSGI application in front of another one, which it serves badly.

    Parameters
    ----------
    application
        The good one.
    rates
        Fault -> share of the requests that it hits, of those that it can.
    seed
        Of the schedule.
    ignored
        Conditions that writes are made without, as S3-compatible stores do that do not know them.
    """

    def __init__(
        self, application: Application, rates: Mapping[str, float], seed: int, ignored: Collection[str]
    ) -> None:
        self._application = application
        self._rates = rates
        self._random = random.Random(seed)
        self._ignored = ignored

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        fault = self._choose(environ)
        for condition in self._ignored:
            environ.pop(condition, None)
        if fault in _ANSWERS:
            status, code, message = _ANSWERS[fault]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]
        body = list(self._application(environ, start_response))
        connection: socket.socket = environ["werkzeug.socket"]
        if fault == "drop":
            connection.shutdown(socket.SHUT_RDWR)
        elif fault == "short":
            whole = b"".join(body)
            return self._break_off(whole[: len(whole) // 2], connection)
        return body

    def _choose(self, environ: Environ) -> str | None:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith("/moto-api") or path.count("/") < 2:
            return None
        possible = {"busy"}
        if environ.get("HTTP_IF_NONE_MATCH"):
            possible.add("conflict")
        if method in ("PUT", "POST", "DELETE"):
            possible.add("drop")
        if method == "GET":
            possible.add("short")
        # One number a request, whatever is possible: the schedule does not depend on what is asked.
        point = self._random.random()
        for fault, rate in self._rates.items():
            if point < rate:
                return fault if fault in possible else None
            point -= rate
        return None

    @staticmethod
    def _break_off(beginning: bytes, connection: socket.socket) -> Iterable[bytes]:
        yield beginning
        connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ignore-conditions", action="store_true")
    parser.add_argument("--ignore-if-match", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    for fault in FAULTS:
        parser.add_argument(f"--{fault}", type=float, default=0.0)
    options = parser.parse_args()
    backend = DomainDispatcherApplication(create_backend_app)
    rates = {fault: getattr(options, fault) for fault in FAULTS}
    ignored = ["HTTP_IF_MATCH"] if options.ignore_if_match or options.ignore_conditions else []
    ignored += ["HTTP_IF_NONE_MATCH"] if options.ignore_conditions else []
    application = FaultyApplication(backend, rates, options.seed, ignored)
    # One request after the other: with threads, moto checks If-None-Match and stores the object in two steps, and two
    # writers can win, which S3 rules out.
    run_simple(options.host, options.port, application, threaded=False)


if __name__ == "__main__":
    main()

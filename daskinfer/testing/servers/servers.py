"""Real store servers on this machine: each a process of its own, so that child processes reach it too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

S3_BUCKET = "daskinfer-test"

_S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


@contextmanager
def serve_s3(*options: str) -> Iterator[dict[str, str]]:
    """Serve S3 with one empty bucket, `S3_BUCKET`; yield the environment variables by which clients find it.

    Parameters
    ----------
    options
        What the server is to do wrong; see `daskinfer.testing.servers.s3server`.

    Examples
    --------
    >>> from daskinfer.storage.objects.create_if_absent import create
    >>> with serve_s3() as variables, environment(variables):
    ...     create(f"s3://{S3_BUCKET}/record", b"mine"), create(f"s3://{S3_BUCKET}/record", b"others'")
    (True, False)
    """
    with _serve("daskinfer.testing.servers.s3server", "/moto-api/", *options) as endpoint:
        _direct().open(urllib.request.Request(f"{endpoint}/{S3_BUCKET}", method="PUT"), timeout=30).close()
        yield {"AWS_ENDPOINT_URL": endpoint, **_S3_ENVIRONMENT}


@contextmanager
def serve_gcs(*options: str) -> Iterator[dict[str, str]]:
    """Serve the JSON API of Google Cloud Storage; yield the environment variables by which clients find it.

    Parameters
    ----------
    options
        What the server is to do wrong; see `daskinfer.testing.servers.gcsserver`.

    Examples
    --------
    >>> with serve_gcs() as variables:
    ...     sorted(variables)
    ['NO_GCE_CHECK', 'NO_PROXY', 'STORAGE_EMULATOR_HOST']
    """
    with _serve("daskinfer.testing.servers.gcsserver", "/", *options) as endpoint:
        yield {"STORAGE_EMULATOR_HOST": endpoint, "NO_GCE_CHECK": "true", "NO_PROXY": "127.0.0.1"}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set a server's environment variables within the context; `AWS_PROFILE`, which would win over them, is unset.

    Examples
    --------
    >>> with environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}):
    ...     os.environ["AWS_ENDPOINT_URL"]
    'http://127.0.0.1:9000'
    """
    before = dict(os.environ)
    os.environ.update(variables)
    os.environ.pop("AWS_PROFILE", None)
    _forget_clients()
    try:
        yield
    finally:
        _forget_clients()
        for name in {*variables, "AWS_PROFILE"}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def _forget_clients() -> None:
    """Let fsspec make new clients: those that it keeps stay with the server of the time when they were made."""
    for module, name in (("s3fs", "S3FileSystem"), ("gcsfs", "GCSFileSystem")):
        if module in sys.modules:
            getattr(sys.modules[module], name).clear_instance_cache()


@contextmanager
def _serve(module: str, ready: str, *options: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", module, str(port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await(server, f"{endpoint}{ready}")
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


def _await(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            _direct().open(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"the server behind {url} did not start")


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec import filesystem

from daskinfer.ids import make_nonce
from daskinfer.testing.campaigns import VARIABLE

# One request after the other: with threads, moto checks If-None-Match and stores the object in two steps, and two
# writers can win, which S3 rules out.
_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign", action="store_true", help="run the long campaigns too, and short turns at full length"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the machine's cache out of the home folder: in one that all processes of this session share."""
    if config.getoption("--campaign"):
        os.environ[VARIABLE] = "1"
    if not hasattr(config, "workerinput"):  # xdist's workers inherit it
        folder = tempfile.TemporaryDirectory(prefix="daskinfer-cache-", ignore_cleanup_errors=True)
        os.environ["DASKINFER_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("campaign") and not item.config.getoption("--campaign"):
        pytest.skip("a long campaign: --campaign runs it")
    if item.get_closest_marker("gpu"):
        import torch  # not for the tests that do without

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of a bucket on a real S3 server process; child processes reach it through the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", _SERVER, str(port)]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        patch.delenv("AWS_PROFILE", raising=False)
        server = subprocess.Popen(command, env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await_server(server, endpoint)
            filesystem("s3", use_listings_cache=False).mkdir("daskinfer-test")
            yield "s3://daskinfer-test"
        finally:
            server.terminate()
            server.wait(timeout=10)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty folder, on each kind of store in turn."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{make_nonce()}"
    return f"{request.getfixturevalue('s3_url')}/{make_nonce()}"


def _await_server(server: subprocess.Popen[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"the S3 server at {endpoint} did not start")

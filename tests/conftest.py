from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import dask
import pytest
from hypothesis import HealthCheck, settings

from daskinfer.ids import make_nonce
from daskinfer.testing.servers.servers import S3_BUCKET, environment, serve_gcs, serve_s3
from daskinfer.testing.stress.campaigns import VARIABLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign", action="store_true", help="run the long campaigns too, and short turns at full length"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the machine's cache and its background cluster out of the user's folders: all processes of this session share one."""
    if config.getoption("--campaign"):
        os.environ[VARIABLE] = "1"
    # The same examples in every run; only a campaign looks for new ones. How long they take is the machine's affair.
    settings.register_profile(
        "daskinfer",
        derandomize=VARIABLE not in os.environ,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("daskinfer")
    # Idle workers with Dask's defaults, of all clusters that the tests keep, take a third of the machine to watch themselves.
    os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
    os.environ["DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL"] = "500ms"
    dask.config.refresh()
    if not hasattr(config, "workerinput"):  # xdist's workers inherit it
        folder = tempfile.TemporaryDirectory(prefix="daskinfer-cache-", ignore_cleanup_errors=True)
        os.environ["DASKINFER_CACHE"] = folder.name
        os.environ["XDG_RUNTIME_DIR"] = folder.name  # whoever tests may have a background cluster of their own
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the S3 server, which takes ten times as long as a disk for the same, to `make late`."""
    for item in items:
        if item.get_closest_marker("s3") or "s3_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.late)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("campaign") and not item.config.getoption("--campaign"):
        pytest.skip("a long campaign: --campaign runs it")
    if item.get_closest_marker("gpu"):
        import torch  # not for the tests that do without

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for sockets, whose paths may have a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="daskinfer-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of a bucket on a real S3 server process; child processes reach it through the environment."""
    with serve_s3() as variables, environment(variables):
        yield f"s3://{S3_BUCKET}"


@pytest.fixture(scope="session")
def gcs_url() -> Iterator[str]:
    """The URL of a bucket on a server process that speaks Google's API."""
    if find_spec("gcsfs") is None:  # importing it here would come before open_filesystem's settings
        pytest.skip("gcsfs is not installed")
    with serve_gcs() as variables, environment(variables):
        yield "gs://daskinfer-test"


STORES = ("local", "memory", pytest.param("s3", marks=pytest.mark.s3))


@pytest.fixture(params=STORES)
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty folder, on each kind of store in turn."""
    return _choose_folder(request, tmp_path)


@pytest.fixture(params=STORES)
def other_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Another one: together with `any_store`, every pair of kinds."""
    return _choose_folder(request, tmp_path)


def _choose_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / make_nonce())
    if request.param == "memory":
        return f"memory://{make_nonce()}"
    return f"{request.getfixturevalue('s3_url')}/{make_nonce()}"

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from daskinfer import api
from daskinfer.cli import main
from daskinfer.errors import StorageError
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.filesystem import list_names, open_filesystem
from daskinfer.storage.objects.store_check import confirm_conditions
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, cut_short
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.servers.servers import S3_BUCKET, environment, serve_gcs, serve_s3

CHECKS = {
    "exclusive create",
    "conditional change",
    "one winner",
    "lost answer",
    "parts",
    "half objects",
    "listing",
    "ranges",
}


def failures(url: str) -> dict[str, str]:
    report = api.examine_store(url)
    assert {check.name for check in report.checks} == CHECKS
    assert report.milliseconds.keys() == {"create", "read", "list"}
    found = {check.name: check.detail for check in report.checks if not check.passed}
    assert report.safe == (not found) and (report.hint is None) == report.safe
    return found


@pytest.fixture
def careless_s3(s3_url: str) -> Iterator[str]:
    """A server that accepts If-None-Match and ignores it."""
    with serve_s3("--ignore-conditions") as variables, environment(variables):
        yield f"s3://{S3_BUCKET}"


def test_good_stores_are_safe_and_left_clean(any_store: str) -> None:
    assert failures(any_store) == {}
    assert list_names(any_store) == []


def test_a_folder_that_was_not_there_is_not_there_afterwards(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert failures(str(tmp_path / "some" / "where")) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.s3
def test_a_store_that_ignores_conditions_is_refused(careless_s3: str) -> None:
    url = f"{careless_s3}/{make_nonce()}"
    found = failures(url)
    assert found.keys() == {"exclusive create", "conditional change", "one winner", "parts"}
    assert found["exclusive create"] == "a second writer replaced what the first one had created"
    assert "8 writers of one object were told that they had won" in found["one winner"]
    assert list_names(url) == []

    told = CliRunner().invoke(main, ["doctor", url])
    assert told.exit_code == 1
    lines = told.stdout.splitlines()
    assert lines[0] == f"not safe  {url}"
    assert lines[1] == "  failed  exclusive create    a second writer replaced what the first one had created"
    assert lines[-1].startswith("hint: Keep registries, jobs and outputs on a local or shared directory")

    told = CliRunner().invoke(main, ["doctor", url, "--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["safe"] is False


@pytest.mark.s3
def test_a_store_that_ignores_the_condition_of_a_change_is_refused(s3_url: str) -> None:
    with serve_s3("--ignore-if-match") as variables, environment(variables):
        url = f"s3://{S3_BUCKET}/{make_nonce()}"
        said = "a writer replaced an object that was no longer the one it had seen"
        assert failures(url) == {"conditional change": said}
        with pytest.raises(StorageError, match=f"{url} is not safe to use: {said}"):
            confirm_conditions(url)
        assert list_names(url) == []


def test_a_good_store_is_confirmed_and_left_clean(any_store: str) -> None:
    confirm_conditions(any_store)
    assert list_names(any_store) == []


@pytest.mark.s3
def test_no_registry_begins_on_a_store_that_ignores_conditions(careless_s3: str) -> None:
    url = f"{careless_s3}/{make_nonce()}"
    with pytest.raises(StorageError, match=f"{url} is not safe to use") as refusal:
        publish(Registry(url), "mini", make_checkpoint())
    assert refusal.value.hint == f"Look at: daskinfer doctor {url}"
    assert list_names(url) == []


def test_a_registry_begins_on_a_good_store_and_is_examined_once(any_store: str) -> None:
    registry = Registry(any_store)
    registry.initialise()
    assert list_names(any_store) == ["format.json"]
    with FaultyFS(any_store, "pipe_file", cut_short, times=9) as writes:
        registry.initialise()
        Registry(any_store).initialise()
    assert writes.hits == 0


@pytest.mark.s3
def test_lost_answers_do_not_make_a_store_unsafe(s3_url: str) -> None:
    with serve_s3("--drop=0.1", "--seed=5") as variables, environment(variables):
        assert failures(f"s3://{S3_BUCKET}/scratch") == {}


@pytest.mark.s3
@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp about gcsfs
def test_google_is_told_apart_from_a_careless_imitation(gcs_url: str) -> None:
    assert failures(f"{gcs_url}/{make_nonce()}") == {}
    with serve_gcs("--ignore-conditions") as variables, environment(variables):
        assert failures("gs://careless/scratch").keys() == {
            "exclusive create",
            "conditional change",
            "one winner",
            "parts",
        }


def test_a_stale_listing_is_found(tmp_path: Path) -> None:
    with FaultyFS(str(tmp_path), "ls", cut_short, times=1):
        assert failures(str(tmp_path)) == {"listing": "an object that was just created is not listed"}


def test_short_answers_past_the_end_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem, _ = open_filesystem(str(tmp_path))
    monkeypatch.setattr(filesystem, "cat_file", lambda path, start, end: bytes((end or 10) - (start or 0)))
    assert "ranges" in failures(str(tmp_path))


def test_half_written_objects_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_in_place(target: Path, pieces: Callable[[], Iterable[bytes]], holds: object) -> bool:
        """What fsspec does with `open(path, "xb")`."""
        data = b"".join(pieces())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                if len(data) > 2**20:
                    time.sleep(0.3)  # as a disk that is slower than a page cache would let it
                file.write(data[len(data) // 2 :])
        except FileExistsError:
            return target.read_bytes() == data
        return True

    monkeypatch.setattr("daskinfer.storage.objects.create_if_absent._create_by_link", write_in_place)
    assert "half objects" in failures(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_the_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = CliRunner().invoke(main, ["doctor", str(tmp_path / "file")])
    assert told.exit_code == 1
    assert "is a file, not a folder" in told.stderr
    told = CliRunner().invoke(main, ["doctor", "dir::file:///tmp/nowhere"])
    assert told.exit_code == 1
    assert "is not safe to use: daskinfer knows no atomic create on dir" in told.stderr
    assert "Use a local or shared directory" in told.stderr


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_no_verdict_on_the_store(s3_url: str) -> None:
    told = CliRunner().invoke(main, ["doctor", "s3://no-such-bucket-here/x"])
    assert told.exit_code == 1
    assert "cannot create s3://no-such-bucket-here/x" in told.stderr and "Check that the bucket exists" in told.stderr

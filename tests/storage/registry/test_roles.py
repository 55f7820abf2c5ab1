"""Roles on a real S3 server that checks who asks: each user has exactly the document of their role.

The server (moto) knows users, actions and resources, and denies what no statement allows. Of conditions it knows none: the
prefix of a listing and the conditional header of a write are checked here as text.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from s3fs import S3FileSystem

from daskinfer.cli import main
from daskinfer.errors import NotAllowed, UsageError
from daskinfer.ids import shorten
from daskinfer.storage.blobs import read_group
from daskinfer.storage.exclusive import create
from daskinfer.storage.filesystem import delete, exists, list_names, read_bytes, replace_bytes
from daskinfer.storage.registry import decisions, locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.decisions import Decision
from daskinfer.storage.registry.publishing import finish_all, publish
from daskinfer.storage.registry.roles import HISTORY, ONCE, ROLES, make_bucket_policy, make_role_policy
from daskinfer.storage.urls import join_url
from daskinfer.testing.checkpoints import make_checkpoint
from daskinfer.testing.servers import serve_s3

pytestmark = pytest.mark.late

REGISTRY = "s3://models/team/registry"

Acting = Callable[[str], Any]


@pytest.fixture(scope="module")
def acting() -> Iterator[Acting]:
    """Return a context that makes this process one of the four, or `owner`, who may do anything."""
    with pytest.MonkeyPatch.context() as patch, serve_s3() as server:
        for key, value in server.items():
            patch.setenv(key, value)
        patch.delenv("AWS_PROFILE", raising=False)
        S3FileSystem.clear_instance_cache()
        boto3.Session().client("s3").create_bucket(Bucket="models")
        everything = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}], "Version": "2012-10-17"}
        documents = {"owner": everything} | {role: make_role_policy(role, REGISTRY) for role in ROLES}
        keys = {name: make_user(name, document) for name, document in documents.items()}
        # From here on the server lets nothing pass unchecked.
        switch = f"{server['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        request = urllib.request.Request(switch, data=b"0", headers={"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()

        @contextmanager
        def act(name: str) -> Iterator[Registry]:
            with pytest.MonkeyPatch.context() as credentials:
                credentials.setenv("AWS_ACCESS_KEY_ID", keys[name][0])
                credentials.setenv("AWS_SECRET_ACCESS_KEY", keys[name][1])
                credentials.setenv("LOGNAME", name)
                S3FileSystem.clear_instance_cache()
                yield Registry(REGISTRY)

        yield act
        S3FileSystem.clear_instance_cache()


def make_user(name: str, document: dict[str, Any]) -> tuple[str, str]:
    client = boto3.Session().client("iam")
    client.create_user(UserName=name)
    client.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(document))
    key = client.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


@pytest.mark.s3
def test_each_role_does_its_work_and_no_other(acting: Acting) -> None:
    with acting("publisher") as registry:
        first = publish(registry, "mini", make_checkpoint(0), None).snapshot
        second = publish(registry, "mini", make_checkpoint(1), None).snapshot
        with pytest.raises(NotAllowed, match=r"mini v3 was published, but prod was not moved: not allowed to create"):
            publish(registry, "mini", make_checkpoint(2), "prod")
        with pytest.raises(NotAllowed, match="not allowed to create"):
            registry.set_alias("mini", "prod", "v1")
        blob = registry.manifest(first).groups[0].blob
        assert blob is not None
        for path in (blob, f"manifests/{shorten(first, 64)}.json", "models/mini/versions/000000000000.json"):
            with pytest.raises(NotAllowed, match="not allowed to delete"):
                delete(join_url(REGISTRY, path))

    with acting("releaser") as registry:
        assert registry.set_alias("mini", "prod", "v1").version == 1
        assert registry.set_alias("mini", "prod", "v2").sequence == 1
        with pytest.raises(NotAllowed, match="not allowed to create"):
            publish(registry, "mini", make_checkpoint(3), None)
        with pytest.raises(NotAllowed, match="not allowed to delete"):
            delete(join_url(REGISTRY, "models/mini/aliases/prod/000000000001.json"))

    with acting("runner") as registry:
        lock = locks.take(registry, registry.resolve("mini@prod").snapshot, "job-1")
        assert lock.snapshot == second
        lock.heartbeat()
        for group in lock.manifest.groups:
            read_group(registry.url, group)
        for piece in lock.manifest.files:
            registry.file(lock.manifest, piece.path)
        for work in (
            lambda: registry.set_alias("mini", "prod", "v1"),
            lambda: publish(registry, "mini", make_checkpoint(3), None),
            lambda: condemn(registry, second),
            lambda: delete(join_url(REGISTRY, blob)),
            lambda: replace_bytes(join_url(REGISTRY, blob), b"other weights"),
        ):
            with pytest.raises(NotAllowed):
                work()
        lock.release()
        assert locks.list_holders(registry, second) == []
        command = ["checkpoint", "alias", "mini", "prod", "v1", "--registry", REGISTRY]
        told = CliRunner().invoke(main, command, prog_name="daskinfer")
        assert told.exit_code == 1
        assert f"error: not allowed to create {REGISTRY}/models/mini/aliases/prod/000000000002.json" in told.stderr

    with acting("collector") as registry:
        for work in (
            lambda: registry.set_alias("mini", "prod", "v1"),
            lambda: publish(registry, "mini", make_checkpoint(3), None),
            lambda: delete(join_url(REGISTRY, "models/mini/aliases/prod/000000000001.json")),
        ):
            with pytest.raises(NotAllowed):
                work()
        condemn(registry, first)
        manifest = registry.manifest(first)
        for path in [*(piece.blob for piece in manifest.files), *(str(group.blob) for group in manifest.groups)]:
            delete(join_url(REGISTRY, path))
        delete(registry.manifest_url(first))
        assert registry.life(first) == "swept" and not exists(join_url(REGISTRY, blob))

    with acting("runner") as registry:
        assert registry.resolve("mini@prod").snapshot == second
        # Neither what lies beside the registry nor what is not there.
        with pytest.raises(NotAllowed):
            read_bytes("s3://models/team/other")
        with pytest.raises(FileNotFoundError):
            read_bytes(join_url(REGISTRY, "nothing"))


def condemn(registry: Registry, snapshot: str) -> None:
    decision = Decision(registry.url, "collect", f"life/{shorten(snapshot, 64)}")
    for operation in ("condemn", "sweep"):
        decisions.append(decision, registry.life_log(snapshot), {"op": operation})


@pytest.mark.s3
def test_a_publisher_who_cannot_clean_up_says_what_went_wrong(acting: Acting) -> None:
    def fail() -> bytes:
        raise ValueError("the source is broken")

    source = make_checkpoint(5)
    with acting("publisher") as registry:
        groups = [source.groups[0], type(source.groups[0])("layer.0", fail)]
        broken = type(source)(source.architecture, source.dtype, source.files, groups)
        with pytest.raises(ValueError, match="the source is broken"):
            publish(registry, "broken", broken, None)
        assert "broken" not in registry.names()


@pytest.mark.s3
def test_a_strangers_cut_off_publish_neither_stops_anyone_nor_moves_an_alias(acting: Acting) -> None:
    with acting("publisher") as registry:
        with pytest.raises(NotAllowed):
            publish(registry, "cut", make_checkpoint(7), "prod")
        identity = registry.versions("cut")[0].publish
    with acting("owner") as registry:
        delete(join_url(REGISTRY, "publish", f"{identity}.done"))
        assert [version.number for version in finish_all(registry)] == [1]
        assert registry.aliases("cut") == {}
        delete(join_url(REGISTRY, "publish", f"{identity}.done"))
        delete(join_url(REGISTRY, "models/cut/versions/000000000000.json"))
    with acting("collector") as registry:
        assert finish_all(registry) == []
    with acting("publisher") as registry:
        finish_all(registry)
        assert len(registry.versions("cut")) == 1 and registry.aliases("cut") == {}
        assert exists(join_url(REGISTRY, "publish", f"{identity}.done"))


@pytest.mark.s3
def test_the_bucket_policy_keeps_history_even_from_the_owner(acting: Acting) -> None:
    deletions = make_bucket_policy(REGISTRY)
    # The server would take the conditional statement for an unconditional one.
    deletions["Statement"] = deletions["Statement"][1:]
    kept, cache = join_url(REGISTRY, "models/x/aliases/prod/000000000000.json"), join_url(REGISTRY, "outlines/x.json")
    with acting("owner"):
        for url in (kept, cache):
            assert create(url, b"{}")
        boto3.Session().client("s3").put_bucket_policy(Bucket="models", Policy=json.dumps(deletions))
        try:
            with pytest.raises(NotAllowed, match="not allowed to delete"):
                delete(kept)
            delete(cache)
        finally:
            boto3.Session().client("s3").delete_bucket_policy(Bucket="models")
        assert list_names(join_url(REGISTRY, "models/x/aliases/prod")) == ["000000000000.json"]


def test_what_the_server_does_not_check() -> None:
    listing = make_role_policy("runner", REGISTRY)["Statement"][0]
    assert listing["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["team/registry", "team/registry/*"]}}
    assert "Condition" not in make_role_policy("runner", "s3://models")["Statement"][0]
    creation = make_bucket_policy(REGISTRY)["Statement"][0]
    assert (creation["Effect"], creation["Principal"], creation["Action"]) == ("Deny", "*", "s3:PutObject")
    assert creation["Condition"] == {
        "Null": {"s3:if-none-match": "true"},
        "Bool": {"s3:ObjectCreationOperation": "true"},
    }


def test_nothing_is_both_created_once_and_replaced() -> None:
    replaced = {pattern.replace("*", "x") for role in ROLES.values() for pattern in role.replace}
    assert [path for path in replaced if any(fnmatchcase(path, pattern) for pattern in ONCE)] == []
    assert set(HISTORY) == {
        "audit/*", "format.json", "life/*", "models/*/aliases/*", "models/*/versions/*",
        "publish/*.done", "publish/*.json", "sigs/*",
    }  # fmt: skip


def test_everything_a_registry_holds_is_somebodys_to_write(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    resolution = publish(registry, "mini", make_checkpoint(), "prod")
    locks.take(registry, resolution.snapshot, "job-1")
    condemn(registry, resolution.snapshot)
    patterns = [pattern for role in ROLES.values() for pattern in (*role.create, *role.replace)]
    paths = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in paths if not any(fnmatchcase(path, pattern) for pattern in patterns)] == []


def test_what_has_no_policy_is_explained() -> None:
    with pytest.raises(UsageError, match="is not on S3") as local:
        make_role_policy("runner", "./work/registry")
    assert local.value.hint and "s3://BUCKET/PREFIX" in local.value.hint
    with pytest.raises(UsageError, match="there is no role 'runer'") as wrong:
        make_role_policy("runer", REGISTRY)
    assert wrong.value.hint == "Did you mean runner?"
    odd = make_role_policy("runner", "s3://models/a*b$")["Statement"][1]["Resource"]
    assert odd == "arn:aws:s3:::models/a${*}b${$}/*"

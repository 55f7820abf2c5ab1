from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from daskinfer.errors import CheckpointError, CorruptBlob, UsageError
from daskinfer.ids import canonical_json, shorten
from daskinfer.storage.registry.access.keys import make_key, name_key, read_private_key, read_public_key
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.storage.registry.signatures import (
    encode_payload,
    list_signatures,
    require_signatures,
    sign,
    signatures_log,
)
from daskinfer.testing.fixtures.checkpoints import make_checkpoint


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Two pairs."""
    found = str(tmp_path / "ann.key"), str(tmp_path / "ben.key")
    for key in found:
        make_key(key)
    return found


def publish_two(url: str) -> Registry:
    registry = Registry(url)
    for seed in range(2):
        publish(registry, "mini", make_checkpoint(seed), None)
    return registry


def test_a_signed_snapshot_is_accepted(any_store: str, keys: tuple[str, str]) -> None:
    registry = publish_two(any_store)
    ann, ben = keys
    resolution = registry.resolve("mini@v1")
    made = sign(registry, resolution, ann)
    assert made.valid and made.key == name_key(read_public_key(f"{ann}.pub"))
    assert sign(registry, resolution, ann) == made
    require_signatures(registry, resolution.snapshot, [f"{ann}.pub"])
    with pytest.raises(CheckpointError, match=r"is not signed by .*ben.key.pub") as refused:
        require_signatures(registry, resolution.snapshot, [f"{ann}.pub", f"{ben}.pub"])
    assert f"its signatures: {shorten(made.key)} ({made.by})" in refused.value.message
    assert refused.value.exit_code == 2
    assert refused.value.hint and f"daskinfer checkpoint sign NAME@{resolution.snapshot[:19]}" in refused.value.hint
    sign(registry, resolution, ben)
    require_signatures(registry, resolution.snapshot, [f"{ben}.pub", f"{ann}.pub"])
    rows = list_signatures(registry, resolution.snapshot, read_public_key(f"{ben}.pub"))
    assert [row.valid for row in rows] == [False, True]
    assert [row.valid for row in list_signatures(registry, resolution.snapshot)] == [None, None]
    with pytest.raises(CheckpointError, match="its signatures: none"):
        require_signatures(registry, registry.resolve("mini@v2").snapshot, [f"{ann}.pub"])
    require_signatures(registry, registry.resolve("mini@v2").snapshot, [])


def test_the_envelope_is_what_the_specifications_say(tmp_path: Path, keys: tuple[str, str]) -> None:
    """Read with nothing but the standard library and a key, as any other tool would."""
    assert encode_payload("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    registry = publish_two(str(tmp_path / "registry"))
    resolution = registry.resolve("mini@v1")
    sign(registry, resolution, keys[0])
    stored = tmp_path / f"registry/sigs/{shorten(resolution.snapshot, 64)}/000000000000.json"
    envelope = json.loads(stored.read_bytes())["envelope"]
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "mini", "digest": {"sha256": resolution.snapshot.removeprefix("sha256:")}}]
    key: Any = load_pem_public_key(Path(f"{keys[0]}.pub").read_bytes())
    (signature,) = envelope["signatures"]
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    key.verify(base64.b64decode(signature["sig"]), signed)


def make_envelope(key: str, payload: bytes, kind: str = "application/vnd.in-toto+json") -> dict[str, Any]:
    private = read_private_key(key)
    signature = private.sign(encode_payload(kind, payload))
    return {
        "payloadType": kind,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": name_key(private.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def change_statement(envelope: dict[str, Any], **changes: Any) -> bytes:
    return canonical_json(json.loads(base64.b64decode(envelope["payload"])) | changes)


Forge = Callable[[dict[str, Any], dict[str, Any], tuple[str, str]], dict[str, Any]]
"""Called with the envelope, that of the other snapshot, and the keys: the first one is asked for."""

OTHER = [{"name": "mini", "digest": {"sha256": "0" * 64}}]

FORGERIES: dict[str, Forge] = {
    "another snapshot's": lambda envelope, other, keys: other,
    "another key's": lambda envelope, other, keys: make_envelope(keys[1], base64.b64decode(envelope["payload"])),
    "another key's under this one's name": lambda envelope, other, keys: {
        **envelope,
        "signatures": [
            {
                **make_envelope(keys[1], base64.b64decode(envelope["payload"]))["signatures"][0],
                "keyid": envelope["signatures"][0]["keyid"],
            }
        ],
    },
    "this statement, another's signature": lambda envelope, other, keys: {
        **envelope,
        "signatures": other["signatures"],
    },
    "an edited statement": lambda envelope, other, keys: {
        **envelope,
        "payload": base64.b64encode(change_statement(envelope, predicate={"by": "eve"})).decode(),
    },
    "another type": lambda envelope, other, keys: {**envelope, "payloadType": "text/plain"},
    "signed as another type": lambda envelope, other, keys: make_envelope(
        keys[0], base64.b64decode(envelope["payload"]), kind="text/plain"
    ),
    "signed for another purpose": lambda envelope, other, keys: make_envelope(
        keys[0], change_statement(envelope, predicateType="https://slsa.dev/provenance/v1")
    ),
    "signed for two subjects": lambda envelope, other, keys: make_envelope(
        keys[0],
        change_statement(envelope, subject=json.loads(base64.b64decode(envelope["payload"]))["subject"] + OTHER),
    ),
    "signed text": lambda envelope, other, keys: make_envelope(keys[0], b"I vouch for everything"),
    "a flipped bit": lambda envelope, other, keys: {
        **envelope,
        "signatures": [
            {"sig": base64.b64encode(flip(base64.b64decode(envelope["signatures"][0]["sig"]))).decode()},
        ],
    },
    "no signature": lambda envelope, other, keys: {**envelope, "signatures": []},
    "no envelope": lambda envelope, other, keys: {},
}


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_signatures_are_refused(tmp_path: Path, keys: tuple[str, str], forgery: str) -> None:
    registry = publish_two(str(tmp_path / "registry"))
    first, second = (registry.resolve(f"mini@v{number}") for number in (1, 2))
    for resolution in (first, second):
        sign(registry, resolution, keys[0])
    stored, others = (tmp_path / f"registry/sigs/{shorten(each.snapshot, 64)}" for each in (first, second))
    path = stored / "000000000000.json"
    record = json.loads(path.read_bytes())
    other = json.loads((others / "000000000000.json").read_bytes())["envelope"]
    path.write_bytes(canonical_json(record | {"envelope": FORGERIES[forgery](record["envelope"], other, keys)}))
    with pytest.raises(CheckpointError, match="is not signed by"):
        require_signatures(registry, first.snapshot, [f"{keys[0]}.pub"])
    assert [row.valid for row in list_signatures(registry, first.snapshot, read_public_key(f"{keys[0]}.pub"))] == [
        False
    ]
    # The key's owner can say it again.
    assert sign(registry, first, keys[0]).valid
    require_signatures(registry, first.snapshot, [f"{keys[0]}.pub"])


def test_a_changed_manifest_is_neither_signed_nor_read(tmp_path: Path, keys: tuple[str, str]) -> None:
    registry = publish_two(str(tmp_path / "registry"))
    resolution = registry.resolve("mini@v1")
    sign(registry, resolution, keys[0])
    path = Path(registry.manifest_url(resolution.snapshot))
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(CorruptBlob):
        registry.manifest(resolution.snapshot)
    with pytest.raises(CorruptBlob):
        sign(registry, resolution, keys[1])
    assert len(signatures_log(registry, resolution.snapshot).read()) == 1


def test_keys_are_kept_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/release.key"
    name = make_key(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert name == name_key(read_private_key(str(path)).public_key()) == name_key(read_public_key(f"{path}.pub"))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"release.key is there already"):
        make_key(str(path))
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"release.key.pub is there already"):
        make_key(str(path))
    assert not path.exists() and (tmp_path / "elsewhere").read_bytes() == before


def test_what_is_no_key_is_explained(tmp_path: Path, keys: tuple[str, str]) -> None:
    rsa = generate_private_key(65537, 2048)
    foreign = {
        "rsa.key": rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "rsa.pub": rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "locked.key": Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ),
        "text": b"hello",
    }
    for file, data in foreign.items():
        (tmp_path / file).write_bytes(data)
    for file in ("rsa.key", "text", "ann.key.pub"):
        with pytest.raises(UsageError, match="is not a private Ed25519 key"):
            read_private_key(str(tmp_path / file))
    for file in ("rsa.pub", "text", "ann.key"):
        with pytest.raises(UsageError, match="is not a public Ed25519 key"):
            read_public_key(str(tmp_path / file))
    with pytest.raises(UsageError, match="is encrypted"):
        read_private_key(str(tmp_path / "locked.key"))
    with pytest.raises(UsageError, match="there is no key"):
        read_public_key(str(tmp_path / "nowhere"))

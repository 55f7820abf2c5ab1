"""What tests of a registry share: a clock of their own, and whether all that should be there is there and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from daskinfer.ids import sha256_of
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.blobs import read_group
from daskinfer.storage.filesystem import find_files, list_names, read_bytes
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.heartbeats import Watcher
from daskinfer.storage.registry.retention import Retention
from daskinfer.storage.urls import join_url

NOTHING = Retention(keep_versions=0, keep_days=0)
"""Keep what aliases and jobs keep, and nothing else."""
LAST = Retention(keep_versions=1, keep_days=0)
"""Keep the last version too."""


class VirtualTime:
    """A clock that only sleeping moves.

    Parameters
    ----------
    meanwhile
        What happens at every sleep.
    """

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self.meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += max(seconds, 0.001)
        self.meanwhile()

    def watcher(self) -> Watcher:
        """Return one that lives by this clock."""
        return Watcher(lambda: self.now, self.sleep)


def read_all(registry: Registry, manifest: Manifest) -> None:
    """Read every byte of a snapshot, verified."""
    for file in manifest.files:
        registry.file(manifest, file.path)
    for group in manifest.groups:
        read_group(registry.url, group)


def check_registry(registry: Registry) -> None:
    """Assert that every live snapshot is whole, and that no blob is there that none of them names."""
    named: dict[str, str] = {}
    for name in list_names(join_url(registry.url, "manifests")):
        snapshot = f"sha256:{name.removesuffix('.json')}"
        assert registry.life(snapshot) == "live", f"{snapshot} is {registry.life(snapshot)} and has a manifest"
        named |= {piece.blob: piece.sha256 for piece in registry.manifest(snapshot).pieces if piece.blob is not None}
    stored = {f"blobs/{name}" for name in find_files(join_url(registry.url, "blobs"))}
    assert stored == named.keys(), f"missing: {named.keys() - stored}, left over: {stored - named.keys()}"
    for blob, sha256 in named.items():
        assert sha256_of(read_bytes(join_url(registry.url, blob))) == f"sha256:{sha256}", f"{blob} is damaged"

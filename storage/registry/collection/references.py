"""Which blobs are still needed."""

from __future__ import annotations

from collections.abc import Collection

from daskinfer.errors import CheckpointError, CorruptBlob, SnapshotGone
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import list_names
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publications import list_publications


class Manifests:
    """The manifests of a registry; each is read once, for none ever changes.

    Parameters
    ----------
    registry
        Whose.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> manifests = Manifests(make_registry("registry", versions=1))
    >>> [manifests.read(name).model for name in manifests.names()], len(manifests.find_needed())
    (['mini'], 5)
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, Manifest] = {}

    def names(self) -> list[str]:
        """Return the digests of the manifests that are there now."""
        names = list_names(join_url(self._registry.url, "manifests"))
        return [f"sha256:{name.removesuffix('.json')}" for name in names if name.endswith(".json")]

    def read(self, snapshot: str) -> Manifest | None:
        """Return a manifest, None where it is gone.

        Raises
        ------
        CorruptBlob
            Where it is damaged, so that nobody knows which blobs it needs.
        """
        if snapshot not in self._known:
            try:
                self._known[snapshot] = self._registry.manifest(snapshot)
            except (SnapshotGone, CheckpointError):
                return None
            except CorruptBlob as error:
                raise CorruptBlob(
                    f"nobody can tell which blobs are still needed: {error.message}",
                    hint="Restore that manifest from a copy; nothing is deleted before.",
                ) from error
        return self._known[snapshot]

    def find_needed(self, doomed: Collection[str] = ()) -> set[str]:
        """Return the blobs that a live snapshot names, or one that is on its way into the registry.

        Only an answer that was asked for after a decision, and after the marks, tells what that decision left over.

        Parameters
        ----------
        doomed
            Snapshots that count as deleted although they are not.
        """
        needed: set[str] = set()
        # Publishes first: one that is done by now has its manifest by now.
        for publication in list_publications(self._registry):
            if publication.manifest is not None and publication.state != "aborted":
                needed.update(publication.manifest.blobs)
        names = self.names()
        gone = find_swept(self._registry, names).union(doomed)
        for snapshot in names:
            if snapshot not in gone and (manifest := self.read(snapshot)) is not None:
                needed.update(manifest.blobs)
        return needed


def find_swept(registry: Registry, among: Collection[str] | None = None) -> set[str]:
    """Return the snapshots that are deleted or about to be; of all, or of some.

    Examples
    --------
    >>> registry = Registry("registry")
    >>> for snapshot, operation in [("sha256:ab", "sweep"), ("sha256:cd", "condemn")]:
    ...     _ = registry.life_log(snapshot).append({"op": operation})
    >>> find_swept(registry)
    {'sha256:ab'}
    """
    known = {f"sha256:{name}" for name in list_names(join_url(registry.url, "life"))}
    asked = known if among is None else known.intersection(among)
    return {snapshot for snapshot in asked if registry.life(snapshot) == "swept"}

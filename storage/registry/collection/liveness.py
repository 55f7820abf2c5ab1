"""Who of those that stand in a collector's way is dead."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.heartbeats import Pulse, Watcher, read_beat
from daskinfer.storage.registry.locks import LockHolder, heartbeat_url, list_holders
from daskinfer.storage.registry.publishing.blob_reuse import PURPOSE
from daskinfer.storage.registry.publishing.publications import Publication, identity_of, pulse_url, read_publication


class HolderLiveness:
    """What a collector believes of holders and publishes; until it has judged them, all of them live.

    Parameters
    ----------
    registry
        Whose.
    watcher
        Does the watching.

    Examples
    --------
    >>> from daskinfer.storage.registry.locks import reserve
    >>> registry, snapshot = Registry("registry"), "sha256:" + "ab" * 32
    >>> _ = reserve(registry, snapshot, "demo", purpose="run")
    >>> liveness = HolderLiveness(registry, Watcher())
    >>> liveness.judge({snapshot: list_holders(registry, snapshot)}, [], assumed=["demo"], wait=False)
    >>> liveness.find_living(snapshot)
    []
    """

    def __init__(self, registry: Registry, watcher: Watcher) -> None:
        self._registry = registry
        self._watcher = watcher

    def judge(
        self,
        holders: Mapping[str, Sequence[LockHolder]],
        publications: Iterable[Publication],
        assumed: Collection[str],
        wait: bool,
    ) -> None:
        """Take those for dead that are assumed to be, and watch the others if there is time to wait."""
        pulses = [
            (holder.job, Pulse(heartbeat_url(self._registry, snapshot, holder.job), holder.ttl_seconds))
            for snapshot, found in holders.items()
            for holder in found
            if holder.purpose != PURPOSE
        ]
        pulses += [
            (each.job, Pulse(pulse_url(self._registry, each.identity), each.ttl_seconds))
            for each in publications
            if each.state == "begun"
        ]
        for job, pulse in pulses:
            if job in assumed:
                self._watcher.assume(pulse.url)
        if wait:
            self._watcher.watch(pulse for job, pulse in pulses if job not in assumed)

    def find_living(self, snapshot: str) -> list[LockHolder]:
        """Return who holds a snapshot now and is not dead."""
        return [each for each in list_holders(self._registry, snapshot) if not self.is_dead(snapshot, each)]

    def is_dead(self, snapshot: str, holder: LockHolder) -> bool:
        """Whether a holder is dead: it did not beat even once since it was judged."""
        if holder.purpose != PURPOSE:
            return self._watcher.is_dead(heartbeat_url(self._registry, snapshot, holder.job), holder.beat)
        # A publish that takes blobs from a base may be taken for dead only by making sure that it never commits. Once
        # it has committed, its own manifest counts.
        publication = read_publication(self._registry, identity_of(holder.job))
        return publication is not None and publication.state != "begun"

    def is_silent(self, publication: Publication) -> bool:
        """Whether a publish should be given up."""
        url = pulse_url(self._registry, publication.identity)
        return publication.state == "begun" and self._watcher.is_dead(url, read_beat(url))

"""Workers that get nothing new of a stage, or of a job, until they have finished what they have in work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from distributed import Client

from daskinfer.runtime.cluster.resource_tags import close_tags, grant_tags

LOOK_SECONDS = 0.25


class Departures:
    """Stages, and whole workers, that are on their way out.

    Parameters
    ----------
    client
        Connected to the cluster.
    tags_of
        Gives the tags of a stage, or of the whole job for None.
    free
        Frees the shards of a worker that has finished; called with the stage and the worker.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> departures = Departures(None, tags_of=lambda stage: ["demo/stage-2"], free=lambda *freed: print("freed", freed))
    >>> with patch(f"{__name__}.close_tags", return_value=[True]), patch(f"{__name__}.grant_tags"):
    ...     departures.begin(2, "tcp://a:1")
    freed (2, 'tcp://a:1')
    """

    def __init__(
        self, client: Client, tags_of: Callable[[int | None], Sequence[str]], free: Callable[[int | None, str], None]
    ) -> None:
        self._client = client
        self._tags_of = tags_of
        self._free = free
        self._leaving: set[tuple[int | None, str]] = set()
        self._due = 0.0

    def begin(self, stage: int | None, worker: str) -> None:
        """Let a worker get nothing new of a stage; of nothing for None."""
        self._leaving.add((stage, worker))
        self._due = 0.0
        self.look()

    def stop(self, stage: int, worker: str) -> None:
        """Leave a worker what it is wanted for again."""
        self._leaving.discard((stage, worker))

    def look(self) -> None:
        """Look, now and then, who has finished."""
        if not self._leaving or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LOOK_SECONDS
        leaving = list(self._leaving)
        closing = [(worker, self._tags_of(stage), stage is None) for stage, worker in leaving]
        for (stage, worker), finished in zip(leaving, close_tags(self._client, closing), strict=True):
            if finished is False:
                continue
            if finished:
                try:
                    grant_tags(self._client, worker, dict.fromkeys(self._tags_of(stage), 0))
                    self._free(stage, worker)
                except TimeoutError:
                    continue  # it is asked again
                except OSError:
                    pass  # it died meanwhile: the scheduler's event follows
            self._leaving.discard((stage, worker))

"""How far a job is: which partitions count as committed, whatever the format of its output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import Generations
from daskinfer.storage.outputs.commit_index import INDEX_RECORDS, CommitDigest
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.sink import OutputLayout


class CommittedPartitions:
    """The commit records of all scopes that count.

    Parameters
    ----------
    url
        The output.
    layout
        Of the output.
    generations
        Returns the job's generations as they are now.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> generations = Generations(pins=(record.first_pin,))
    >>> committed = CommittedPartitions(record.output, open_output(record.output).layout, lambda: generations)
    >>> sorted(committed.numbers())
    [0, 1]
    """

    def __init__(self, url: str, layout: OutputLayout, generations: Callable[[], Generations]) -> None:
        self._url = url
        self._layout = layout
        self._generations = generations
        self._fresh: defaultdict[int, list[CommitDigest]] = defaultdict(list)

    def numbers(self) -> Iterator[int]:
        """Return the partitions that are committed; no record is read."""
        generations = self._generations()
        for scope in generations.scopes:
            for number in self._open_log(scope).numbers():
                if generations.owner(number) == scope:
                    yield number

    def digests(self, keep: bool = False) -> Iterator[CommitDigest]:
        """Return what the records of all committed partitions say, scope by scope.

        Parameters
        ----------
        keep
            Whether to write down what had to be read one by one. For drivers.
        """
        generations = self._generations()
        for scope in generations.scopes:
            for digest in self._open_log(scope).digests(keep):
                if generations.owner(digest.partition) == scope:
                    yield digest

    def note(self, record: CommitRecord) -> Callable[[], None] | None:
        """Take in a new record; return what writes down those of late, as soon as they are many."""
        if record.round:
            return None  # a retry's records are beside the run's, until they are merged
        scope = self._generations().pins[record.generation].scope
        fresh = self._fresh[scope]
        fresh.append(CommitDigest.of(record))
        if len(fresh) < INDEX_RECORDS:
            return None
        del self._fresh[scope]
        return lambda: self._open_log(scope).keep(fresh)

    def layout(self) -> OutputLayout:
        """Return the layout with the snapshot that every generation's commits must be of."""
        snapshots = {pin.generation: pin.snapshot for pin in self._generations().pins}
        return replace(self._layout, snapshots=snapshots)

    def _open_log(self, scope: int) -> CommitLog:
        return CommitLog(self._url, self.layout(), scope)

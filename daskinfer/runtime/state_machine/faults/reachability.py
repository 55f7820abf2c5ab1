"""Links between workers that are cut: who is to go because of them, and who sits out until they are corrected. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from daskinfer.runtime.protocol.keys import Link, ends_of, host_of
from daskinfer.spec.plan import WorkerShape


class Reachability:
    """The links that are cut, and the workers that get nothing to do because of them, as plain state.

    Examples
    --------
    >>> links = Reachability()
    >>> links.note([("tcp://10.0.0.1:1", "tcp://10.0.0.2:1")])
    >>> links.bars("tcp://10.0.0.2:9", ["tcp://10.0.0.1:9", "tcp://10.0.0.3:9"])
    'tcp://10.0.0.1:9'
    >>> links.choose([("a", "c"), ("b", "c")], {"a": {0}, "b": {1}, "c": {2}})
    {'c': 'cannot be reached by a and b'}
    """

    def __init__(self) -> None:
        self._cut: set[frozenset[str]] = set()
        self._isolated: dict[str, WorkerShape] = {}

    @property
    def isolated_workers(self) -> tuple[WorkerShape, ...]:
        """Workers that get nothing to do until they reach all that compute."""
        return tuple(self._isolated.values())

    def isolate(self, worker: WorkerShape) -> None:
        """Let a worker get nothing to do."""
        self._isolated[worker.address] = worker

    def release(self, worker: str) -> None:
        """Let a worker get something to do again, or be gone."""
        self._isolated.pop(worker, None)

    def note(self, links: Iterable[Link]) -> None:
        """Take in that links are cut."""
        self._cut.update(map(ends_of, links))

    def correct(self, link: Link) -> None:
        """Take in that a link is there again."""
        self._cut.discard(ends_of(link))

    def bars(self, worker: str, others: Iterable[str]) -> str | None:
        """Return which of other workers a worker does not reach, if there is one."""
        return next((other for other in others if ends_of((worker, other)) in self._cut), None)

    def choose(self, links: Collection[Link], posts: Mapping[str, Collection[int]]) -> dict[str, str]:
        """Choose who has to go so that all that are left reach each other.

        Whoever is cut off from the most others goes first: one that nobody reaches, and not all that do not reach it.

        Parameters
        ----------
        links
            Those that were just found cut.
        posts
            Workers that compute -> the stages.

        Returns
        -------
        dict
            Workers that go -> why.
        """
        off: dict[str, str] = {}
        complain = {who for who, _ in links}
        while left := {frozenset(link) for link in links if set(link) <= posts.keys() - off.keys()}:
            staying = [stages for worker, stages in posts.items() if worker not in off]
            goes, others = max(
                (
                    (worker, set().union(*(ends for ends in left if worker in ends)) - {worker})
                    for worker in set().union(*left)
                ),
                key=lambda found: (
                    self._count_cut(found[0]),
                    len(found[1]),
                    # Its stages have other workers.
                    all(sum(stage in stages for stages in staying) > 1 for stage in posts[found[0]]),
                    found[0] in complain,
                    found[0],
                ),
            )
            verb = "cannot reach" if goes in complain else "cannot be reached by"
            off[goes] = f"{verb} {' and '.join(sorted(others))}"
        return off

    def _count_cut(self, worker: str) -> int:
        return sum(bool(ends & {worker, host_of(worker)}) for ends in self._cut)

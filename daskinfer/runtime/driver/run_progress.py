"""What a run has done so far: sums over commit records, for progress and for the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from daskinfer.runtime.driver.computed_rows import Advance
from daskinfer.runtime.driver.shard_loading import ShardLoading
from daskinfer.runtime.protocol.events import ShardAck
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.report import Incident, StageReport
from daskinfer.spec.plan import Plan
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.units import format_bytes


class RunProgress:
    """Running sums of one run of a job.

    Parameters
    ----------
    plan
        The job's plan.
    rows_total
        Rows of the input.

    Examples
    --------
    >>> from daskinfer.storage.outputs.sink import Written
    >>> from daskinfer.testing.fixtures.jobs import make_commit, make_job, make_results
    >>> record = make_job("labels.jsonl")
    >>> progress = RunProgress(record.plan, record.rows)
    >>> progress.add(make_commit(record, make_results(record, 0), Written("part-00000000.jsonl", "00", 90)))
    >>> progress.rows_done, progress.rows_total
    (2, 3)
    """

    def __init__(self, plan: Plan, rows_total: int) -> None:
        self.plan = plan
        self.rows_total = rows_total
        self.rows_done = 0
        self.rows_out = 0
        self.rows_quarantined = 0
        self.rows_truncated = 0
        self.rows_not_finite = 0
        self.rows_this_run = 0
        self.partitions_done = 0
        self.partitions_resumed = 0
        self.tokens = 0
        self.padded_tokens = 0
        self.incidents: list[Incident] = []
        self._numbered: dict[int, int] = {}
        self.advance = Advance()
        self.loads = ShardLoading([stage.stored_bytes for stage in plan.stages])
        self._shares: dict[str, list[int]] = {}
        self._members: dict[str, list[int]] = {}
        self._acks: dict[int, list[ShardAck]] = defaultdict(list)
        self._microbatches = [0] * len(plan.stages)
        self._seconds = [[0.0, 0.0, 0.0] for _ in plan.stages]
        self._out_of_memory = [0] * len(plan.stages)
        self._device_peaks = [0] * len(plan.stages)

    def add_earlier(self, record: CommitDigest) -> None:
        """Count a partition that an earlier run committed."""
        self._add_rows(record)
        self.partitions_resumed += 1

    def add(self, record: CommitRecord, is_ours: bool = True) -> None:
        """Count a partition that was committed while this run went on, by itself or by another member."""
        self._add_rows(record)
        if not is_ours:
            return
        self.rows_this_run += record.rows_in
        self.tokens += record.tokens
        self.padded_tokens += record.padded_tokens
        for trail in record.trail:
            self._microbatches[trail.stage] += trail.microbatches
            self._out_of_memory[trail.stage] += trail.out_of_memory
            self._device_peaks[trail.stage] = max(self._device_peaks[trail.stage], trail.device_peak)
            for index, seconds in enumerate((trail.compute, trail.receive, trail.send)):
                self._seconds[trail.stage][index] += seconds

    def recount(self, records: Iterable[CommitDigest]) -> None:
        """Count what is committed anew: partitions that are to be computed again no longer are."""
        self.rows_done = self.rows_out = self.rows_quarantined = self.partitions_done = 0
        self.rows_truncated = self.rows_not_finite = 0
        self._shares.clear()
        self._members.clear()
        for record in records:
            self._add_rows(record)

    def find_more(self, records: Iterable[CommitDigest], member: str = "") -> None:
        """Count what is committed anew, after commits that nobody could tell of; of those of other members, too."""
        before = self.rows_done
        self.recount(records)
        new = max(0, self.rows_done - before)
        self.rows_this_run = self._members.get(member, [0, 0])[1] if member else self.rows_this_run + new

    @property
    def rows_left(self) -> int:
        """Rows in the job's quarantine."""
        return self.rows_quarantined

    def shares(self) -> dict[str, tuple[int, int]]:
        """Return snapshot -> partitions and rows that are committed on it."""
        return {snapshot: (partitions, rows) for snapshot, (partitions, rows) in self._shares.items()}

    def members(self) -> dict[str, tuple[int, int]]:
        """Return member -> partitions and rows that it committed, of those that ran the job together."""
        return {member: (partitions, rows) for member, (partitions, rows) in self._members.items()}

    def rows_of(self, partition: int, rows: int) -> int:
        """Return how many rows of a partition this run is to compute, of all that it has."""
        return rows

    def add_ack(self, ack: ShardAck) -> None:
        """Count a shard that was loaded."""
        self._acks[ack.stage].append(ack)
        self.loads.finish(ack.stage, ack.worker)

    def add_incident(
        self, at: float, kind: str, detail: str, number: int | None = None, detect_seconds: float | None = None
    ) -> None:
        """Note something that went wrong and is dealt with."""
        if number is not None:
            self._numbered[number] = len(self.incidents)
        self.incidents.append(Incident(at=at, kind=kind, detail=detail, detect_seconds=detect_seconds))

    def end_incident(self, number: int, seconds: float) -> Incident:
        """Note that an incident is over."""
        place = self._numbered.pop(number)
        self.incidents[place] = self.incidents[place].model_copy(update={"recover_seconds": seconds})
        return self.incidents[place]

    def busy(self, running_seconds: float) -> tuple[float, ...]:
        """Return every stage's share of `running_seconds` that its workers spent working, 0 to 1.

        Rows that are computed and not committed yet count as what those before them took.
        """
        if running_seconds <= 0:
            return (0.0,) * len(self._seconds)
        in_work = 1 + self.advance.rows / self.rows_this_run if self.rows_this_run else 1.0
        return tuple(
            min(1.0, in_work * sum(seconds) / replicas / running_seconds)
            for seconds, replicas in zip(self._seconds, self.plan.replicas, strict=True)
        )

    def devices(self) -> tuple[str, ...]:
        """Return what every stage computes on, and the most memory that it took there."""
        return tuple(
            f"{device}, {format_bytes(peak)} at most" if peak else device
            for device, peak in zip(map(self._device, range(len(self._seconds))), self._device_peaks, strict=True)
        )

    def stages(self, running_seconds: float) -> tuple[StageReport, ...]:
        """Return what every stage did."""
        busy = self.busy(running_seconds)
        return tuple(
            StageReport(
                stage=stage.index,
                layers=str(stage.first) if stage.last == stage.first + 1 else f"{stage.first}-{stage.last - 1}",
                shard_bytes=stage.parameter_bytes,
                stored_bytes=stage.stored_bytes,
                offload=stage.offload,
                read_bytes=sum(ack.read_bytes for ack in self._acks[stage.index]),
                load_seconds=max((ack.seconds for ack in self._acks[stage.index]), default=0.0),
                device=self._device(stage.index),
                out_of_memory=self._out_of_memory[stage.index],
                device_peak=self._device_peaks[stage.index],
                workers=tuple(ack.worker for ack in self._acks[stage.index]),
                microbatches=self._microbatches[stage.index],
                compute=self._seconds[stage.index][0],
                receive=self._seconds[stage.index][1],
                send=self._seconds[stage.index][2],
                busy=busy[stage.index],
            )
            for stage in self.plan.stages
        )

    def _device(self, stage: int) -> str:
        return ", ".join(sorted({ack.device for ack in self._acks[stage]}))

    def _add_rows(self, record: CommitRecord | CommitDigest) -> None:
        self.rows_done += record.rows_in
        self.rows_out += record.rows_out
        self.rows_quarantined += record.rows_quarantined
        self.rows_truncated += record.rows_truncated
        self.rows_not_finite += record.rows_not_finite
        self.partitions_done += 1
        shares = [self._shares.setdefault(record.snapshot, [0, 0])]
        if record.member:
            shares.append(self._members.setdefault(record.member, [0, 0]))
        for share in shares:
            share[0] += 1
            share[1] += record.rows_in

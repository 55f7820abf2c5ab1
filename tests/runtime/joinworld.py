"""Make-believe clusters around the real logic of members that share a job, on real storage in memory.

Members come, pause, wake up, leave and die; tasks that a dead or a busy member has let go of run on, and may write and
commit at any later moment. Clocks are make-believe, and no two of them agree.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from daskinfer.errors import ClaimLost, JobBusy
from daskinfer.graphs.context import JobContext
from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.tasks import confirm_driver
from daskinfer.ids import make_nonce
from daskinfer.planning.blocks import cut_blocks
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.protocol.actions import (
    ClaimBlocks,
)
from daskinfer.runtime.protocol.events import (
    Committed,
    TaskFailed,
    Tick,
)
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.partitions.claim_policy import ClaimPolicy
from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.recipe.schema import Consistency
from daskinfer.spec.rows import Partition
from daskinfer.storage.jobs.driver_identity import TTL, DriverIdentity
from daskinfer.storage.jobs.membership import Member, Watch
from daskinfer.storage.jobs.partition_claims import ClaimLog
from daskinfer.storage.jobs.store import create_job
from daskinfer.storage.objects.filesystem import replace_bytes
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.job_output import open_output, open_part_sink
from daskinfer.storage.outputs.sink import OutputPart
from tests.runtime.joinmember import JoinMember, Task
from tests.support import jobrecords
from tests.support.chooser import Chooser
from tests.support.factories import make_machine

PARTITIONS = 7
TURNS = 2
"""Of `daskinfer.planning.blocks`: blocks of three, two, one and one."""
EARLY = (1, 6)
"""Partitions that an earlier driver has committed."""


class Violation(AssertionError):
    """An invariant does not hold."""


class JoinWorld:
    """Storage, and everybody who works on one job.

    Parameters
    ----------
    chooser
        What happens when.
    bug
        A mistake to make: `no-fence`, `count-twice`, `nobody-dies`.
    """

    def __init__(self, chooser: Chooser, bug: str = "") -> None:
        self.chooser = chooser
        self.sizes = [(1,) * chooser.below(3) for _ in range(PARTITIONS)]
        self.bug = bug
        self.now = 0.0
        self.url = f"memory://{make_nonce()}"
        self.store = create_job(self.url, self._make_record, "job")
        self.record = self.store.record()
        self.output = open_output(self.record, self.url)
        self.lives: list[JoinMember] = []
        self.zombies: list[Task] = []
        self.first: dict[int, CommitRecord] = {}
        self.computed = 0
        self.violated = False
        early = JobHandle(self.url, self.store.job, 0, self.record.first_pin)
        for partition in EARLY:
            self._run(self._run(Task(early, partition, "write")))

    # Members

    @property
    def awake(self) -> list[JoinMember]:
        return [life for life in self.lives if not life.is_paused and not life.ended]

    def start_member(self) -> JoinMember:
        epochs = SlotLog(join_url(self.store.url, "epochs"))
        head = epochs.head()
        if head is None or head.record["mode"] != "joined":
            head = epochs.append(self._make_driver("joined").model_dump(mode="json"))
        handle = JobHandle(self.url, self.store.job, head.sequence + 1, self.record.first_pin, member=make_nonce(12))
        committed = {record.partition: record.snapshot for record in self.output.committed()}
        pin = self.record.first_pin
        core = make_machine(
            PARTITIONS,
            committed,
            replicas=(1,),
            limits=Limits(rejects=10**6),
            tracker=AliasTracker(pin, Consistency()),
            epoch=handle.epoch,
            claims=ClaimPolicy(handle.member, PARTITIONS, committed),
        )
        ahead = self.chooser.pick((0.0, 1e6, -1e6))
        watch = Watch(self.store.url, 1e12 if self.bug == "nobody-dies" else TTL, lambda: self.now + ahead)
        log = ClaimLog(self.store.url, handle.epoch)
        claimer = ClaimStore(handle.member, log, cut_blocks(self.record), self.output, watch, lambda: self.now + ahead)
        life = JoinMember(self, core, handle, claimer)
        life.rows = len(committed)
        self.lives.append(life)
        self._beat(life)
        life.begin(1)
        return life

    def kill(self, life: JoinMember) -> None:
        """Kill a member; the tasks that run on its cluster go on."""
        life.ended = "killed"
        self.zombies += [task for task in life.todo if isinstance(task, Task)]
        life.todo.clear()

    def leave(self, life: JoinMember) -> None:
        """Let a member go as Ctrl-C does."""
        self.kill(life)
        self._beat(life, released=True)

    def take_alone(self) -> None:
        """Let a driver run the job alone for a moment, once everybody seems dead."""
        if self.awake or not self.lives:
            return
        SlotLog(join_url(self.store.url, "epochs")).append(self._make_driver("alone").model_dump(mode="json"))
        done = {record.partition for record in self.output.committed()}
        left = [partition for partition in range(PARTITIONS) if partition not in done]
        handle = JobHandle(self.url, self.store.job, self.store.current_epoch(), self.record.first_pin)
        for partition in left[: self.chooser.below(3)]:
            self._run(self._run(self._run(Task(handle, partition))))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for life in self.awake:
            self._beat(life)
            life.tell(Tick())

    def claim(self, life: JoinMember, wanted: ClaimBlocks) -> None:
        """Claim for a member what it wants, and tell it."""
        if self.bug == "nobody-dies":
            wanted = ClaimBlocks(wanted.is_wanted)  # nor is anybody helped
        event = life.claimer.claim(wanted)
        if event.trouble:
            raise self.violation(event.trouble)
        assert life.machine.claims is not None
        new = event.committed if self.bug == "count-twice" else life.machine.claims.find_new(event)
        life.rows += sum(record.rows_in for record in new)  # as the driver counts
        life.tell(event)

    def go_on(self, life: JoinMember, task: Task) -> None:
        """Let a member's commit do its next step."""
        try:
            task = self._run(task)
        except ClaimLost as error:
            life.tell(TaskFailed("commit", task.partition, 0, error))
        except JobBusy:
            self.kill(life)
            life.ended = "fenced"
        else:
            if task.step == "done":
                record = self.first[task.partition]
                life.rows += record.rows_in
                life.tell(Committed(record))
            else:
                life.todo.append(task)

    def wake_zombie(self) -> None:
        """Let a task that nobody waits for do its next step."""
        if self.zombies:
            task = self.zombies.pop(self.chooser.below(len(self.zombies)))
            try:
                task = self._run(task)
            except (ClaimLost, JobBusy):
                return
            if task.step != "done":
                self.zombies.append(task)

    def finish(self) -> None:
        """Leave one member in peace until it seals the output, then wake whoever has slept."""
        self.chooser.calm()
        last = self.awake[-1] if self.awake else self.start_member()
        for life in self.awake:
            if life is not last:
                life.is_paused = True
        self._run_to_the_end(last)
        if last.ended == "fenced":  # a driver that ran the job alone had been here
            self._run_to_the_end(self.start_member())
        while self.zombies:
            self.wake_zombie()
        for life in self.lives:
            life.is_paused = False
            self._run_to_the_end(life)
        self._check()

    # Storage

    def _run(self, task: Task) -> Task:
        """Do the next step of a commit, as the task on a worker does."""
        handle, number = task.handle, task.partition
        context = JobContext(handle)
        match task.step:
            case "confirm":
                is_fenced = not self._may_commit(handle, number)
                if self.bug != "no-fence":
                    confirm_driver(context, handle, number)
                if is_fenced:
                    raise self.violation(f"a fenced member writes partition {number}")
                return Task(handle, number, "write")
            case "write":
                self.computed += 1
                written = open_part_sink(self.record, handle.pin).write(make_part(number))
                return Task(handle, number, "commit", written)
        assert task.written is not None
        record = CommitRecord(
            job=handle.job,
            snapshot=handle.pin.snapshot,
            partition=number,
            epoch=handle.epoch,
            member=handle.member,
            rows_in=1,
            rows_out=1,
            rows_quarantined=0,
            tokens=1,
            padded_tokens=1,
            microbatches=(),
            digest=task.written.digest,
            path=task.written.path,
            trail=(),
        )
        committed = open_part_sink(self.record, handle.pin).commit(record)
        if self.first.setdefault(number, committed) != committed:
            raise self.violation(f"the commit of partition {number} has changed")
        return Task(handle, number, "done")

    def _may_commit(self, handle: JobHandle, partition: int) -> bool:
        """Say what storage says of a driver, by other means than it does itself."""
        if handle.epoch != len(SlotLog(join_url(self.store.url, "epochs")).read()):
            return False
        if not handle.member:
            return True
        block = max(start for start in cut_blocks(self.record).starts if start <= partition)
        place = join_url(self.store.url, "claims", f"{handle.epoch:04d}", f"{block:08d}")
        claims = SlotLog(place).read()
        return bool(claims) and handle.member in claims[-1].record["members"]

    def _make_record(self, job: str) -> Any:
        record = jobrecords.make_record(job)
        recipe = record.recipe.model_copy(
            update={
                "input": record.recipe.input.model_copy(update={"partition_rows": 1}),
                "output": record.recipe.output.model_copy(update={"url": f"{self.url}/out.jsonl"}),
            }
        )
        fields = (OutputField(name="embedding", kind="float32", shape=(2,)),)
        changes = {"recipe": recipe, "output": recipe.output.url, "fields": fields}
        return record.model_copy(update={**changes, "rows": PARTITIONS, "partitions": PARTITIONS})

    def _make_driver(self, mode: Any) -> DriverIdentity:
        return DriverIdentity(host="there", machine="another one", pid=1, started=0.0, since="", mode=mode)

    def _beat(self, life: JoinMember, released: bool = False) -> None:
        life.counter += 1
        member = Member(
            member=life.handle.member,
            epoch=life.handle.epoch,
            driver=self._make_driver("joined"),
            counter=life.counter,
            released=released,
            at=time.time(),
            progress=None,
        )
        url = join_url(self.store.url, "members", f"{life.handle.member}.json")
        replace_bytes(url, member.model_dump_json().encode())

    def _run_to_the_end(self, life: JoinMember) -> None:
        for _ in range(400):
            if life.ended:
                return
            for _ in range(len(life.todo)):
                if life.todo and not life.ended:
                    life.step()
            self.now += 0.25
            self._beat(life)
            life.tell(Tick())
        raise self.violation("a member does not end")

    def _check(self) -> None:
        """What is sealed has every partition once, and the bytes that its records tell of."""
        self.output.seal({})
        records = list(self.output.committed())
        if [record.partition for record in records] != list(range(PARTITIONS)):
            raise self.violation("partitions are missing")
        if any(self.first[record.partition] != record for record in records):
            raise self.violation("a commit has changed")
        for record in records:
            part = make_part(record.partition)
            if open_part_sink(self.record, self.record.first_pin).write(part).digest != record.digest:
                raise self.violation(f"partition {record.partition} has other bytes than its record says")

    def violation(self, message: str) -> Violation:
        """Return what says that an invariant does not hold."""
        self.violated = True  # nothing that follows proves anything
        return Violation(message)


def make_part(number: int) -> OutputPart:
    """Return the one row of a partition."""
    return OutputPart(
        partition=Partition(number=number, first_row=number, rows=1, segments=()),
        positions=np.zeros(1, np.int32),
        arrays={"embedding": np.full((1, 2), number, np.float32)},
        kept=pa.table({}),
        rejects=(),
    )

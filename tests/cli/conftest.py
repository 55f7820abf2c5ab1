"""A fake api with one of everything, for tests of what the command line prints."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daskinfer import api
from daskinfer.errors import CheckpointError, DaskinferError
from daskinfer.spec.job.record import JobStatus, Progress
from daskinfer.spec.job.report import Report
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.registry.listing import AliasRow, CheckpointDetail, CheckpointRow, VersionRow
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.registry.publishing.publish import Watch

RECIPE = """\
daskinfer: 1
name: embed-news
workspace: ./work
model: {checkpoint: minilm@prod}
input: {url: data/*.jsonl}
output: {url: results/news.zarr}
"""
SNAPSHOT = "sha256:" + "3f9a1c0b" * 8


class FakeApi:
    """Plays a job of ten rows; `error` is raised after the first four."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.earlier = False
        self.fresh = self.join = self.recurs = False
        self.command = ""
        self.recipe: Recipe | None = None
        self.states = ["done"]
        self.members: list[dict[str, object]] = []
        self.written: Report | None = None
        self.published: tuple[str, ...] = ()
        self.options: dict[str, object] = {}

    def make_report(self, **changes: object) -> Report:
        started = datetime.now(UTC) - timedelta(days=self.earlier)
        report = Report(
            job="embed-news-1",
            name="embed-news",
            verdict="done",
            message="all rows are committed",
            checkpoint="minilm@prod",
            snapshot=SNAPSHOT,
            version=3,
            recipe="sha256:aa",
            key="sha256:bb",
            rows_in=10,
            rows_out=9,
            rows_quarantined=1,
            rows_this_run=10,
            partitions=5,
            partitions_resumed=0,
            epoch=1,
            tokens=100,
            padded_tokens=110,
            seconds=4.0,
            startup_seconds=1.5,
            running_seconds=2.0,
            stages=(),
            counters={},
            incidents=(),
            rejects=("data/a.jsonl:3: not JSON",),
            versions={"python": "3.11"},
            output="results/[news].zarr",
            report="work/jobs/embed-news-1/report.html",
            command=self.command,
            started=started.isoformat(timespec="seconds"),
        )
        return report.model_copy(update=changes)

    def run(
        self,
        recipe: Recipe,
        *,
        fresh: bool = False,
        join: bool = False,
        watch: Callable[[Progress], None] | None = None,
        command: str = "",
    ) -> Report:
        self.recipe, self.fresh, self.join, self.command = recipe, fresh, join, command
        assert watch is not None
        if not self.earlier:
            watch(Progress(phase="preparing"))
            watch(
                Progress(
                    phase="running", job="embed-news-1", rows_total=10, rows_done=4, rows_quarantined=1,
                    seconds=1.0, rows_per_second=4.0, eta=1.5, busy=(0.9, 0.5), message="worker lost",
                )
            )  # fmt: skip
        if self.error is not None:
            raise self.error
        return self.make_report()

    def validate(self, recipe: Recipe) -> list[str]:
        if self.error is not None:
            raise self.error
        return ["input: 2 files, 10 rows", f"checkpoint: {recipe.model.checkpoint} is {SNAPSHOT}"]

    def status(self, job: str, workspace: str) -> JobStatus:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return JobStatus.model_validate(
            {
                "job": job, "name": "embed-news", "state": state, "rows_total": 10, "rows_done": 4, "rows_quarantined": 1,
                "partitions": 5, "partitions_done": 2, "checkpoint": "minilm@prod", "snapshot": SNAPSHOT,
                "output": f"{workspace}/out.zarr", "created": "2026-11-21T03:40:00+00:00", "driver": "host:12",
                "heartbeat_age": 2.0, "progress": Progress(phase="failed", recurs=True) if self.recurs else None, "members": self.members,
            }
        )  # fmt: skip

    def jobs(self, workspace: str, damaged: Callable[[DaskinferError], None] | None = None) -> list[JobStatus]:
        return [] if workspace == "empty" else [self.status("embed-news-1", workspace)]

    def report(self, job: str, workspace: str, member: str = "") -> Report:
        if self.written is None:
            raise CheckpointError(f"no report of {job} in {workspace}")
        return self.written

    def publish(
        self, name: str, source: str | None, *, registry: str, alias: str | None, watch: Watch, **options: object
    ) -> Resolution:
        self.published = (name, source or "", registry, alias or "")
        self.options = {key: value for key, value in options.items() if value}
        watch("storing", 10, 10)
        return Resolution(reference=name, name=name, snapshot=SNAPSHOT, version=3)

    def checkpoints(self, registry: str) -> list[CheckpointRow]:
        latest = VersionRow(number=3, snapshot=SNAPSHOT)
        prod = AliasRow(name="prod", snapshot=SNAPSHOT, version=2)
        return [] if registry == "empty" else [CheckpointRow(name="minilm", versions=3, latest=latest, aliases=(prod,))]

    def checkpoint(self, reference: str, registry: str) -> CheckpointDetail:
        name, _, _ = reference.partition("@")
        if name != "minilm":
            raise CheckpointError(f"{registry} has no checkpoint {name!r}", hint="daskinfer checkpoint list")
        return CheckpointDetail(
            resolution=Resolution(reference=reference, name=name, snapshot=SNAPSHOT, version=3),
            architecture="BertModel",
            dtype="float32",
            size=90_868_376,
            groups={"embeddings": 47_000_000, "layer.0": 7_100_000},
            files=("config.json",),
            provenance={"license": "apache-2.0"},
            versions=(VersionRow(number=3, snapshot=SNAPSHOT),),
            aliases=(AliasRow(name="prod", snapshot=SNAPSHOT, version=3),),
        )

    def set_alias(self, name: str, alias: str, target: str, *, registry: str, **options: object) -> Resolution:
        return Resolution(reference=f"{name}@{target}", name=name, snapshot=SNAPSHOT, version=3, alias=alias)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    found = FakeApi()
    verbs = ("run", "validate", "status", "jobs", "report", "publish", "checkpoints", "checkpoint", "set_alias")
    for verb in verbs:
        monkeypatch.setattr(api, verb, getattr(found, verb), raising=False)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory of the test, with a recipe in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("DASKINFER_WORKSPACE", "DASKINFER_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path

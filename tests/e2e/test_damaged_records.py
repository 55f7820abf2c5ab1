"""Records that were damaged on disk: every command is right, or names the place and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daskinfer import api
from daskinfer.cli import main
from daskinfer.errors import Interrupted
from daskinfer.runtime.jobs import retry_round
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.commit_index import tabulate, write_index
from daskinfer.storage.outputs.job_output import open_standing
from tests.e2e.conftest import data_bytes, make_bench, run
from tests.e2e.faults import interrupt
from tests.e2e.refused_rows import spoil

pytestmark = pytest.mark.late

PLACES = ("work", "done.jsonl", "stopped.zarr")
BAD = {3: '{"id": "row-3", "text": ', 70: '{"id": "row-70", "text": 7}'}
# {done} and {stopped} stand for the ids of the jobs; of what a pattern matches, the first is damaged.
RECORDS = (
    "done.jsonl/_MANIFEST.json",
    "done.jsonl/part-00000000.jsonl",
    "done.jsonl/_quarantine/*.jsonl",
    "done.jsonl/_daskinfer/owner/*.json",
    "done.jsonl/_daskinfer/commits/*/*.json",
    "done.jsonl/_daskinfer/retries/*/0001/round.json",
    "done.jsonl/_daskinfer/retries/*/0001/inputs.json",
    "done.jsonl/_daskinfer/retries/*/0001/commits/*.json",
    "done.jsonl/_daskinfer/retries/*/0001/e*/part-*.jsonl",
    "stopped.zarr/zarr.json",
    "stopped.zarr/embedding/zarr.json",
    "stopped.zarr/_daskinfer/owner/*.json",
    "stopped.zarr/_daskinfer/commits/*/0*.json",
    "stopped.zarr/_daskinfer/commits/*/index-*.parquet",
    "work/jobs/{done}/job.json",
    "work/jobs/{done}/done.json",
    "work/jobs/{done}/report.json",
    "work/jobs/{stopped}/job.json",
    "work/jobs/{stopped}/inputs.json.gz",
    "work/jobs/{stopped}/lease.json",
    "work/jobs/{stopped}/report.json",
    "work/jobs/{stopped}/cleared.json",
    "work/jobs/{stopped}/corrected.json",
    "work/jobs/{stopped}/epochs/*.json",
    "work/jobs/{stopped}/control/*.json",
    "work/jobs/{stopped}/journal/*.jsonl",
    "work/registry/format.json",
    "work/registry/audit/*/*.json",
    "work/registry/blobs/*/*",
    "work/registry/manifests/*.json",
    "work/registry/outlines/*.json",
    "work/registry/locks/*/{stopped}.hb",
    "work/registry/locks/*/{stopped}.json",
    "work/registry/models/tiny/aliases/prod/*.json",
    "work/registry/models/tiny/versions/*.json",
)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def make_list(path: Path) -> None:
    path.write_text('[{"other": [1, 2, null]}, "x"]')


def make_object(path: Path) -> None:
    path.write_text('{"record": 3, "inputs": [], "epoch": "x", "entries": {}, "parts": 7, "job": null}')


def remove(path: Path) -> None:
    path.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@dataclass(frozen=True)
class Workspace:
    """One with a job that is done and whose retry was stopped before it was merged, and a job that was stopped."""

    folder: Path
    done: str
    stopped: str
    scheduler: str
    wanted: dict[str, bytes]
    """What the stopped job's output is once it is finished."""

    def damage(self, pattern: str, how: Callable[[Path], None]) -> None:
        """Damage one record of a kind, and nothing else."""
        for name in PLACES:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(self.folder / "before" / name, self.folder / name)
        how(next(self.folder.glob(pattern.format(done=self.done, stopped=self.stopped))))

    def call(self, *words: str) -> Result:
        """Run a command, and make sure that it is not at a loss."""
        with chdir(self.folder):
            result = CliRunner().invoke(main, words)
        told = result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        assert "Traceback" not in told and "a bug" not in told, (words, told)
        # What is looked over is told as a list.
        if result.exit_code and words[:2] != ("checkpoint", "verify"):
            assert "hint:" in told or words[0] == "verify", (words, told)
            # All names of jobs and checkpoints begin so.
            assert str(self.folder) in told or "tiny" in told, (words, told)
        return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, scheduler: str) -> Workspace:
    bench = make_bench(tmp_path_factory.mktemp("damaged"), tiny_model, 160)
    folder = bench.folder
    spoil(bench, BAD)
    changes = {"errors__max_rows": 10, "input__partition_rows": 32}
    recipe = bench.recipe("stopped.zarr", **changes)
    wanted = run(bench.recipe("calm.zarr", **changes), scheduler)
    interrupt(recipe, scheduler, 32)
    done = run(bench.recipe("done.jsonl", **changes), scheduler)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(retry_round, "merge_round", _interrupt)
        api.retry(done.job, recipe.workspace, overrides=[f"cluster.address={scheduler}"])
    (stopped,) = [job.job for job in api.jobs(recipe.workspace) if job.output.endswith("stopped.zarr")]
    store = JobStore(recipe.workspace, stopped)
    record, log = store.record(), ControlLog(store.url)
    log.answer(1, log.ask_cancel(1), "stopped")
    store.save_inputs(record.inputs)
    commits = tabulate(open_standing(record, recipe.workspace).digests())
    write_index(str(folder / "stopped.zarr/_daskinfer/commits" / stopped), stopped, commits)
    bench.write_recipe(
        output__url=str(folder / "stopped.zarr"),
        cluster__address=scheduler,
        placement__requires={"TWO": 1},
        **changes,
    )
    shutil.rmtree(folder / "work/jobs" / wanted.job)
    for name in PLACES:
        shutil.copytree(folder / name, folder / "before" / name)
    return Workspace(folder, done.job, stopped, scheduler, data_bytes(folder / "calm.zarr"))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("record", RECORDS)
def test_commands_that_look(workspace: Workspace, record: str) -> None:
    for damage in (truncate, flip, make_list, make_object, remove, make_folder):
        workspace.damage(record, damage)
        for job in (workspace.done, workspace.stopped):
            workspace.call("status", job)
            workspace.call("report", job)
        workspace.call("jobs")
        verified = workspace.call("verify", workspace.done)
        is_digested = ("part-" in record and "retries" not in record) or "MANIFEST" in record
        # Nothing tells a reason with another letter in it from the one that was written.
        if is_digested or ("_quarantine" in record and damage is not flip):
            assert verified.exit_code, (damage, verified.stdout)
        for words in (
            ("show", "tiny@prod"),
            ("verify", "tiny@prod"),
            ("list",),
            ("history", "tiny", "prod"),
            ("locks",),
        ):
            workspace.call("checkpoint", *words)
        workspace.call("audit")


@pytest.mark.slow
@pytest.mark.parametrize("record", RECORDS)
def test_commands_that_go_on(workspace: Workspace, record: str) -> None:
    for damage in (make_object, remove):
        workspace.damage(record, damage)
        if "done" in record:
            words = ("retry", workspace.done, "--set", f"cluster.address={workspace.scheduler}")
            ended = workspace.call(*words)
            verified = workspace.call("verify", workspace.done)
            # A part of which nothing was recovered is not written again; that it is damaged, its verification says.
            if ended.exit_code == 0 and not record.startswith("done.jsonl/part-"):
                assert verified.exit_code == 0, damage
            continue
        if workspace.call("run", "recipe.yaml").exit_code == 0:
            assert data_bytes(workspace.folder / "stopped.zarr") == workspace.wanted, damage
            assert workspace.call("verify", workspace.stopped).exit_code == 0, damage

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result

from daskinfer import errors
from daskinfer.cli import main
from daskinfer.cli.plugin import infer
from daskinfer.spec.job.membership import MemberShare
from daskinfer.spec.job.report import Incident

if TYPE_CHECKING:
    from tests.cli.conftest import FakeApi

pytestmark = pytest.mark.usefixtures("folder")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="daskinfer")


def last_json(result: Result) -> dict[str, object]:
    found = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_run_says_what_happened(fake: FakeApi) -> None:
    result = call("run", "recipe.yaml", "--set", "pipeline.stages=3")
    assert result.exit_code == 0
    assert fake.recipe is not None
    assert fake.recipe.pipeline.stages == 3
    assert fake.command == "daskinfer run recipe.yaml --set pipeline.stages=3"
    assert result.stdout.splitlines() == [
        "done  embed-news  all rows are committed",
        "  job       embed-news-1",
        "  snapshot  minilm@prod v3 sha256:3f9a1c0b3f9a",
        "  rows      10 in = 9 out + 1 quarantined",
        "  refused   data/a.jsonl:3: not JSON",
        "  padding   9.1% of the tokens that were computed",
        "  speed     5 rows/s over 2.0 s (4.0 s in all, 1.5 s to start)",
        "  output    results/[news].zarr",
        "  report    work/jobs/embed-news-1/report.html",
    ]
    assert result.stderr.splitlines() == [
        "embed-news: job embed-news-1, 10 rows",
        "embed-news: done in 4.0 s, 9 rows out, 1 quarantined",
    ]


def test_a_report_sums_its_incidents_up(fake: FakeApi) -> None:
    silent = Incident(at=5, kind="worker-frozen", detail="", detect_seconds=15.4, recover_seconds=71.0)
    incidents = (silent, Incident(at=6, kind="resumed", detail=""), silent.model_copy(update={"recover_seconds": None}))
    fake.written = fake.make_report(incidents=incidents)
    lines = call("report", "embed-news-1").stdout.splitlines()
    told = "  incidents  2 worker-frozen (detected after 15.4 s, recovered after 1 min 11 s at most); resumed"
    assert " ".join(told.split()) in [" ".join(line.split()) for line in lines]


def test_run_prints_one_json_object(fake: FakeApi) -> None:
    result = call("run", "recipe.yaml", "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert last_json(result) == {
        "job": "embed-news-1",
        "snapshot": fake.make_report().snapshot,
        "rows_in": 10,
        "rows_out": 9,
        "rows_quarantined": 1,
        "rows_truncated": 0,
        "rows_not_finite": 0,
        "seconds": 4.0,
        "output": "results/[news].zarr",
        "report": "work/jobs/embed-news-1/report.html",
        "verdict": "done",
        "code": 0,
        "already_done": False,
    }


def test_a_finished_job_is_reported_at_once(fake: FakeApi) -> None:
    fake.earlier = True
    result = call("run", "recipe.yaml")
    assert result.stdout.startswith("done  embed-news  already done, nothing to do\n")
    assert result.stderr == "embed-news: was done already, 9 rows out, 1 quarantined\n"
    assert last_json(call("run", "recipe.yaml", "--json"))["already_done"] is True


ENDS = {
    "JobFailed": 1,
    "NotFinite": 1,
    "StorageError": 1,
    "JobBusy": 1,
    "InputError": 2,
    "OutputOwned": 2,
    "PlanError": 3,
    "RejectBudgetExceeded": 4,
    "Interrupted": 130,
}


@pytest.mark.parametrize("name", ENDS)
def test_every_error_has_its_exit_code(fake: FakeApi, name: str) -> None:
    fake.error = getattr(errors, name)("what went wrong", hint="what to do")
    result = call("run", "recipe.yaml", "--fresh", "--set", "name=a-b", "--set", "input.url=a b.csv")
    assert result.exit_code == ENDS[name]
    assert fake.fresh
    assert result.stdout == ""
    assert "error: what went wrong\nhint: what to do\n" in result.stderr
    # Starting over again would throw away what the failed run did commit.
    resume = "To resume:\n  daskinfer run recipe.yaml --set name=a-b --set 'input.url=a b.csv'\n"
    assert (resume in result.stderr) == (ENDS[name] in (1, 130) and name != "NotFinite")


def test_a_command_that_must_stop_again_is_not_offered(fake: FakeApi) -> None:
    fake.error = errors.RejectBudgetExceeded("3 rows are quarantined")
    result = call("run", "recipe.yaml", "--set", "errors.max_rows=0", "--set", "name=a")
    assert "To resume" not in result.stderr
    assert "  daskinfer run recipe.yaml --set name=a --set errors.max_rows=N\n" in result.stderr
    fake.error = errors.NotFinite("row 3")
    assert "daskinfer run" not in call("run", "recipe.yaml").stderr


def test_ctrl_c_is_130(fake: FakeApi) -> None:
    fake.error = KeyboardInterrupt()
    result = call("run", "recipe.yaml")
    assert result.exit_code == 130
    assert "error: interrupted\n" in result.stderr
    assert "  daskinfer run recipe.yaml\n" in result.stderr


def test_a_failed_run_still_prints_its_json(fake: FakeApi) -> None:
    fake.error = errors.RejectBudgetExceeded("too many")
    found = last_json(call("run", "recipe.yaml", "--json"))
    assert found == {
        "job": "embed-news-1",
        "snapshot": None,
        "rows_in": 10,
        "rows_out": 3,
        "rows_quarantined": 1,
        "rows_truncated": 0,
        "rows_not_finite": 0,
        "seconds": 1.0,
        "output": "results/news.zarr",
        "report": None,
        "verdict": "failed",
        "code": 4,
        "error": "too many",
        "hint": None,
        "resume": None,
    }
    fake.written = fake.make_report(verdict="over budget", rows_out=2)
    result = call("run", "recipe.yaml", "--json")
    assert "What it did: work/jobs/embed-news-1/report.html\n" in result.stderr
    found = last_json(result)
    assert (found["verdict"], found["rows_out"], found["snapshot"]) == ("over budget", 2, fake.written.snapshot)
    fake.written = fake.make_report()
    assert last_json(call("run", "recipe.yaml", "--json"))["verdict"] == "failed"


def test_a_bug_is_called_one(fake: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    fake.error = ZeroDivisionError("division by zero")
    result = call("run", "recipe.yaml")
    assert result.exit_code == 1
    assert "error: this is a bug in daskinfer: ZeroDivisionError: division by zero\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert "  daskinfer run recipe.yaml\n" in result.stderr
    (path,) = folder.glob("daskinfer-bug-*.txt")
    assert f"hint: please report it with {path}\n" in result.stderr
    assert "Traceback" in path.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "nowhere"))
    result = call("run", "recipe.yaml")
    assert result.exit_code == 1
    assert "hint: its traceback could not be written: No such file or directory\n" in result.stderr


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_bad_recipe_is_2_and_shows_the_line(fake: FakeApi, folder: Path, command: str) -> None:
    result = call(command, "recipe.yaml", "--set", "model.task=embd", "--json")
    assert result.exit_code == 2
    assert (
        "error: --set model.task=embd: model.task: must be 'embed', 'classify', 'score', or 'forward'" in result.stderr
    )
    assert "      | model.task=embd\n      |            ^^^^\n" in result.stderr
    assert "resume" not in result.stderr
    found = last_json(result)
    assert found["code"] == 2
    assert "Did you mean 'embed'?" in str(found["error"])
    assert call(command, "nosuch.yaml").exit_code == 2
    assert call(command).exit_code == 2


def test_validate_tells_what_it_checked(fake: FakeApi) -> None:
    result = call("validate", "recipe.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "input: 2 files, 10 rows"
    assert result.stdout.splitlines()[-1] == "recipe.yaml is valid"
    assert last_json(call("validate", "recipe.yaml", "--json"))["valid"] is True
    fake.error = errors.InputError("data/*.jsonl matches nothing")
    assert call("validate", "recipe.yaml").exit_code == 2


def test_schema_is_json(fake: FakeApi) -> None:
    assert json.loads(call("schema").stdout)["title"] == "daskinfer recipe"


def test_status_and_jobs(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.states = ["stopped"]
    text = call("status", "embed-news-1").stdout
    assert "stopped  embed-news  run the same command again to resume it" in text
    assert "rows        4 of 10 (40%), 1 quarantined" in text
    fake.recurs = True
    text = call("status", "embed-news-1").stdout
    assert "the same command would stop there again; see why: daskinfer report embed-news-1" in text
    assert last_json(call("status", "embed-news-1", "--json"))["state"] == "stopped"
    lines = call("jobs").stdout.splitlines()
    assert re.split(r"  +", lines[0].strip()) == ["JOB", "STATE", "ROWS", "CHECKPOINT", "CREATED", "OUTPUT"]
    assert lines[1].endswith("./work/out.zarr")
    monkeypatch.setenv("DASKINFER_WORKSPACE", "s3://bucket/w" + "w" * 200)
    assert call("jobs").stdout.splitlines()[1].endswith("w/out.zarr")
    assert call("jobs", "--workspace", "empty").stdout == "no jobs in empty\n"
    assert last_json(call("jobs", "--workspace", "empty", "--json")) == {"workspace": "empty", "jobs": []}


def test_drivers_that_run_a_job_together(fake: FakeApi) -> None:
    assert call("run", "recipe.yaml", "--join").exit_code == 0
    assert fake.join
    assert fake.command.endswith("run recipe.yaml --join")
    member = {"member": "a1", "driver": "host:12", "is_alive": True, "heartbeat_age": 1.5, "rows_done": 3}
    fake.states, fake.members = ["running"], [member, {**member, "driver": "host:13", "is_alive": False}]
    text = call("status", "embed-news-1").stdout
    assert "member 1    host:12, live, 3 rows, last heard of 1.5 s ago" in text
    assert "member 2    host:13, gone, 3 rows" in text
    assert "driver" not in text
    share = MemberShare(member="a1", driver="host:12", partitions=1, rows=4)
    fake.written = fake.make_report(members=(share, share.model_copy(update={"driver": "host:13", "rows": 6})))
    assert "members   rows: 4 by host:12, 6 by host:13" in call("report", "embed-news-1").stdout


def test_status_follows_until_the_end(fake: FakeApi) -> None:
    fake.states = ["running", "running", "done"]
    result = call("status", "embed-news-1", "--watch", "--json")
    assert last_json(result)["state"] == "done"
    assert len(result.stdout.splitlines()) == 1


def test_report_in_three_forms(fake: FakeApi, folder: Path) -> None:
    fake.written = fake.make_report(verdict="interrupted", rows_out=5, partitions_resumed=2)
    text = call("report", "embed-news-1").stdout
    assert "10 in = 5 out + 1 quarantined + 4 to go" in text
    assert "2 of 5 partitions were committed by an earlier run" in text
    assert json.loads(call("report", "embed-news-1", "--json").stdout)["epoch"] == 1
    assert call("report", "embed-news-1", "--html", "page.html").exit_code == 0
    assert (folder / "page.html").read_text().startswith("<!doctype html>")
    failed = call("report", "embed-news-1", "--html", "no/page.html")
    assert failed.exit_code == 1
    assert "no/page.html: cannot be written: No such file or directory" in failed.stderr


def test_checkpoint_commands(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("checkpoint", "publish", "minilm", "dir", "--alias", "prod")
    assert result.stdout == f"published minilm v3 {fake.make_report().snapshot}, minilm@prod points at it\n"
    assert fake.published == ("minilm", "dir", "./work/registry", "prod")
    monkeypatch.setenv("DASKINFER_REGISTRY", "elsewhere")
    assert last_json(call("checkpoint", "publish", "minilm", "dir", "--json"))["version"] == 3
    assert fake.published == ("minilm", "dir", "elsewhere", "")
    assert fake.options == {}
    command = ["publish", "minilm", "--entry", "mine:build", "--dtype", "bfloat16", "--reference"]
    assert CliRunner().invoke(main, ["checkpoint", *command]).stdout.endswith("published before, as a copy\n")
    assert fake.published == ("minilm", "", "elsewhere", "")
    assert fake.options == {"entry": "mine:build", "dtype": "bfloat16", "reference": True}
    assert "minilm   v3       sha256:3f9a1c0b3f9a   3          prod -> v2" in call("checkpoint", "list").stdout
    assert "no checkpoints in empty" in call("checkpoint", "list", "--registry", "empty").stdout
    shown = call("checkpoint", "show", "minilm@prod").stdout
    assert "model     BertModel, float32, 90.9 MB" in shown
    assert "license   apache-2.0" in shown
    assert "minilm@prod is now minilm v3" in call("checkpoint", "alias", "minilm", "prod", "v3").stdout
    unknown = call("checkpoint", "show", "nosuch", "--json")
    assert unknown.exit_code == 2
    assert last_json(unknown)["hint"] == "daskinfer checkpoint list"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    result = call(*path, "--help")
    assert result.exit_code == 0
    assert "Examples:\n" in result.stdout
    assert f"  daskinfer {' '.join(path)}" in result.stdout


@pytest.mark.parametrize("path", [(), ("run",)])
def test_exit_codes_are_documented(path: tuple[str, ...]) -> None:
    codes = re.findall(r"^    (\d+) +\w", call(*path, "--help").stdout, flags=re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "130"]


def test_wrong_arguments_are_2() -> None:
    for arguments in (["rnu", "recipe.yaml"], ["run", "recipe.yaml", "--frehs"], ["status"]):
        assert call(*arguments).exit_code == 2


def test_the_dask_plugin_is_the_same_program(fake: FakeApi) -> None:
    assert infer.name == "infer"
    assert set(infer.commands) == set(main.commands)
    fake.error = errors.JobFailed("no")
    result = CliRunner().invoke(infer, ["run", "recipe.yaml"], prog_name="dask infer")
    assert result.exit_code == 1
    assert "  dask infer run recipe.yaml\n" in result.stderr


@pytest.mark.parametrize("typed", ["--frsh", "--refresh"])
def test_no_typing_mistake_is_corrected_into_the_loss_of_results(fake: FakeApi, typed: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    ended = CliRunner().invoke(main, ["run", str(tmp_path / "recipe.yaml"), typed])
    assert ended.exit_code == 2
    assert "No such option" in ended.output and "Did you mean" not in ended.output
    joined = CliRunner().invoke(main, ["run", str(tmp_path / "recipe.yaml"), "--jion"])
    assert "--join" in joined.output

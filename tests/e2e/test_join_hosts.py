"""Two hosts on one job that share nothing but an object store, one of them cut off from it for a while.

Neither can see the other's processes, so what is known of the other is what it writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from daskinfer import api
from daskinfer.ids import make_nonce
from daskinfer.storage.jobs.driver_identity import TTL
from daskinfer.storage.jobs.store import JobStore, list_jobs
from daskinfer.storage.objects.filesystem import read_bytes
from daskinfer.storage.outputs.job_output import open_output
from daskinfer.testing.servers.servers import S3_BUCKET, environment, serve_s3
from tests.e2e.conftest import Bench, write_rows
from tests.e2e.hosts import Host, is_allowed, open_hosts

ROWS, PARTITION = 640, 16


pytestmark = [
    pytest.mark.slow,
    pytest.mark.late,
    pytest.mark.campaign,
    pytest.mark.s3,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not is_allowed(), reason="needs the right to make network namespaces"),
]


def start(host: Host, recipe: Path, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    endpoint = variables["AWS_ENDPOINT_URL"].replace("127.0.0.1", host.gateway)
    proxy = {"NO_PROXY": f"127.0.0.1,{host.gateway}", "AWS_ENDPOINT_URL": endpoint}
    return subprocess.Popen(
        [*host.inside, sys.executable, "-m", "daskinfer", "run", str(recipe), "--join", "--json"],
        cwd=recipe.parent,
        env={**os.environ, **variables, **proxy, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with open_hosts(2) as made:
        yield made


def test_a_host_that_is_cut_off_harms_nothing(
    tmp_path: Path, tiny_model: Path, hosts: list[Host], capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_s3("--host", "0.0.0.0") as variables, environment(variables):
        place = f"s3://{S3_BUCKET}/{make_nonce()}"
        write_rows(tmp_path / "in.jsonl", ROWS)
        api.publish("tiny", str(tiny_model), registry=f"{place}/work/registry", alias="prod")
        bench = Bench(tmp_path, tiny_model)
        recipe = bench.write_recipe(input__partition_rows=PARTITION, workspace=f"{place}/work")
        text = json.loads(recipe.read_text())
        text["output"]["url"] = f"{place}/out.parquet"
        recipe.write_text(json.dumps(text))
        cut_off, other = (start(host, recipe, variables) for host in hosts)

        def count_commits() -> dict[str, int]:
            found: dict[str, int] = {}
            for job in list_jobs(f"{place}/work"):
                record = JobStore(f"{place}/work", job).record()
                for commit in open_output(record, f"{place}/work").committed():
                    found[commit.member] = found.get(commit.member, 0) + 1
            return found

        deadline = time.monotonic() + 240
        while len(count_commits()) < 2:
            assert cut_off.poll() is None, cut_off.communicate()
            assert other.poll() is None, other.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        hosts[0].switch("down")
        began, then = time.monotonic(), count_commits()
        out, err = other.communicate(timeout=300)
        assert other.returncode == 0, err
        seconds = time.monotonic() - began
        printed = json.loads(out.splitlines()[-1])
        assert (printed["rows_out"], printed["verdict"]) == (ROWS, "done")
        parts = [f"part-{number:08d}.parquet" for number in range(ROWS // PARTITION)]
        written = [read_bytes(f"{place}/out.parquet/{part}") for part in parts]
        commits = count_commits()
        assert cut_off.poll() is None or cut_off.returncode == 1

        hosts[0].switch("up")
        out, err = cut_off.communicate(timeout=300)
        assert cut_off.returncode in (0, 1), err
        assert "Traceback" not in err
        assert count_commits() == commits, "whoever was cut off has committed what was done"
        assert sum(commits.values()) == len(parts)
        assert [read_bytes(f"{place}/out.parquet/{part}") for part in parts] == written

        api.run(bench.recipe("calm.parquet", input__partition_rows=PARTITION, workspace=f"{place}/work"))
        assert [(tmp_path / "calm.parquet" / part).read_bytes() for part in parts] == written
    with capsys.disabled():
        print(f"\ncut off after {then}; the other ended {seconds:.1f} s later (ttl {TTL:.0f} s)")

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskinfer.errors import IntegrityError, StorageError
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import Partition
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.sink import OutputPart
from daskinfer.testing.contracts.sinks import make_record

PRELUDE = """
    import sys
    import numpy as np, pyarrow as pa
    from daskinfer.spec.job.record import OutputField
    from daskinfer.spec.rows import Partition
    from daskinfer.storage.outputs.formats import open_sink
    from daskinfer.storage.outputs.sink import OutputPart
    url, format = sys.argv[1:]
    rows = 2000
    sink = open_sink(url, format, "job-1", [OutputField(name="embedding", kind="float32", shape=(256,))], {}, rows,
                     rows * 500, {})
    def part(number):
        values = np.random.default_rng(number).random((rows, 256), np.float32)
        return OutputPart(Partition(number=number, first_row=number * rows, rows=rows, segments=()),
                          np.arange(rows, dtype=np.int32), {"embedding": values}, pa.table({}), ())
    sink.create()
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make_part(number: int) -> OutputPart:
    values = np.random.default_rng(number).random((2000, 256), np.float32)
    partition = Partition(number=number, first_row=number * 2000, rows=2000, segments=())
    return OutputPart(partition, np.arange(2000, dtype=np.int32), {"embedding": values}, pa.table({}), ())


@pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
def test_a_killed_writer_leaves_no_torn_part(tmp_path: Path, format: str) -> None:
    pattern = {"zarr": "embedding/c/*/0", "parquet": "part-*.parquet", "jsonl": "part-*.jsonl"}[format]
    # The second process goes on where the first one was killed: it meets its parts, whole or not at all.
    for life, wanted in enumerate((2, 4)):
        child = start("for number in range(500): sink.write(part(number))", str(tmp_path), format)
        try:
            deadline = time.monotonic() + 150
            while len(list(tmp_path.glob(pattern))) < wanted:
                assert time.monotonic() < deadline and child.poll() is None
                time.sleep(0.005 * (1 + life))
            os.kill(child.pid, signal.SIGKILL)
        finally:
            child.kill()
            child.communicate()
    for path in tmp_path.glob(pattern):
        if format == "zarr":
            assert path.stat().st_size == 2000 * 256 * 4
        elif format == "parquet":
            assert pq.read_table(path).num_rows == 2000
        else:
            assert path.read_bytes().count(b"\n") == 2000 and path.read_bytes().endswith(b"]}\n")


@pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
def test_a_full_disk_is_told_by_path(tmp_path: Path, format: str) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", mount], check=False).returncode
    ):
        pytest.skip("mounting a small filesystem is not allowed here")
    try:
        fields = [OutputField(name="embedding", kind="float32", shape=(256,))]
        sink = open_sink(str(mount / "out"), format, "job-1", fields, {}, 2000, 10_000, {})
        sink.create()
        with pytest.raises(StorageError, match=f"no space left on {mount}/out/") as caught:
            sink.write(make_part(0))
        assert caught.value.hint
        assert list(sink.committed()) == []
        assert not [path for path in (mount / "out").rglob("*") if path.stat().st_size > 1_000_000]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_file_size_limit_is_a_storage_error(tmp_path: Path) -> None:
    child = start(
        """
        import resource, signal
        from daskinfer.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            sink.write(part(0))
        except StorageError as error:
            print(error.message)
        """,
        str(tmp_path),
        "parquet",
    )
    output, errors = child.communicate(timeout=180)
    assert "part-00000000.parquet: [Errno 27] File too large" in output, errors
    assert list(tmp_path.iterdir()) == []


def test_a_race_of_processes_has_one_winner(tmp_path: Path) -> None:
    code = """
        from daskinfer.testing.contracts.sinks import make_record
        import os, time
        print("ready", flush=True)
        while not os.path.exists(url + ".go"):
            time.sleep(0.001)
        for number in range(3):
            one = part(number)
            record = make_record(one, sink.write(one), epoch=os.getpid())
            print(sink.commit(record).epoch)
    """
    url = tmp_path / "out"
    children = [start(code, str(url), "jsonl") for _ in range(2)]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        (tmp_path / "out.go").touch()
        answers = [child.communicate(timeout=180) for child in children]
    finally:
        for child in children:
            child.kill()
    assert answers[0][0] == answers[1][0] and len(answers[0][0].split()) == 3, answers
    names = sorted(path.name for path in url.iterdir())
    assert names == ["_daskinfer", *(f"part-{number:08d}.jsonl" for number in range(3))]


def test_a_damaged_record_is_not_taken_for_one(tmp_path: Path) -> None:
    fields = [OutputField(name="embedding", kind="float32", shape=(256,))]
    sink = open_sink(str(tmp_path), "parquet", "job-1", fields, {}, 2000, 2000, {})
    part = make_part(0)
    sink.commit(make_record(part, sink.write(part)))
    (path,) = (tmp_path / "_daskinfer" / "commits" / "job-1").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=r"00000000\.json is not a commit record"):
        list(sink.committed())

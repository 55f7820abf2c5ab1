"""The Dask processes that the documentation starts listen on loopback alone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.docpages import PAGES, ROOT, read_blocks

COMMAND = re.compile(r"\bdask (?:scheduler|worker) [^\n&|;`]*")
PLACES = [*PAGES, *(ROOT / "recipes").glob("*.*"), *(ROOT / "conda").glob("*.*")]


def commands_of(text: str) -> list[str]:
    """Return every whole command of a text that starts a Dask process."""
    return [command.strip() for command in COMMAND.findall(text.replace("\\\n", " "))]


DOCUMENTED = sorted(
    {
        command
        for page in PAGES
        for block in read_blocks(page)
        if block.language in ("bash", "console", "sh", "yaml")
        for command in commands_of(block.text)
    }
)


def test_every_process_of_a_page_is_told_where_to_listen() -> None:
    """A worker listens on all interfaces unless it is told otherwise, whatever its scheduler does."""
    assert len(DOCUMENTED) >= 2
    elsewhere = [each for place in PLACES if place not in PAGES for each in commands_of(place.read_text())]
    for command in (*DOCUMENTED, *elsewhere):
        words = shlex.split(command)
        assert words[words.index("--host") + 1] == "127.0.0.1", command
        # Its pages have an address of their own, with a dashboard and without.
        assert words[words.index("--dashboard-address") + 1] == "127.0.0.1:0", command


@pytest.mark.slow
@pytest.mark.late
@pytest.mark.parametrize("more", ["", "--preload-nanny daskinfer.runtime.cluster.forking"])
def test_the_processes_of_the_pages_listen_on_loopback_alone(more: str, tmp_path: Path) -> None:
    """As they are written, and with a nanny as docs/howto/cluster.md advises."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for command in DOCUMENTED:
            words = shlex.split(command)
            if more and "worker" in words:
                words = [*(word for word in words if word != "--no-nanny"), *shlex.split(more)]
            # Without a word, for nobody would read it.
            processes.append(
                psutil.Popen(
                    [sys.executable, "-m", *words],
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        deadline = time.monotonic() + 90
        worker = processes[[" worker " in command for command in DOCUMENTED].index(True)]
        while len(listening(worker)) < (2 if more else 1) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2)  # what else it opens
        found = {command: listening(each) for command, each in zip(DOCUMENTED, processes, strict=True)}
        assert all(found.values()), found
        assert {host for hosts in found.values() for host in hosts} == {"127.0.0.1"}, found
    finally:
        for process in (child for each in processes for child in (*each.children(recursive=True), each)):
            process.kill()
        psutil.wait_procs(processes, timeout=30)


def listening(process: psutil.Process) -> list[str]:
    """Return the host of every listening socket of a process and its children."""
    return [
        connection.laddr.ip
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]

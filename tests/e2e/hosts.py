"""Hosts of our own on this machine, with links between them that can be cut.

Each is a network namespace and a process-id namespace: what runs there sees no other processes than its own.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daskinfer.ids import make_nonce


def is_allowed() -> bool:
    """Whether this user may make namespaces."""
    if os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    probe = f"di{make_nonce(6)}"
    if subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True).returncode:
        return False
    subprocess.run(["ip", "netns", "del", probe], check=True)
    own_processes = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return not subprocess.run(own_processes, check=False, capture_output=True).returncode


@dataclass(frozen=True)
class Host:
    """A namespace with one link."""

    name: str
    address: str
    gateway: str
    """Our address, as the host sees it."""

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to run there; it ends when its process is killed."""
        return ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

    def switch(self, state: str) -> None:
        """Cut the link, `down`, or correct it, `up`."""
        call("ip", "link", "set", f"{self.name}-o", state)

    def cut_off(self, other: Host) -> None:
        """Let this host and another one reach everybody but each other."""
        call("ip", "-n", self.name, "route", "add", "blackhole", f"{other.address}/32")

    def reach(self, other: Host) -> None:
        """Correct that."""
        call("ip", "-n", self.name, "route", "del", "blackhole", f"{other.address}/32")


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def open_hosts(count: int, together: bool = False) -> Iterator[list[Host]]:
    """Make hosts, each with a link to us alone, or all of them `together` on one switch."""
    made: list[Host] = []
    switch, net = f"di{make_nonce(6)}", f"10.214.{random.randrange(256)}"
    try:
        if together:
            call("ip", "link", "add", switch, "type", "bridge")
            call("ip", "address", "add", f"{net}.1/24", "dev", switch)
            call("ip", "link", "set", switch, "up")
        for number in range(1, count + 1):
            own = net if together else f"10.213.{number}"
            host = Host(f"di{make_nonce(6)}", f"{own}.{number + 1}", f"{own}.1")
            call("ip", "netns", "add", host.name)
            made.append(host)
            inner, outer = f"{host.name}-i", f"{host.name}-o"
            call("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", host.name)
            if together:
                call("ip", "link", "set", outer, "master", switch)
            else:
                call("ip", "address", "add", f"{host.gateway}/24", "dev", outer)
            host.switch("up")
            inside = ("ip", "-n", host.name)
            call(*inside, "address", "add", f"{host.address}/24", "dev", inner)
            for link in (inner, "lo"):
                call(*inside, "link", "set", link, "up")
        yield made
    finally:
        for host in made:
            call("ip", "netns", "del", host.name)
        if together:
            call("ip", "link", "del", switch)

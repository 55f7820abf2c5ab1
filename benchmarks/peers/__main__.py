"""One step of one peer, in the peers' environment: python -m benchmarks.peers NAME prepare|run WORK OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.catalog import PEERS
from benchmarks.work import Work


def main() -> None:
    name, step, work_file, output = sys.argv[1:]
    peer, work = PEERS[name], Work.load(Path(work_file))
    if step == "prepare":
        peer.prepare(work)
        return
    result = peer.run(work)
    if result is not None:
        np.save(output, result)
    work.mark_done()


if __name__ == "__main__":
    main()

"""All peers, in the order in which tables show them."""

from __future__ import annotations

from benchmarks.peers import dask_collections, engines, loop, pipelines, products, ray_data, sentences, spark
from benchmarks.peers.peer import Peer

_MODULES = (loop, engines, sentences, pipelines, dask_collections, ray_data, spark, products)
PEERS: dict[str, Peer] = {peer.name: peer for module in _MODULES for peer in module.PEERS}

"""A graph's tasks to the scheduler, each with what pins it to its workers."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import dask
from dask._expr import LLGExpr
from distributed import Client, Future

from daskinfer.graphs.build import Key, TaskGraph


def submit_tasks(client: Client, graph: TaskGraph, priority: int, workers: list[str] | None = None) -> list[Future]:
    """Submit tasks, some of them to no workers but these, and return the futures of what is wanted.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock(get=lambda expression, keys, sync: keys)
    >>> submit_tasks(client, TaskGraph(tasks={}, wanted=(("demo", "read", 5),), resources={}), priority=0)
    [('demo', 'read', 5)]
    """
    pins: dict[str, Any] = {"resources": partial(_look_up, graph.resources), "priority": priority}
    if workers is not None:
        pins |= {"workers": workers, "allow_other_workers": False}
    with dask.annotate(**pins):
        futures: list[Future] = client.get(make_expression(graph), list(graph.wanted), sync=False)
    return futures


def make_expression(graph: TaskGraph) -> LLGExpr:
    """Return the tasks as Dask sends them; else it would hash every argument of every task for a name.

    Examples
    --------
    >>> graph = TaskGraph(tasks={}, wanted=(), resources={})
    >>> make_expression(graph)._name == make_expression(graph)._name
    False
    """
    return LLGExpr(graph.tasks, _determ_token=uuid4().hex)


def _look_up(resources: dict[Key, dict[str, float]], key: Key) -> dict[str, float]:
    return resources[key]

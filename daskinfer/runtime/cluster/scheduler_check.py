"""Whether there is a Dask scheduler at an address, found out in a bounded time.

Dask's own client waits without end for whoever accepts its connection and says nothing.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from distributed.core import rpc
from distributed.security import Security

from daskinfer.errors import JobFailed, RecipeError
from daskinfer.knobs import ANSWER_SECONDS


def confirm_scheduler(address: str) -> None:
    """Refuse an address at which no Dask scheduler answers, within ten seconds.

    Raises
    ------
    RecipeError
        It is no address, or one that Dask's settings do not fit.
    JobFailed
        Nobody answers there, or somebody else does.

    Examples
    --------
    >>> confirm_scheduler("nowhere://10.0.0.7:8786")
    Traceback (most recent call last):
        ...
    daskinfer.errors.RecipeError: cluster.address: nowhere://10.0.0.7:8786 is not a usable address: ...
    """
    try:
        identity = _ask_in_time(address)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"cluster.address: {address} is not a usable address: {error}",
            hint="Write it as tcp://HOST:PORT or tls://HOST:PORT; for tls Dask's configuration (distributed.comm.tls) must "
            "name the files of the certificate.",
        ) from error
    except TimeoutError as error:
        raise JobFailed(
            f"no Dask scheduler answers at {address} within {ANSWER_SECONDS.get():.0f} s",
            hint="Start it, or correct cluster.address in the recipe: host, port, and tcp or tls.",
        ) from error
    except OSError as error:
        raise JobFailed(
            f"no Dask scheduler answers at {address}: {error}",
            hint="Start it, or correct cluster.address in the recipe: host, port, and tcp or tls.",
        ) from error
    except Exception as error:
        # Whatever its words are, they are not Dask's.
        raise JobFailed(
            f"what answers at {address} is no Dask scheduler ({type(error).__name__})",
            hint="Correct cluster.address in the recipe: it wants the scheduler's own port, not its dashboard's.",
        ) from error
    if identity.get("type") != "Scheduler" and "workers" not in identity:
        raise JobFailed(
            f"what answers at {address} is a Dask {str(identity.get('type', 'process')).lower()}, not a scheduler",
            hint="Correct cluster.address in the recipe: it wants the scheduler's address.",
        )


def _ask_in_time(address: str) -> dict[str, Any]:
    """Return what a process says of itself; in a thread of its own, as this one may have an event loop already."""
    answer: Future[dict[str, Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(asyncio.run(asyncio.wait_for(_ask(address), ANSWER_SECONDS.get())))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            answer.set_exception(error)

    # Nobody waits for a name server that does not answer.
    threading.Thread(target=ask, name="daskinfer-contact", daemon=True).start()
    return answer.result(ANSWER_SECONDS.get() + 1)


async def _ask(address: str) -> dict[str, Any]:
    arguments = Security().get_connection_args("client")
    async with rpc(address, connection_args=arguments, timeout=ANSWER_SECONDS.get(), deserialize=False) as remote:
        identity: dict[str, Any] = await remote.identity()
    return identity

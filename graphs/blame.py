"""Where an error happened, carried by the error itself from worker to driver."""

from __future__ import annotations

from contextlib import suppress

_PLACE = "daskinfer_place"


def note_place(error: BaseException, stage: int, worker: str) -> None:
    """Let an error say in which stage, on which worker it was raised.

    Examples
    --------
    >>> error = ValueError("no such row")
    >>> note_place(error, stage=2, worker="tcp://10.0.0.7:8786")
    >>> find_place(error)
    (2, 'tcp://10.0.0.7:8786')
    """
    with suppress(AttributeError, TypeError):  # it takes no attributes
        setattr(error, _PLACE, (stage, worker))


def find_place(error: BaseException) -> tuple[int | None, str]:
    """Return what an error says of its stage and worker; (None, "") for one that came otherwise.

    Examples
    --------
    >>> find_place(ValueError("no such row"))
    (None, '')
    """
    place: tuple[int | None, str] = getattr(error, _PLACE, (None, ""))
    return place

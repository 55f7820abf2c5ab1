"""Stores: whether one is safe to use."""

from __future__ import annotations

from daskinfer.spec.registry.storecheck import StoreReport
from daskinfer.storage.objects.store_check import examine


def examine_store(url: str) -> StoreReport:
    """Try everything that daskinfer needs of a store, and say what it does not do.

    Parameters
    ----------
    url
        A folder on it, or where one could be made; what is written there is removed.

    Raises
    ------
    StorageError
        Nothing can be written there, or daskinfer knows no safe way to.

    Examples
    --------
    >>> report = examine_store("work")
    >>> report.safe, report.checks[0].name, report.checks[0].detail
    (True, 'exclusive create', 'an object that is there is not replaced')
    """
    return examine(url)

"""Everything shared, on every kind of store, while calls go wrong."""

from __future__ import annotations

import pytest

from daskinfer.testing.campaigns import campaign_size
from daskinfer.testing.faultyfs import FaultSchedule
from daskinfer.testing.storefaults import RATES, FaultContract


class TestFaults(FaultContract):
    @pytest.fixture
    def store(self, any_store: str) -> str:
        return any_store

    @pytest.fixture(params=range(campaign_size(1, 20)))
    def schedule(self, request: pytest.FixtureRequest) -> FaultSchedule:
        return FaultSchedule(request.param, RATES)

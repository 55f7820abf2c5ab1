"""Everything shared, on every kind of store, while calls go wrong."""

from __future__ import annotations

import pytest

from daskinfer.testing.contracts.storefaults import RATES, FaultContract
from daskinfer.testing.faults.faulty_filesystem import FaultSchedule
from daskinfer.testing.stress.campaigns import campaign_size


class TestFaults(FaultContract):
    @pytest.fixture
    def store(self, any_store: str) -> str:
        return any_store

    @pytest.fixture(params=range(campaign_size(1, 20)))
    def schedule(self, request: pytest.FixtureRequest) -> FaultSchedule:
        return FaultSchedule(request.param, RATES)

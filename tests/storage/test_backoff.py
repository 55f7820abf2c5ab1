from __future__ import annotations

import errno
import threading
import time

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from daskinfer.errors import NotAllowed, StorageError, StorageRefused
from daskinfer.storage.objects.backoff import is_transient, outlast
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.testing.faults.faulty_filesystem import Fault, answer_503, be_busy, be_full, break_connection, deny

REFUSED = StorageRefused("s3://bucket is away")


def time_out(call: object) -> None:
    raise TimeoutError("read timed out")


def find_nobody(call: object) -> None:
    raise EndpointConnectionError(endpoint_url="http://store:9000")


def know_nobody(call: object) -> None:
    raise NoCredentialsError()


def lose_the_network(call: object) -> None:
    raise OSError(errno.ENETUNREACH, "Network is unreachable")


@pytest.mark.parametrize("fault", [answer_503, be_busy, break_connection, time_out, find_nobody, lose_the_network])
def test_what_may_be_back_in_a_minute_is_a_refusal(fault: Fault) -> None:
    with pytest.raises(StorageRefused), explain_errors("s3://bucket/rows", "read"):
        fault(lambda: None)


@pytest.mark.parametrize(("fault", "kind"), [(be_full, StorageError), (deny, NotAllowed), (know_nobody, StorageError)])
def test_what_no_time_mends_is_none(fault: Fault, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError) as refusal, explain_errors("s3://bucket/rows", "read"):
        fault(lambda: None)
    assert type(refusal.value) is kind


def test_an_address_where_nobody_answers_is_not_tried_again_at_once() -> None:
    assert not is_transient(EndpointConnectionError(endpoint_url="http://store:9000"))


def test_a_call_outlasts_refusals_and_tells_of_the_first() -> None:
    left = [REFUSED, REFUSED]
    told: list[StorageRefused] = []

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    assert outlast(call, 60, told.append) == "done"
    assert told == [REFUSED]


def refuse() -> None:
    raise REFUSED


def test_waiting_ends_with_the_refusal() -> None:
    with pytest.raises(StorageRefused):
        outlast(refuse, 0.5)


def test_waiting_ends_when_it_is_told_to() -> None:
    stopping = threading.Event()
    threading.Timer(0.2, stopping.set).start()
    began = time.monotonic()
    with pytest.raises(StorageRefused):
        outlast(refuse, 3600, stopping=stopping)
    assert time.monotonic() - began < 3000


def test_what_is_no_refusal_is_raised_at_once() -> None:
    def call() -> None:
        calls.append(1)
        raise NotAllowed("no")

    calls: list[int] = []
    with pytest.raises(NotAllowed):
        outlast(call, 3600)
    assert calls == [1]

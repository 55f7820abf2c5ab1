from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daskinfer.planning.microbatches import pack_microbatches


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 4096))
def test_every_row_travels_once_and_none_but_a_lone_row_exceeds_the_limit(lengths: list[int], tokens: int) -> None:
    packed = pack_microbatches(lengths, tokens)
    assert sorted(row for microbatch in packed for row in microbatch.rows) == list(range(len(lengths)))
    for microbatch in packed:
        assert microbatch.length == max(lengths[row] for row in microbatch.rows)
        assert microbatch.tokens <= tokens or len(microbatch.rows) == 1


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(300, 4096))
def test_microbatches_are_sorted_and_full(lengths: list[int], tokens: int) -> None:
    packed = pack_microbatches(lengths, tokens)
    assert [microbatch.length for microbatch in packed] == sorted(
        (microbatch.length for microbatch in packed), reverse=True
    )
    for microbatch in packed[:-1]:
        assert (len(microbatch.rows) + 1) * microbatch.length > tokens


def test_equal_lengths_keep_their_order() -> None:
    assert pack_microbatches([3, 5, 3, 5], 10)[0].rows == (1, 3)
    assert pack_microbatches([3, 5, 3, 5], 10)[1].rows == (0, 2)


def test_no_rows_no_microbatches() -> None:
    assert pack_microbatches([], 128) == ()

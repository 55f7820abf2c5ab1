from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from daskinfer.planning.microbatches import OVERHEAD_TOKENS, pack_microbatches
from daskinfer.spec.outline import Sharing


def cost(lengths: list[int], cuts: tuple[int, ...]) -> int:
    falling = sorted(lengths, reverse=True)
    return sum((end - start) * falling[start] + OVERHEAD_TOKENS for start, end in itertools.pairwise(cuts))


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 4096))
def test_every_row_travels_once_and_none_but_a_lone_row_exceeds_the_limit(lengths: list[int], tokens: int) -> None:
    packed = pack_microbatches(lengths, tokens)
    assert sorted(row for microbatch in packed for row in microbatch.rows) == list(range(len(lengths)))
    for microbatch in packed:
        assert microbatch.length == max(lengths[row] for row in microbatch.rows)
        assert microbatch.tokens <= tokens or len(microbatch.rows) == 1
    lengths_packed = [microbatch.length for microbatch in packed]
    assert lengths_packed == sorted(lengths_packed, reverse=True)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(60, 400))
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths: list[int], tokens: int) -> None:
    packed = pack_microbatches(lengths, tokens)
    falling = sorted(lengths, reverse=True)
    every = [
        (0, *inner, len(lengths))
        for count in range(len(lengths))
        for inner in itertools.combinations(range(1, len(lengths)), count)
    ]
    fitting = [
        cuts
        for cuts in every
        if all((end - start) * falling[start] <= tokens for start, end in itertools.pairwise(cuts))
    ]
    found = (0, *itertools.accumulate(len(microbatch.rows) for microbatch in packed))
    assert cost(lengths, found) == min(cost(lengths, cuts) for cuts in fitting)


def test_a_row_of_another_length_is_not_padded_to_far_more_than_a_microbatch_costs() -> None:
    packed = pack_microbatches([100, 10, 10, 10], 4096)
    assert [(microbatch.rows, microbatch.length) for microbatch in packed] == [((0,), 100), ((1, 2, 3), 10)]


def test_equal_lengths_keep_their_order() -> None:
    assert pack_microbatches([3, 5, 3, 5], 10)[0].rows == (1, 3)
    assert pack_microbatches([3, 5, 3, 5], 10)[1].rows == (0, 2)


def test_no_rows_no_microbatches() -> None:
    assert pack_microbatches([], 128) == ()


@given(
    st.lists(st.integers(1, 40), max_size=60),
    st.integers(1, 256),
    st.sampled_from(["any", "same length", "none"]),
    st.sampled_from([0, 9, 20]),
)
def test_rows_share_a_microbatch_only_where_they_may(lengths: list[int], tokens: int, rows: str, beyond: int) -> None:
    sharing = Sharing.model_validate({"rows": rows, "beyond": beyond})
    packed = pack_microbatches(lengths, tokens, sharing)
    assert sorted(row for microbatch in packed for row in microbatch.rows) == list(range(len(lengths)))
    for microbatch in packed:
        mine = [lengths[row] for row in microbatch.rows]
        assert microbatch.length == max(mine)
        assert microbatch.tokens <= tokens or len(mine) == 1
        assert (min(mine) > beyond) == (max(mine) > beyond)
        if max(mine) > beyond:
            assert rows != "same length" or len(set(mine)) == 1
            assert rows != "none" or len(mine) == 1


def test_rows_that_share_freely_are_packed_as_ever() -> None:
    lengths = [31, 4, 4, 9, 17, 9, 2, 31]
    assert pack_microbatches(lengths, 64, Sharing(reset=True)) == pack_microbatches(lengths, 64)

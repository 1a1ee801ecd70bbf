"""When a consumer without records is stalled, and when there simply are no records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faststream_concurrent_kafka._runtime.lasting import Lasting
from faststream_concurrent_kafka._subscriber.stalls import StallWatch
from faststream_concurrent_kafka._upstream.consumers import FetchState


LIMIT_SEC = 60.0


def sampled(*states, step_sec=10.0, limit_sec=LIMIT_SEC, busy=()):
    """Take samples of one partition every few seconds; return what is stalled after each sample."""
    watch = StallWatch[str](limit_sec)
    stalled = []
    for number, state in enumerate(states):
        watch.sample({} if state is None else {"p": state}, number * step_sec, is_busy=number in busy)
        stalled.append([reason for _, _, reason in watch.stalled(number * step_sec)])
    return stalled


def test_a_lag_that_does_not_shrink_is_a_stall_after_the_limit():
    """Not before the limit, and the reason has the position and the lag."""
    *before, last = sampled(*(FetchState(5, 9, answered) for answered in range(7)))
    assert not any(before)
    assert last == ["it stands at 5, 4 before the end"]


def test_a_position_that_moves_is_none():
    """However large its lag is."""
    assert not any(sampled(*(FetchState(each, 10**9, 0) for each in range(20))))


def test_at_the_end_there_is_none_as_long_as_the_broker_says_so():
    """An idle topic is green for ever."""
    assert not any(sampled(*(FetchState(9, 9, answered) for answered in range(50))))


def test_fetches_that_are_not_answered_are_a_stall():
    """A position that was at the end by an old answer may not be at the end any more."""
    *before, last = sampled(*(FetchState(9, 9, 1) for _ in range(7)))
    assert not any(before)
    assert last == ["the broker does not answer its fetches"]


def test_a_position_that_is_never_known_is_a_stall():
    """There is no committed offset, and no reset that finds a position."""
    assert sampled(*(FetchState(None, None, None) for _ in range(7)))[-1] == ["its position is not known"]


def test_who_is_busy_takes_nothing_on_purpose():
    """While all slots are taken no time counts."""
    states = [FetchState(5, 9, 0)] * 14
    stalled = sampled(*states, busy=range(7))
    assert not any(stalled[:12])
    assert stalled[12]


def test_a_paused_or_revoked_partition_is_not_sampled():
    """Its time starts again when it is back."""
    lagging = FetchState(5, 9, 0)
    assert not any(sampled(*[lagging] * 5, None, *[lagging] * 6))


def test_it_is_over_when_a_record_comes():
    """The partition is well at the next sample."""
    stalled = sampled(*[FetchState(5, 9, 0)] * 8, FetchState(6, 9, 0))
    assert stalled[-2]
    assert not stalled[-1]


def test_a_limit_of_zero_finds_nothing():
    """Off is off."""
    assert not any(sampled(*[FetchState(5, 9, 0)] * 100, limit_sec=0))


STATES = st.one_of(
    st.none(),
    st.builds(
        FetchState,
        st.one_of(st.none(), st.integers(0, 2)),
        st.one_of(st.none(), st.integers(0, 2)),
        st.one_of(st.none(), st.integers(0, 1)),
    ),
)


@given(states=st.lists(STATES, max_size=30), busy=st.sets(st.integers(0, 29), max_size=3))
@pytest.mark.parametrize("limit", [1, 3])
def test_it_is_stalled_where_one_state_has_lasted_for_the_limit(states, busy, limit):
    """Compared with the definition, sample by sample."""

    def is_lasting(number, of):
        window = range(number - limit, number + 1)
        if number < limit or any(states[each] is None for each in window) or not busy.isdisjoint(window[1:]):
            return False
        return len({of(states[each]) for each in window}) == 1

    def is_lagging(state):
        return state.position is None or (state.end is not None and state.end > state.position)

    def expected(number):
        unmoved = is_lasting(number, lambda state: state.position)
        lagging = unmoved and all(is_lagging(states[each]) for each in range(number - limit + 1, number + 1))
        return lagging or (unmoved and is_lasting(number, lambda state: state.answered_at))

    stalled = sampled(*states, step_sec=1.0, limit_sec=float(limit), busy=busy)
    assert [bool(each) for each in stalled] == [expected(number) for number in range(len(states))]


def test_what_stays_the_same_for_the_limit_is_lasting():
    """The time counts from the first sample; a changed or missing state begins again."""
    lasting, seen = Lasting[str, int](LIMIT_SEC), []
    states = [{"p": 5, "q": 1}] * 4 + [{"p": 5, "q": 2}] * 3 + [{"q": 2}] + [{"p": 5, "q": 2}] * 7
    for number, state in enumerate(states):
        lasting.sample(state, number * 10.0)
        seen.append(lasting.for_long(number * 10.0))
    assert seen[:6] == [[]] * 6
    assert seen[6] == [("p", 5, 60.0)]
    assert seen[7:10] == [[]] * 3
    assert seen[10] == [("q", 2, 60.0)]
    assert seen[13] == [("q", 2, 90.0)]
    assert seen[14] == [("p", 5, 60.0), ("q", 2, 100.0)]


def test_a_limit_of_zero_finds_nothing_lasting():
    """Off is off."""
    lasting = Lasting[str, int](0)
    lasting.sample({"p": 5}, 0.0)
    assert lasting.for_long(1e9) == []

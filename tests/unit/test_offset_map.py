"""The map of the offsets that have finished above a committed one, against sets of offsets (I15)."""

import base64
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from faststream_concurrent_kafka._partition.offset_map import MAX_BYTES, OffsetMap, rebased


STAMP = 1_700_000_000_000


def map_of(base, finished, *, timestamp=STAMP):
    """Return the map of these offsets above `base`."""
    admitted = max(finished, default=base) + 1
    unfinished = [offset for offset in range(base, admitted) if offset not in finished]
    return OffsetMap.of(base, timestamp, admitted=admitted, unfinished=unfinished)


def believed(text, base, offsets):
    """Return which of the offsets a restart does not handle again, if it begins with the record at `base`."""
    read = OffsetMap.parse(text, base)
    assert not read.claim(base, STAMP)
    return {offset for offset in offsets if read.claim(offset, STAMP + offset)}


BASES = st.sampled_from([0, 1, 7, 10**6, 2**62])
ABOVE = st.sets(st.integers(1, 300))


@given(base=BASES, above=ABOVE)
def test_what_is_written_is_what_is_read(base, above):
    """Every finished offset, and no other."""
    finished = {base + each for each in above}
    text = map_of(base, finished).dump()
    assert bool(text) == bool(finished)
    if text:
        assert believed(text, base, range(base + 1, base + 400)) == finished


@given(base=BASES, above=ABOVE, beyond=st.sets(st.integers(-5, 400)), admitted=st.integers(301, 350))
def test_what_has_finished_beyond_what_was_admitted_is_added(base, above, beyond, admitted):
    """The next map keeps the rest of an earlier one."""
    finished = {base + each for each in above}
    unfinished = [offset for offset in range(base, base + admitted) if offset not in finished]
    made = OffsetMap.of(
        base,
        STAMP,
        admitted=base + admitted,
        unfinished=unfinished,
        beyond=[base + each for each in beyond if each >= admitted or each < 0],
    )
    expected = finished | {base + each for each in beyond if each >= admitted}
    text = made.dump()
    assert (believed(text, base, range(base + 1, base + 500)) if text else set()) == expected
    assert set(made.finished_from(base + 100)) == {offset for offset in expected if offset >= base + 100}
    assert made.ends_before(max(expected, default=base) + 8)
    assert not expected or not made.ends_before(max(expected))


@given(
    count=st.integers(1, 60_000),
    unfinished_every=st.integers(1, 50),
    noise=st.randoms(use_true_random=False),
    most=st.sampled_from([0, 20, 40, 100, 1_000, MAX_BYTES]),
)
@example(count=60_000, unfinished_every=2, noise=None, most=MAX_BYTES)
def test_what_is_too_long_is_cut_off_at_its_far_end(count, unfinished_every, noise, most):
    """The metadata fits, and has the lowest finished offsets."""
    unfinished = {0}
    if noise is not None:
        unfinished.update(each for each in range(1, count, unfinished_every) if noise.random() < 0.5)
    made = OffsetMap.of(0, STAMP, admitted=count, unfinished=sorted(unfinished))
    text = made.dump(most)
    assert len(text) <= most
    whole = made.dump(10**9)
    if not text:
        return
    read = OffsetMap.parse(text, 0)
    kept = list(read.finished_from(0))
    truth = [offset for offset in range(count) if offset not in unfinished]
    assert kept == truth[: len(kept)]
    assert len(kept) == len(truth) or len(whole) > most


@given(base=BASES, earlier=ABOVE, gap=st.integers(-400, 400), admitted=st.integers(1, 600))
def test_what_an_earlier_map_knows_is_added_from_there_on(base, earlier, gap, admitted):
    """The bits of the earlier map are shifted by the distance, whichever of the two begins first."""
    known = map_of(base + 500, {base + 500 + each for each in earlier})
    mine = base + 500 + gap
    made = OffsetMap.of(mine, STAMP, admitted=mine + admitted, unfinished=[mine], earlier=known)
    expected = set(range(mine + 1, mine + admitted))
    expected |= {base + 500 + each for each in earlier if base + 500 + each >= mine + admitted}
    assert set(made.finished_from(0)) == expected


def test_an_earlier_map_that_lies_far_away_costs_nothing():
    """Two maps that are 10**15 offsets apart are not merged."""
    known = OffsetMap.of(10**15, STAMP, admitted=10**15 + 100, unfinished=[10**15])
    made = OffsetMap.of(0, STAMP, admitted=10, unfinished=[0], earlier=known)
    assert set(made.finished_from(0)) == set(range(1, 10))


@given(base=BASES, above=ABOVE, later=st.integers(0, 320))
def test_a_map_may_be_told_again_with_a_later_offset(base, above, later):
    """The map is still valid after the offset has moved on."""
    finished = {base + each for each in above}
    text = map_of(base, finished).dump()
    if text:
        again = rebased(text, base + later, STAMP + 1)
        read = OffsetMap.parse(again, base + later)
        assert read.claim(base + later, STAMP + 1) == (base + later in finished)
        assert set(read.finished_from(0)) == {offset for offset in finished if offset >= base + later}


def test_a_later_or_different_record_ends_the_belief():
    """A record that is newer than all delivered ones, or differs from its sample, ends the use of the map."""
    delivered = [(offset, STAMP + offset) for offset in range(10, 20)]
    made = OffsetMap.of(10, STAMP + 10, admitted=20, unfinished=[10], delivered=delivered, newest=STAMP + 19)
    for wrong in (STAMP + 20, STAMP - 1, STAMP + 14, None):
        read = OffsetMap.parse(made.dump(), 10)
        assert [read.claim(offset, STAMP + offset) for offset in range(10, 15)] == [False, True, True, True, True]
        assert not read.claim(15, wrong)
        assert not any(read.claim(offset, STAMP + offset) for offset in range(16, 20))
        assert read.ends_before(0)


@pytest.mark.parametrize(
    ("count", "unfinished_every", "most_bytes"), [(10_000, 10_000, 100), (10_000, 100, 300), (100_000, 100_000, 300)]
)
def test_the_usual_sizes(count, unfinished_every, most_bytes):
    """Behind one stuck record, any number of finished ones takes a few dozen bytes."""
    made = OffsetMap.of(0, STAMP, admitted=count, unfinished=range(0, count, unfinished_every))
    assert 0 < len(made.dump()) < most_bytes
    assert len(made.dump().encode()) == len(made.dump())


def test_gaps_of_any_size_cost_neither_time_nor_memory():
    """Compaction and transactions leave gaps; the map ends at one that is too large."""
    made = OffsetMap.of(10, STAMP, admitted=10**15, unfinished=[10, 10**15 - 1], beyond=[10**16])
    text = made.dump()
    assert len(text) <= MAX_BYTES
    read = OffsetMap.parse(text, 10)
    assert not read.claim(10, STAMP)
    assert read.claim(1_000, STAMP)
    assert not read.claim(10**15 - 2, STAMP)


@pytest.mark.parametrize(("offset", "timestamp"), [(9, STAMP), (11, STAMP), (10, STAMP + 1), (10, None)])
def test_nothing_is_believed_if_the_first_record_is_another(offset, timestamp):
    """The topic was recreated, or truncated at its beginning."""
    read = OffsetMap.parse(map_of(10, {11, 12, 13}).dump(), 10)
    assert not read.claim(offset, timestamp)
    assert not read.claim(12, STAMP)
    assert read.ends_before(0)


def damaged():
    """Return metadata that can't be parsed."""
    made = OffsetMap.of(10, STAMP, admitted=41, unfinished=[10, 13], delivered=[(11, 1), (40, 2)], newest=STAMP)
    good = made.dump()
    magic, offset, stamp, newest, first, packed = good.split(":")

    def packing(content):
        return f"{magic}:{offset}:{stamp}:{newest}:{first}:{base64.b64encode(content).decode()}"

    content = zlib.decompress(base64.b64decode(packed))
    return {
        "foreign": "consumed by another tool",
        "json": '{"offset": 10}',
        "binary": "\x00\x01\ud800",
        "other version": good.replace(magic, "fsck9"),
        "of 0.1.0's first weeks": f"fsck1:10:{stamp}:{packed}",
        "stale": map_of(11, {12}).dump(),
        "cut off": good[:-8],
        "cut off in the middle": good[: len(good) // 2],
        "one bit": good.replace(packed, packed[:-6] + ("A" if packed[-6] != "A" else "B") + packed[-5:]),
        "more than its end": f"{good}:1",
        "appended": packing(base64.b64decode(packed) + b"1"),
        "no numbers": good.replace(":10:", ":ten:", 1),
        "no time": f"{magic}:{offset}::{newest}:{first}:{packed}",
        "no beginning": f"{magic}:{offset}:{stamp}:{newest}::{packed}",
        "not base64": f"{magic}:{offset}:{stamp}:{newest}:{first}:***",
        "no zlib": packing(b"bits"),
        "a bomb": packing(zlib.compress(b"\0\0" + b"\xff" * 10**7, 9)),
        "too many samples": packing(zlib.compress(b"\xff\xff" + b"\x01" * 10**5)),
        "half a sample": packing(zlib.compress(content[:4])),
        "an offset without end": packing(zlib.compress(b"\0\1" + b"\xff" * 10**5)),
        "nothing packed": packing(zlib.compress(b"")),
        "magic alone": magic,
        "empty fields": f"{magic}:::::",
    }


@pytest.mark.parametrize("name", damaged())
def test_foreign_damaged_and_stale_metadata_is_refused_with_a_reason(name):
    """Records are handled again instead."""
    with pytest.raises(ValueError, match="it "):
        OffsetMap.parse(damaged()[name], 10)


@given(text=st.text(max_size=60), cut=st.integers(0, 60), base=st.integers(0, 100))
def test_whatever_else_is_in_the_metadata_is_refused_too(text, cut, base):
    """`parse` raises ValueError or returns a map, for any text."""
    good = map_of(base, {base + 1, base + 9}).dump()
    mangled = good[:cut] + text + good[cut + len(text) :]
    if mangled != good:
        try:
            read = OffsetMap.parse(mangled, base)
        except ValueError:
            return
        # The time stamp is compared with that of the record only later.
        assert mangled.split(":")[2] != str(STAMP) or not read.claim(base, STAMP)

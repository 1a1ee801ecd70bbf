"""Random worlds, each a seed's: whatever goes wrong in them, no promise is broken."""

import pytest

from tests.simulation.draws import make_plan
from tests.simulation.run import play_all, simulate, what_is_kept


CHUNK = 100
CHUNKS = 20


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_promise_is_broken(chunk):
    """In none of so many worlds; the first that breaks one says how to replay it."""
    failed = play_all(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    if failed is not None:
        pytest.fail(failed.report(), pytrace=False)


@pytest.mark.parametrize("seed", [3, 144, 267, 695])
def test_a_seed_replays_itself(seed):
    """The same seed is the same world, event by event, whatever was played before it."""
    first = simulate(seed)
    simulate(seed + 1)
    assert simulate(seed).story() == first.story()
    assert make_plan(seed) == make_plan(seed)


def test_a_world_leaves_nothing_in_memory():
    """Neither handlers nor ledgers nor records outlive their world."""
    before = len(what_is_kept())
    assert play_all(range(40)) is None
    assert len(what_is_kept()) == before


def test_worlds_differ():
    """A range of seeds has everything in it: crashes, rebalances, stops, refusals, dead letters, halts, adoption."""
    stories = "\n".join(simulate(seed).story() for seed in range(80))
    for what in ("crashes", "revoking", "stopping", "gets an error", "is a dead letter", "has halted", "is cancelled"):
        assert what in stories

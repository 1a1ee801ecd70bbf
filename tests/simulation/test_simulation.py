"""Random worlds, each drawn from a seed: no promise is broken, whatever fault happens."""

from typing import get_args

import pytest

from tests.simulation.draws import make_plan
from tests.simulation.run import play_all, simulate, what_is_kept
from tests.simulation.twists import Twist


CHUNK = 100
CHUNKS = 20


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_promise_is_broken(chunk):
    """No promise is broken in so many worlds; the first violation says how to replay it."""
    failed = play_all(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    if failed is not None:
        pytest.fail(failed.report(), pytrace=False)


@pytest.mark.parametrize("twist", ["another tail", "thrown out"])
def test_no_promise_is_broken_by_what_is_played_alone(twist):
    """Twists that plans do not draw yet: other records at the offsets of finished ones, evicted members."""
    failed = play_all(range(60), twist)
    if failed is not None:
        pytest.fail(failed.report(), pytrace=False)


@pytest.mark.parametrize(
    ("seed", "twist"), [(3, None), (144, None), (267, None), (695, None), *((8, twist) for twist in get_args(Twist))]
)
def test_a_seed_replays_itself(seed, twist):
    """The same seed gives the same world, event by event, independent of earlier worlds."""
    first = simulate(seed, twist)
    simulate(seed + 1, twist)
    assert simulate(seed, twist).story() == first.story()
    assert make_plan(seed, twist) == make_plan(seed, twist)


def test_a_world_leaves_nothing_in_memory():
    """No handler, ledger or record is in memory after the end of its world."""
    before = len(what_is_kept())
    assert play_all(range(40)) is None
    assert len(what_is_kept()) == before


def test_worlds_differ():
    """A range of seeds has every kind of event: crashes, rebalances, stops, refusals, dead letters, halts, adoption."""
    stories = "\n".join(simulate(seed).story() for seed in range(80))
    for what in ("crashes", "revoking", "stopping", "gets an error", "is a dead letter", "has halted", "is cancelled"):
        assert what in stories


@pytest.mark.parametrize(
    ("twist", "what"),
    [
        ("one refused", "is refused"),
        ("another tail", "has another tail"),
        ("thrown out", "loses its membership"),
        ("pauses", " pauses "),
        ("seeks", " seeks "),
        ("panics", "PanicError"),
    ],
)
def test_twists_bite(twist, what):
    """The events of a twist happen in many of its worlds."""
    stories = [simulate(seed, twist).story() for seed in range(20)]
    assert sum(what in story for story in stories) > len(stories) / 4

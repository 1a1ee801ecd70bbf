"""The errors for an argument that is not FastStream's context."""

import pytest
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
    is_kafka_handler_healthy,
    stop_concurrent_processing,
)
from tests.unit.world import play


WRONG = {"nothing": lambda: None, "a broker": lambda: KafkaBroker(logger=None), "a text": lambda: "context" * 100}
wrong = pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)


@wrong
def test_health_says_so_and_never_raises(make, caplog):
    """It is not healthy, and log and report say why; it is alive, since no restart would mend that."""

    async def scenario(_world):
        assert not is_kafka_handler_healthy(make())
        assert is_kafka_handler_alive(make())
        (problem,) = get_kafka_handler_report(make()).problems
        assert problem.startswith(
            "context must be FastStream's ContextRepo, such as app.context or broker.context, got "
        )
        assert len(problem) < 400
        assert caplog.text.count("context must be FastStream's ContextRepo") == 2

    play(scenario)


@wrong
def test_initialising_and_stopping_refuse_it(make):
    """They raise before they do anything."""

    async def scenario(world):
        for function in (initialize_concurrent_processing, stop_concurrent_processing):
            with pytest.raises(TypeError, match="context must be FastStream's ContextRepo"):
                await function(make())
        assert world.handler.is_running

    play(scenario)

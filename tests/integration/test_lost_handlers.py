"""Handlers whose partition went to another member: they finish, or are cancelled, as the setting says."""

import asyncio

import pytest
from typing_extensions import override

from testkit.brokers import wait_until
from tests.integration.helpers import PATIENCE_SEC, serving
from tests.integration.rebalancing import LEAVES_IT, TAKES_IT, Held, visit


class Counted(Held):
    """Notes which handlers were cancelled."""

    def __init__(self, *held):
        super().__init__(*held)
        self.cancelled = []

    @override
    async def handle(self, number: int):
        """Handle a record, and note its cancellation."""
        try:
            await super().handle(number)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise


@pytest.mark.parametrize("visitor", [TAKES_IT, LEAVES_IT])
@pytest.mark.parametrize("cancels", [True, False])
async def test_only_the_handlers_of_a_lost_partition_are_cancelled(cluster, new_broker, new_topic, cancels, visitor):
    """Only with that setting; the cancelled record is run again when its partition is back, a finished one is not."""
    topic, held = await new_topic(), Counted(1)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(3))
    settings = {"rebalance_flush_timeout_sec": 0, "commit_batch_timeout_sec": 0.05, "cancel_lost_handlers": cancels}
    is_lost = cancels and visitor == TAKES_IT
    async with serving(broker, **settings):
        await held.until_started(0, 1, 2)
        await cluster.until_committed(topic, {0: 1})
        async with visit(cluster, topic, held.rebalances, visitor):
            if is_lost:
                await wait_until(lambda: held.cancelled == [1], PATIENCE_SEC, "it is cancelled")
        if is_lost:
            await wait_until(lambda: held.runs[1] == 2, PATIENCE_SEC, "it is run again")
        held.let_go()
        await cluster.until_committed(topic, {0: 3})
    assert held.cancelled == ([1] if is_lost else [])
    assert held.runs == {0: 1, 1: 2 if is_lost else 1, 2: 1}

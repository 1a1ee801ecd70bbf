"""Mutants of order, slots, windows, failures and stops."""

import asyncio
from typing import Any

import pytest

from faststream_concurrent_kafka._commit.loop import CommitLoop
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._record import ordering
from faststream_concurrent_kafka._record.failure import Failures
from faststream_concurrent_kafka._record.in_flight import InFlight
from faststream_concurrent_kafka._record.record import Outcome, Record
from faststream_concurrent_kafka._record.runner import Runner
from faststream_concurrent_kafka._record.slots import Share, Slots
from faststream_concurrent_kafka._record.time_limit import TimeLimits
from faststream_concurrent_kafka._runtime import turns
from faststream_concurrent_kafka._subscriber.attachment import SubscriberAttachment
from faststream_concurrent_kafka._subscriber.window import Window
from faststream_concurrent_kafka._upstream.pauses import Pauses
from faststream_concurrent_kafka.batch_committer import KafkaBatchCommitter
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from tests.simulation.mutant import mutant


# -- order, slots, window ------------------------------------------------------------------------------------------


@mutant("order", "no overlap of a key")
def order_never_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ordering.OrderQueues, "enter", lambda _self, _entry, _keys: True)
    patch.setattr(ordering.OrderQueues, "leave", lambda _self, _keys: [])


@mutant("order", "no overlap of a key")
def a_retry_leaves_its_order(patch: pytest.MonkeyPatch) -> None:
    wait = Failures._wait

    async def leave_and_wait(self: Any, record: Any, delay_sec: float) -> None:
        handler = KafkaConcurrentHandler.running()
        if handler is not None:
            taken, record.order_keys = record.order_keys, ()
            for successor in handler.records._queues.leave(taken):
                handler.runner._start(successor)
        await wait(self, record, delay_sec)

    patch.setattr(Failures, "_wait", leave_and_wait)


@mutant("everything is committed in the end")
def order_is_never_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ordering.OrderQueues, "leave", lambda _self, _keys: [])


@mutant("slots")
def there_is_one_slot_more(patch: pytest.MonkeyPatch) -> None:
    init = Slots.__init__
    patch.setattr(Slots, "__init__", lambda self, limit, most: init(self, limit + 1 if limit else 0, most))


@mutant("everything is committed in the end", "no acknowledged record is remembered", "no record is left by a stop")
def slots_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Share, "give_back", lambda _self, _record: None)


@mutant("window")
def the_window_never_pauses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionLedger, "window", property(lambda _self: 0))


@mutant("everything is committed in the end")
def a_paused_partition_is_never_resumed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Window, "acknowledged", lambda _self, _key, _ledger: None)


@mutant("a pause of the user's holds", "halted", twist="pauses")
def any_resume_ends_all_pauses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pauses, "remove", lambda self, _reason, *partitions: self._resume(*partitions))


@mutant("the event loop gets its turn", twist="bursts")
def the_event_loop_gets_no_turn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(turns, "_MOST_PER_TURN", 10**6)


# -- failures and stops --------------------------------------------------------------------------------------------


@mutant("committed <= first unfinished", "order")
def failures_count_as_done(patch: pytest.MonkeyPatch) -> None:
    async def deal_with(_self: Any, _record: Any, _outcome: Any, _error: Any) -> Outcome:
        return Outcome.DONE

    patch.setattr(Failures, "deal_with", deal_with)


@mutant("committed <= first unfinished")
def cancelled_records_count_as_done(patch: pytest.MonkeyPatch) -> None:
    settle = Runner._settle
    patch.setattr(Runner, "_settle", lambda self, record, _outcome: settle(self, record, Outcome.DONE))


@mutant("attempts", "handled once", "everything is committed in the end")
def attempts_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    begin = Record.begin

    def begin_first(self: Any) -> None:
        begin(self)
        self.attempt = 1

    patch.setattr(Record, "begin", begin_first)


@mutant("time limit")
def there_is_no_time_limit(patch: pytest.MonkeyPatch) -> None:
    async def run(_self: Any, handle: Any, _limit_sec: float, _record: object) -> Any:
        return await handle()

    patch.setattr(TimeLimits, "run", run)


@mutant("halted", "order")
def a_halted_partition_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionLedger, "stop_at", lambda *_: None)
    patch.setattr(SubscriberAttachment, "halt", lambda _self, _record, *_more: None)


@mutant(
    "no record is left by a stop",
    "committed by a clean stop",
    "no task is left",
    "no record begins in a revoked partition",
)
def stop_neither_drains_nor_cancels(patch: pytest.MonkeyPatch) -> None:
    async def drain(_self: Any, _belongs: Any, **_options: Any) -> bool:
        return True

    async def cancel(_self: Any, _belongs: Any) -> list[Any]:
        return []

    patch.setattr(InFlight, "drain", drain)
    patch.setattr(Runner, "cancel", cancel)


@mutant("no task is left")
def the_observer_outlives_a_stop(patch: pytest.MonkeyPatch) -> None:
    stop = KafkaConcurrentHandler._stop

    async def stop_(self: Any) -> None:
        self._observer = asyncio.ensure_future(asyncio.shield(self._observer))
        await stop(self)

    patch.setattr(KafkaConcurrentHandler, "_stop", stop_)


@mutant("commits go forward", "committed before partitions go", "no task is left")
def commits_are_not_held_over_a_rebalance(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_arguments: Any, **_options: Any) -> None:
        pass

    patch.setattr(KafkaBatchCommitter, "hold", nothing)
    patch.setattr(CommitLoop, "_cancel", nothing)

"""The measurements and their targets: data only, this runs nothing."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from benchmarks.keys import KEY_COUNT, ZIPF_EXPONENT, Keys, hottest
from benchmarks.runner import Results
from benchmarks.trial import MAX_WORKERS, RETRY_BACKOFF_SEC, System, Trial


# The largest ratio that counts as flat.
FLAT_COST = 1.25
FLAT_MEMORY = 1.05
# The least share of the throughput that must remain with order by key, and with occasional failures.
ORDER_COST = RETRY_COST = 0.85
IN_FLIGHT = (10, 100, 1000, 5000)
PARTITIONS = (1, 8, 64, 256)
NAMES: dict[System, str] = {
    "sequential": "FastStream, sequential",
    "max_workers": f"FastStream, max_workers={MAX_WORKERS}",
    "concurrent": "this library",
}
_TEN_MS = "10 ms, 1,000 at once"
UNTOUCHED, TUNED = "as it is", "tuned"
_BOTH = ((False, UNTOUCHED), (True, TUNED))


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A trial, its label in the table, and the trial that it is compared with."""

    cells: tuple[str, ...]
    trial: Trial
    against: Trial | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure to reach, judged by `values`: one for each round, `by_cpu` the same by CPU time."""

    what: str
    wanted: float
    values: Callable[[Results], Sequence[float]]
    by_cpu: Callable[[Results], Sequence[float]] | None = None
    at_most: bool = False

    @classmethod
    def ratio(cls, what: str, wanted: float, trial: Trial, to: Trial) -> "Target":
        """At least `wanted` times the records per second of another trial."""
        return cls(
            what=what,
            wanted=wanted,
            values=lambda results: results.wall_ratio(trial, to),
            by_cpu=lambda results: results.cpu_ratio(trial, to),
        )

    @classmethod
    def flat(cls, what: str, trial: Trial, to: Trial) -> "Target":
        """At most `FLAT_COST` times the CPU time per record of another trial."""
        return cls(what=what, wanted=FLAT_COST, values=lambda results: results.cpu_ratio(to, trial), at_most=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Measurements that are made in turn, because they are compared with one another."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    targets: tuple[Target, ...]
    note: str = ""
    """A remark below the table."""
    extra: tuple[Trial, ...] = ()
    """Trials that only a target needs, without a row in the table."""
    most_rounds: int | None = None
    """For trials that take minutes and vary little."""

    @property
    def trials(self) -> list[Trial]:
        """All trials of the scenario."""
        return [*(row.trial for row in self.rows), *self.extra]


def scenarios(*, quick: bool) -> list[Scenario]:
    """Return all scenarios; `quick` ones are good for seeing that everything works, not for figures."""
    records = 5_000 if quick else 20_000
    stuck = _stuck(10_000 if quick else 100_000)
    some = [
        _throughput(records),
        _logged(records),
        stuck,
        _in_flight(records),
        _partitions(records),
        _key_order(records),
        _zipf(records),
        _partition_order(records),
        _retries(records),
    ]
    return some if quick else [*some, _memory(1_000_000)]


def _trial(system: System, records: int, *, sleep_ms: int = 0, limit: int = 100, gc_tuned: bool = False) -> Trial:
    if sleep_ms and system != "concurrent":
        # As many records as the sleep allows in two seconds; all of them would take minutes.
        at_once = MAX_WORKERS if system == "max_workers" else 1
        records = min(records, 2_000 // sleep_ms * at_once)
    return Trial(system=system, records=records, sleep_ms=sleep_ms, concurrency_limit=limit, gc_tuned=gc_tuned)


def _throughput(records: int) -> Scenario:
    rows: list[Row] = []
    for work, sleep_ms, limit in (("no-op", 0, 100), (_TEN_MS, 10, 1000), ("100 ms, 5,000", 100, 5000)):
        sequential = _trial("sequential", records, sleep_ms=sleep_ms)
        rows.append(Row((work, NAMES["sequential"], UNTOUCHED), sequential))
        systems: tuple[System, ...] = ("sequential", "max_workers", "concurrent")
        for system, (gc_tuned, gc) in itertools.product(systems, _BOTH):
            if system == "sequential" and (sleep_ms or not gc_tuned):
                continue  # a sleep is a sleep; and the untouched one comes first
            trial = _trial(system, records, sleep_ms=sleep_ms, limit=limit, gc_tuned=gc_tuned)
            rows.append(Row((work, NAMES[system], gc), trial, sequential))
    noop, noop_tuned = (_trial("concurrent", records, gc_tuned=tuned) for tuned in (False, True))
    ten, ten_tuned = (_trial("concurrent", records, sleep_ms=10, limit=1000, gc_tuned=tuned) for tuned in (False, True))
    return Scenario(
        name="throughput",
        title="Throughput, FastStream's logger off",
        columns=("handler", "system", "collector"),
        rows=tuple(rows),
        targets=(
            Target.ratio("no-op, to FastStream sequential", 0.8, noop, _trial("sequential", records)),
            Target.ratio(f"no-op, to max_workers={MAX_WORKERS}", 2.2, noop, _trial("max_workers", records)),
            Target.ratio("10 ms x 1,000, to our own no-op, collector tuned", 0.75, ten_tuned, noop_tuned),
            Target.ratio("10 ms x 1,000, to our own no-op, collector as it is", 0.5, ten, noop),
        ),
    )


def _logged(records: int) -> Scenario:
    systems: tuple[System, ...] = ("sequential", "max_workers", "concurrent")
    trials = {system: Trial(system=system, records=records, logged=True) for system in systems}
    sequential = trials["sequential"]
    return Scenario(
        name="logged",
        title="Throughput with FastStream's default logger, to /dev/null; no-op handlers",
        columns=("system",),
        rows=tuple(
            Row((NAMES[name],), trial, None if trial is sequential else sequential) for name, trial in trials.items()
        ),
        targets=(Target.ratio("no-op logged, to FastStream sequential", 0.92, trials["concurrent"], sequential),),
    )


def _stuck(records: int) -> Scenario:
    free, stuck = (
        Trial(records=records, partitions=1, stuck=stuck, max_uncommitted_tasks=2 * records) for stuck in (False, True)
    )
    ledger = Trial(system="ledger", records=records)
    return Scenario(
        name="stuck",
        title=f"One stuck record and {records:,} done behind it, in one partition; no-op handlers",
        columns=("what",),
        rows=(Row(("none stuck",), free), Row(("one stuck",), stuck, free)),
        extra=(ledger,),
        targets=(
            Target.ratio("one stuck record, to none", 0.95, stuck, free),
            Target(
                what="bytes kept per done offset behind it",
                wanted=100,
                values=lambda results: [each.bytes_per_offset for each in results[ledger]],
                at_most=True,
            ),
        ),
    )


def _in_flight(records: int) -> Scenario:
    rows: list[Row] = []
    targets: list[Target] = []
    for gc_tuned, gc in _BOTH:
        trials = [
            Trial(records=records, together=True, concurrency_limit=limit, gc_tuned=gc_tuned) for limit in IN_FLIGHT
        ]
        few, many = trials[0], trials[-1]
        rows += [Row((f"{trial.concurrency_limit:,}", gc), trial, None if trial is few else few) for trial in trials]
        what = f"CPU per record, {IN_FLIGHT[-1]:,} in flight to {IN_FLIGHT[0]}, collector {gc}"
        targets.append(Target.flat(what, many, few))
    return Scenario(
        name="in-flight",
        title="Cost per record by how many are in flight; handlers wait until all of them are",
        columns=("in flight", "collector"),
        rows=tuple(rows),
        targets=tuple(targets),
    )


def _partitions(records: int) -> Scenario:
    rows: list[Row] = []
    for partitions in PARTITIONS:
        sequential = Trial(system="sequential", records=records, partitions=partitions)
        ours = Trial(records=records, partitions=partitions)
        cells = f"{partitions}"
        rows += [Row((cells, NAMES["sequential"]), sequential), Row((cells, NAMES["concurrent"]), ours, sequential)]
    one, most = (Trial(records=records, partitions=partitions) for partitions in (PARTITIONS[0], PARTITIONS[-1]))
    return Scenario(
        name="partitions",
        title="Cost per record by the number of partitions; no-op handlers",
        columns=("partitions", "system"),
        rows=tuple(rows),
        targets=(Target.flat(f"CPU per record, {PARTITIONS[-1]} partitions to {PARTITIONS[0]}", most, one),),
    )


def _key_order(records: int) -> Scenario:
    noop, noop_ordered, ten, ten_ordered = _unordered_and_by_key("uniform", records, records)
    return Scenario(
        name="key-order",
        title=f"Order by key; {KEY_COUNT:,} keys, each as frequent as the others",
        columns=("handler", "order"),
        rows=_side_by_side("key", noop, noop_ordered, ten, ten_ordered),
        targets=(
            Target.ratio("no-op, order by key to none, uniform keys", ORDER_COST, noop_ordered, noop),
            Target.ratio("10 ms x 1,000, order by key to none, uniform keys", ORDER_COST, ten_ordered, ten),
        ),
    )


def _zipf(records: int) -> Scenario:
    few = records // 4
    noop, noop_ordered, ten, ten_ordered = _unordered_and_by_key("zipf", records, few)
    hot = hottest("zipf", few)
    most = few / (hot * ten.sleep_ms / 1000)
    return Scenario(
        name="zipf",
        title=f"Order by key; {KEY_COUNT:,} keys, some hot (Zipf, s = {ZIPF_EXPONENT})",
        note=(
            f"No target: {hot / few:.0%} of the records have the hottest key, and order means that these are handled "
            f"one after the other. With {ten.sleep_ms} ms for each, {few:,} records take at least {hot:,} times that, "
            f"in any system and however many at once: no more than {most:,.0f} records/s."
        ),
        columns=("handler", "order"),
        rows=_side_by_side("key", noop, noop_ordered, ten, ten_ordered),
        targets=(),
    )


def _side_by_side(what: str, noop: Trial, noop_with: Trial, ten: Trial, ten_with: Trial) -> tuple[Row, ...]:
    return (
        Row(("no-op", "none"), noop),
        Row(("no-op", what), noop_with, noop),
        Row((_TEN_MS, "none"), ten),
        Row((_TEN_MS, what), ten_with, ten),
    )


def _unordered_and_by_key(keys: Keys, noops: int, tens: int) -> tuple[Trial, Trial, Trial, Trial]:
    noop = Trial(records=noops, keys=keys)
    ten = Trial(records=tens, keys=keys, sleep_ms=10, concurrency_limit=1000)
    return noop, dataclasses.replace(noop, ordering="key"), ten, dataclasses.replace(ten, ordering="key")


def _partition_order(records: int) -> Scenario:
    sequential = Trial(system="sequential", records=records)
    unordered, ordered = Trial(records=records), Trial(records=records, ordering="partition")
    return Scenario(
        name="partition-order",
        title=f"Order by partition, {ordered.partitions} partitions; no-op handlers",
        columns=("system", "order"),
        rows=(
            Row((NAMES["sequential"], "all records"), sequential),
            Row((NAMES["concurrent"], "none"), unordered, sequential),
            Row((NAMES["concurrent"], "partition"), ordered, sequential),
        ),
        targets=(),
    )


def _retries(records: int) -> Scenario:
    none = Trial(records=records, max_attempts=3)
    # Prime to the number of partitions, so that each has some.
    some = dataclasses.replace(none, fails_every=101)
    ten_none, ten_some = (dataclasses.replace(each, sleep_ms=10, concurrency_limit=1000) for each in (none, some))
    return Scenario(
        name="retries",
        title=f"1 % of the records fail once and are retried after {RETRY_BACKOFF_SEC * 1000:g} ms at most, logger off",
        columns=("handler", "failing"),
        rows=_side_by_side("1 %", none, some, ten_none, ten_some),
        targets=(
            Target.ratio("no-op, 1 % failing once to none", RETRY_COST, some, none),
            Target.ratio("10 ms x 1,000, 1 % failing once to none", RETRY_COST, ten_some, ten_none),
        ),
    )


def _memory(records: int) -> Scenario:
    trial = Trial(records=records, rss_every=records // 10)
    return Scenario(
        name="memory",
        title=f"Memory over {records:,} records; no-op handlers",
        columns=("system",),
        most_rounds=1,
        rows=(Row((NAMES["concurrent"],), trial),),
        targets=(
            Target(
                what=f"memory after {records:,} records to that after {records // 10:,}",
                wanted=FLAT_MEMORY,
                values=lambda results: [each.rss_mb[-1] / each.rss_mb[0] for each in results[trial]],
                at_most=True,
            ),
        ),
    )

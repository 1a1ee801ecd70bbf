"""The benchmarks stay runnable: tiny runs from end to end, and the tables of their figures."""

import itertools
import re

import pytest

from benchmarks import document, plot
from benchmarks.cost import command as cost
from benchmarks.keys import KEY_COUNT, hottest, keys_of
from benchmarks.report import Verdict, verdict
from benchmarks.runner import Results, Runner
from benchmarks.scenarios import Row, Scenario, Target, scenarios
from benchmarks.trial import Measured, Trial


def _measured(rate: float) -> Measured:
    return Measured(records=100, wall_sec=100 / rate, cpu_sec=100 / rate, rss_mb=[50.0])


def test_a_tiny_run_gives_figures_for_every_trial(kafka):
    """Each system handles all its records in its own process, and the tables show them."""
    free, stuck = (Trial(records=300, partitions=2, stuck=stuck, logged=stuck) for stuck in (False, True))
    sequential = Trial(system="sequential", records=300, partitions=2)
    ledger = Trial(system="ledger", records=1_000)
    scenario = Scenario(
        name="tiny",
        title="Tiny",
        columns=("what",),
        rows=(
            Row(("alone",), sequential),
            Row(("free",), free, sequential),
            Row(("stuck",), stuck, free),
        ),
        extra=(ledger,),
        targets=(Target.ratio("to alone", 0.0, free, sequential),),
    )
    with Runner(kafka.bootstrap_servers) as runner:
        results = runner.run(scenario.trials, rounds=1)
    assert all(each.rate > 0 and each.rss_mb for rounds in results.values() for each in rounds)
    assert 0 < results[ledger][0].bytes_per_offset < 1_000
    text = document.body([(scenario, results)])
    assert " met |" in text
    assert text.count("\n| stuck") == 1


def test_order_and_retries_leave_no_record_unhandled(kafka):
    """A trial ends when all its records have: those behind a hot key, and those that had to be retried."""
    trials = [
        Trial(records=300, partitions=2, keys="zipf", ordering="key"),
        Trial(records=200, partitions=2, ordering="partition", max_attempts=3, fails_every=7),
    ]
    said = []
    with Runner(kafka.bootstrap_servers, said.append) as runner:
        results = runner.run(trials, rounds=1)
    assert [(each.records, each.rate > 0) for (each,) in results.values()] == [(300, True), (200, True)]
    assert [line.split("keys: ")[1] for line in said if "loading" in line] == ["zipf", "none"]


def test_keys_are_the_same_in_every_run_and_as_frequent_as_they_say():
    """Otherwise rounds and runs could not be compared, and the bound of a hot key would be wrong."""
    uniform, zipf, again = (list(itertools.islice(keys_of(kind), 20_000)) for kind in ("uniform", "zipf", "zipf"))
    assert zipf == again
    assert len(set(uniform)) > KEY_COUNT * 0.8
    assert hottest("uniform", 20_000) < 20
    assert zipf.count(b"key-1") == hottest("zipf", 20_000)
    assert 0.1 < hottest("zipf", 20_000) / 20_000 < 0.2
    assert 1.9 < zipf.count(b"key-1") / zipf.count(b"key-2") < 2.4
    assert set(itertools.islice(keys_of("none"), 3)) == {None}


@pytest.mark.parametrize("quick", [True, False])
def test_every_scenario_can_be_written_down_from_what_it_measures(quick):
    """No row, ratio or target needs a trial that is not run; the note about the hot key states the upper bound."""
    measured = [
        (
            scenario,
            Results({trial: [Measured(records=1, wall_sec=1, cpu_sec=1, rss_mb=[1.0])] for trial in scenario.trials}),
        )
        for scenario in scenarios(quick=quick)
    ]
    text = document.body(measured)
    assert all(scenario.title in text for scenario, _ in measured)
    assert "no more than" in text
    assert "order by key to none, uniform keys" in text


@pytest.mark.parametrize(
    ("rates", "expected"),
    [((90, 95, 70), Verdict.MET), ((70, 85, 75), Verdict.WITHIN_NOISE), ((70, 79, 75), Verdict.MISSED)],
)
def test_a_target_is_missed_only_when_no_round_meets_it(rates, expected):
    """The median decides whether it is met; noise can excuse it, but not turn it into met."""
    ours, alone = Trial(), Trial(system="sequential")
    results = Results({ours: [_measured(rate) for rate in rates], alone: [_measured(100)] * len(rates)})
    assert verdict(Target.ratio("no-op", 0.8, ours, alone), results) is expected


def test_a_cost_that_grows_is_not_flat():
    """Targets with an upper bound are judged the other way round."""
    few, many = Trial(concurrency_limit=10), Trial(concurrency_limit=5000)
    results = Results({few: [_measured(100)], many: [_measured(50)]})
    assert verdict(Target.flat("cost", many, few), results) is Verdict.MISSED
    assert verdict(Target.flat("cost", few, many), results) is Verdict.MET


def test_a_run_replaces_only_what_is_between_the_markers():
    """The text around the tables stays."""
    before = f"above\n{document.BEGIN}\nold\n{document.END}\nbelow\n"
    assert document.between_markers(before, "new") == f"above\n{document.BEGIN}\n\nnew\n\n{document.END}\nbelow\n"
    with pytest.raises(ValueError, match="must have"):
        document.between_markers("no markers", "new")


def test_the_picture_is_drawn_from_any_part_of_a_run(tmp_path):
    """The place of a scenario that was left out stays empty."""
    trials = [Trial(together=True, concurrency_limit=limit) for limit in (10, 100)]
    rows = tuple(Row((str(trial.concurrency_limit), "as it is"), trial) for trial in trials)
    scenario = Scenario(name="in-flight", title="", columns=("in flight", "collector"), rows=rows, targets=())
    plot.draw([(scenario, Results({trial: [_measured(100), _measured(90)] for trial in trials}))], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_cost_per_record_is_measured_of_every_system_and_the_ratios_come_last(capsys):
    """Each system handles all its records without a Kafka; a handler may suspend."""
    assert cost.main(["--rounds", "1", "--records", "200", "--handler", "yield", "--gc"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["sequential", "floor", "library"]
    ratios = re.fullmatch(r"by CPU: library/floor ([\d.]+), sequential/library ([\d.]+)", last)
    assert ratios is not None
    assert all(0.01 < float(ratio) < 100 for ratio in ratios.groups())


def test_the_profile_says_what_each_function_does_per_record(capsys):
    """Each record passes the middleware once, and the counts do not depend on the speed of the machine."""
    profiles = []
    for _ in range(2):
        cost.main(["--rounds", "0", "--records", "500", "--only", "library", "--profile"])
        profiles.append(capsys.readouterr().out)
    assert profiles[0] == profiles[1]
    passes = r" 1\.00  faststream_concurrent_kafka: KafkaConcurrentProcessingMiddleware\.consume_scope$"
    assert re.search(passes, profiles[0], re.MULTILINE)


@pytest.mark.parametrize("handler", ["sleep", "sleep:soon", "yield:1", "wait"])
def test_a_handler_that_is_not_known_is_refused(handler, capsys):
    """An unknown handler would be measured as one that does nothing."""
    with pytest.raises(SystemExit):
        cost.main(["--handler", handler])
    assert "--handler" in capsys.readouterr().err

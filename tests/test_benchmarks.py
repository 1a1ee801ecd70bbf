"""The benchmarks stay runnable: one tiny run from end to end, and what is made of its figures."""

import pytest

from benchmarks import document, plot
from benchmarks.report import Verdict, verdict
from benchmarks.runner import Results, Runner
from benchmarks.scenarios import Row, Scenario, Target
from benchmarks.trial import Measured, Trial


def _measured(rate: float) -> Measured:
    return Measured(records=100, wall_sec=100 / rate, cpu_sec=100 / rate, rss_mb=[50.0])


def test_a_tiny_run_gives_figures_for_every_trial(kafka):
    """Each system handles all its records in a process of its own, and the tables show them."""
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
    """What people wrote around the tables stays."""
    before = f"above\n{document.BEGIN}\nold\n{document.END}\nbelow\n"
    assert document.between_markers(before, "new") == f"above\n{document.BEGIN}\n\nnew\n\n{document.END}\nbelow\n"
    with pytest.raises(ValueError, match="must have"):
        document.between_markers("no markers", "new")


def test_the_picture_is_drawn_from_any_part_of_a_run(tmp_path):
    """A scenario that was left out leaves its place empty."""
    trials = [Trial(together=True, concurrency_limit=limit) for limit in (10, 100)]
    rows = tuple(Row((str(trial.concurrency_limit), "as it is"), trial) for trial in trials)
    scenario = Scenario(name="in-flight", title="", columns=("in flight", "collector"), rows=rows, targets=())
    plot.draw([(scenario, Results({trial: [_measured(100), _measured(90)] for trial in trials}))], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")

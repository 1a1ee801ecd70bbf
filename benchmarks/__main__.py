"""The command line: `python -m benchmarks --help`."""

import argparse
import logging
import shlex
import sys

from benchmarks import document
from benchmarks.cost import command as cost
from benchmarks.report import Verdict, verdict
from benchmarks.runner import Runner
from benchmarks.scenarios import scenarios
from testkit.brokers import choose_broker


_ROUNDS = 7
_QUICK_ROUNDS = 1
_LEAST_ROUNDS_TO_JUDGE = 3


def main() -> int:
    """Run the benchmarks; return 1 if `--check` found a missed target."""
    if "--cost" in sys.argv:
        return cost.main([each for each in sys.argv[1:] if each != "--cost"])
    options = _options()
    # Producing right after creating a topic is retried, and aiokafka logs that.
    logging.getLogger("aiokafka.producer").setLevel(logging.ERROR)
    wanted = [each for each in scenarios(quick=options.quick) if options.only in {None, each.name}]
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    server = choose_broker(print)
    how = document.conditions(
        server.name, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), rounds, quick=options.quick
    )
    with server, Runner(server.bootstrap_servers) as runner:
        measured = []
        for scenario in wanted:
            print(f"{scenario.name}: {scenario.title}", flush=True)
            measured.append((scenario, runner.run(scenario.trials, min(rounds, scenario.most_rounds or rounds))))
    print(f"\n{how}\n\n{document.body(measured)}")
    if options.write:
        document.write(measured, how)
    missed = [
        target.what
        for scenario, results in measured
        for target in scenario.targets
        if verdict(target, results) is Verdict.MISSED
    ]
    if options.check and missed:
        print(f"\nmissed by more than noise: {'; '.join(missed)}")
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure this library beside FastStream.")
    names = [each.name for each in scenarios(quick=False)]
    parser.add_argument("--cost", action="store_true", help="CPU per record without a Kafka; --cost --help says more")
    parser.add_argument("--quick", action="store_true", help="few records, one round, no memory: for trying it out")
    parser.add_argument("--only", choices=names, help="one scenario")
    parser.add_argument("--rounds", type=int, help=f"how often each is measured ({_ROUNDS}, quick {_QUICK_ROUNDS})")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed by more than noise")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its picture")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write needs all scenarios, so not with --only")
    if options.check and (options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)) < _LEAST_ROUNDS_TO_JUDGE:
        parser.error(f"--check needs at least {_LEAST_ROUNDS_TO_JUDGE} rounds: fewer do not show the noise")
    if options.quick and options.only == "memory":
        parser.error("memory is not measured with --quick")
    return options


if __name__ == "__main__":
    sys.exit(main())

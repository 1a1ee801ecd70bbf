"""`python -m benchmarks --cost`: the rounds, the table, and the last line with the two ratios."""

import argparse
import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.cost.trial import SYSTEMS, Cost, CostTrial, System


_ROOT = Path(__file__).parents[2]
_ROUNDS = 5
# So many that a full collection more or less, which takes about as long as 1,000 records, does not matter.
_RECORDS = 100_000
# The difference of two runs excludes what a process does before its first record and after its last one.
_FEW, _MANY = 1_000, 6_000
_PROFILED_RECORDS = 2_000
_SHOWN_FUNCTIONS = 40
_TIMEOUT_SEC = 1_200


def main(arguments: Sequence[str]) -> int:
    """Measure CPU per record, and print it; with `--profile`, by function."""
    options = _options(arguments)
    trials = {
        system: CostTrial(
            system=system,
            records=options.records,
            concurrency_limit=options.limit,
            sleep_sec=options.handler,
            collector="tuned" if options.gc else "default",
        )
        for system in SYSTEMS
        if not options.only or system in options.only
    }
    if options.profile:
        for system, trial in trials.items():
            print(_profile(system, trial))
    counts = _instructions(list(trials.values())) if options.instructions else {}
    measured: dict[System, list[float]] = defaultdict(list)
    for _, (system, trial) in itertools.product(range(options.rounds), trials.items()):
        measured[system].append(_run(trial).cpu_us)
    for system, each in measured.items():
        rounds = " ".join(f"{cpu_us:.1f}" for cpu_us in each)
        print(f"{system:12} {min(each):9.1f} us CPU per record, the lowest of {rounds}")
    for system, count in counts.items():
        print(f"{system:12} {count:9,.0f} instructions per record")
    if len(trials) == len(SYSTEMS):
        lowest = {system: min(each) for system, each in measured.items()}
        print("; ".join(f"by {what}: {_ratios(of)}" for what, of in (("instructions", counts), ("CPU", lowest)) if of))
    return 0


def _ratios(of: dict[System, float]) -> str:
    return f"library/floor {of['library'] / of['floor']:.3f}, sequential/library {of['sequential'] / of['library']:.3f}"


def _run(trial: CostTrial, prefix: Sequence[str] = (), on_errors: Callable[[str], None] = lambda _: None) -> Cost:
    command = [*prefix, sys.executable, "-m", "benchmarks.cost.worker", trial.to_json()]
    ran = subprocess.run(
        command,
        check=False,
        cwd=_ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SEC,
    )
    if ran.returncode:
        raise RuntimeError(f"{trial.system} failed:\n{ran.stderr[-3_000:]}")
    on_errors(ran.stderr)
    return Cost.from_json(ran.stdout)


def _instructions(trials: Sequence[CostTrial]) -> dict[System, float]:
    """Return the instructions per record by system, to 0.1 %, with the collector off: load does not change them."""

    def count(trial: CostTrial, records: int) -> int:
        said: list[str] = []
        valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={os.devnull}"]
        _run(_counted(trial, records), valgrind, said.append)
        found = re.search(r"I *refs: *([\d,]+)", said[0])
        if found is None:
            raise RuntimeError(f"valgrind has not said how many instructions it counted:\n{said[0][-3_000:]}")
        return int(found[1].replace(",", ""))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        few, many = ([pool.submit(count, trial, records) for trial in trials] for records in (_FEW, _MANY))
        return {
            trial.system: (more.result() - less.result()) / (_MANY - _FEW)
            for trial, less, more in zip(trials, few, many, strict=True)
        }


def _profile(system: System, trial: CostTrial) -> str:
    functions = _run(_counted(trial, min(trial.records, _PROFILED_RECORDS), profile=True)).functions
    packages: dict[str, float] = defaultdict(float)
    for each in functions:
        packages[each.package] += each.bytecodes
    shares = sorted(packages.items(), key=lambda item: -item[1])
    ours = [each for each in functions if each.package == "faststream_concurrent_kafka"]
    return "\n".join(
        [
            f"{system}: {sum(packages.values()):,.0f} bytecodes per record",
            *(f"  {count:8.1f}  {package}" for package, count in shares if count >= 1),
            f"  {'bytecodes':>9} {'resumed':>8}  function of the library, else of any package",
            *(
                f"  {each.bytecodes:9.1f} {each.resumptions:8.2f}  {each.package}: {each.name}"
                for each in (ours or functions)[:_SHOWN_FUNCTIONS]
            ),
        ]
    )


def _counted(trial: CostTrial, records: int, *, profile: bool = False) -> CostTrial:
    return dataclasses.replace(trial, records=records, collector="off", is_counted=True, profile=profile)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks --cost", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=_ROUNDS,
        help="the systems take turns, and the lowest round counts; 0: count instructions or bytecodes alone",
    )
    parser.add_argument("--records", type=int, default=_RECORDS, help=f"of each measurement ({_RECORDS:,})")
    parser.add_argument("--limit", type=int, default=100, help="the library's concurrency_limit (100)")
    parser.add_argument("--handler", type=_sleep_sec, default=None, help="noop (default), yield or sleep:SECONDS")
    parser.add_argument("--gc", action="store_true", help="with the collector tuned, as docs/benchmarks.md says")
    parser.add_argument("--only", action="append", choices=SYSTEMS, help="one system; may be given more than once")
    parser.add_argument("--instructions", action="store_true", help="count them, too, with valgrind: some minutes")
    parser.add_argument("--profile", action="store_true", help="print bytecodes per record by package and function")
    options = parser.parse_args(arguments)
    if options.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind, which is not on the PATH")
    return options


def _sleep_sec(text: str) -> float | None:
    kind, _, seconds = text.partition(":")
    if kind in {"noop", "yield"} and not seconds:
        return None if kind == "noop" else 0.0
    if kind != "sleep":
        raise argparse.ArgumentTypeError("noop, yield or sleep:SECONDS")
    return float(seconds)

"""The command line: `python -m chaos --help`."""

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from chaos import document
from chaos.nemesis import BROKERS
from chaos.run import BROKER_SETTINGS, HEAP_MB, RunSettings, analyse, run
from testkit.brokers import ApacheKafka


_MINUTES = 5.0
_RECORDS_PER_MINUTE = 40_000
_GAP_SEC = 6.0


def main() -> int:
    """Make a run, or judge the evidence of an earlier one again; returns 1 if a promise was broken."""
    options = _options()
    # Brokers are killed on purpose: do not log the errors of their clients.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if options.again is not None:
        return _judge(Path(options.again), "", options)
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    asked = RunSettings(
        seed=seed,
        minutes=options.minutes,
        records=options.records or int(options.minutes * _RECORDS_PER_MINUTE),
        gap_sec=options.gap,
        storms=options.storms,
    )
    folder = Path(options.evidence or tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"seed {seed}, {asked.minutes:g} min, {asked.records:,} records; evidence in {folder}")
    with ApacheKafka(BROKERS, settings=BROKER_SETTINGS, heap_mb=HEAP_MB) as kafka:
        problem = asyncio.run(run(asked, kafka, folder, _say))
    result = _judge(folder, problem, options)
    if result == 0 and not options.evidence:
        shutil.rmtree(folder)
    elif result:
        _say(f"repeat: python -m chaos --seed {seed}; judge again: python -m chaos --again {folder}")
    return result


def _judge(folder: Path, problem: str, options: argparse.Namespace) -> int:
    if not (folder / "run.json").exists():
        _say(f"the run did not come to its end: {problem}")
        return 1
    findings = analyse(folder)
    asked = RunSettings.of(folder)
    how = document.conditions(
        f"just chaos --minutes {asked.minutes:g} --records {asked.records} --gap {asked.gap_sec:g} --seed {asked.seed}"
        + " --storms" * asked.storms
    )
    _say(f"\n{how}\n\n{document.body(findings)}\n\n{document.details(findings)}")
    broken = [*filter(None, [problem]), *findings.broken()]
    if options.write:
        document.write(findings, how)
    _say("\n" + ("\n".join(["NOT KEPT:", *broken]) if broken else "Every promise was kept."))
    return int(bool(broken))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what it is for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m chaos", description="Faults on three brokers and a group of workers.")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=f"how long faults go on ({_MINUTES:g})")
    parser.add_argument("--seed", type=int, help="which faults (drawn, and printed)")
    parser.add_argument("--records", type=int, help=f"how many in that time ({_RECORDS_PER_MINUTE:,} a minute)")
    parser.add_argument("--gap", type=float, default=_GAP_SEC, help=f"seconds between faults, on average ({_GAP_SEC})")
    parser.add_argument("--storms", action="store_true", help="handlers fail, too: new attempts, dead letters")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/reliability.md")
    parser.add_argument("--evidence", metavar="FOLDER", help="leave the evidence there, whatever the result")
    parser.add_argument("--again", metavar="FOLDER", help="make no run: judge the evidence of an earlier one again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""The result as Markdown, for the terminal and for docs/reliability.md: no figure is typed by hand."""

import datetime as dt
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from chaos.figures import Findings
from testkit.causes import ALLOWED, Cause
from testkit.oracle import Claim


DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
_PROMISED = {
    Claim.LOST: "records lost",
    Claim.INVERSIONS: "inversions: begun before the one before it in its key was done",
    Claim.OVERLAPS: "overlaps: two records of a key at once in one process",
    Claim.ORDER: "records of a key out of order within an assignment",
    Claim.OUTCOMES: "attempts that did not end as the load says",
    **{f"again, {cause}": f"handled again: {cause}" for cause in Cause if cause not in ALLOWED},
    Claim.DIED: "processes that ended by themselves",
    Claim.STUBBORN: "stops that did not come to their end",
}
_PACKAGES = ("faststream", "aiokafka", "faststream-concurrent-kafka")


def conditions(command: str) -> str:
    """Return the command, the machine and the versions of the run."""
    memory_gb = psutil.virtual_memory().total / 1e9
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return "\n".join(
        [
            f"- `{command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}",
            f"- {os.cpu_count()} CPUs, {memory_gb:.0f} GB, {platform.system()} {platform.machine()}, for all processes",
            "- Kafka: Apache Kafka, three brokers, replication 3, min.insync.replicas 2",
            f"- {platform.python_implementation()} {platform.python_version()}, {versions}",
        ]
    )


def body(findings: Findings) -> str:
    """Return the tables."""
    return "\n\n".join([_results(findings), _again(findings), _faults(findings)])


def details(findings: Findings) -> str:
    """Return details that help to find a cause, for the terminal."""
    lines = [f"{what}: {example}" for what, examples in findings.verdict.examples.items() for example in examples]
    lines += [f"logged {times:,} times: {text}" for text, times in findings.warnings.most_common(25)]
    return "\n".join(lines)


def write(findings: Findings, how: str, into: Path = DOCUMENT) -> None:
    """Write the tables between the markers."""
    before, begin, rest = into.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{into} must have {BEGIN} and {END}")
    into.write_text(f"{before}{BEGIN}\n\n{how}\n\n{body(findings)}\n\n{END}{after}")


def _results(findings: Findings) -> str:
    rows = [
        ["records", "", f"{findings.records:,}"],
        ["time", "", f"{findings.seconds / 60:.1f} min"],
        ["faults", "", f"{findings.faults.total():,}"],
        ["worker processes, one after the other", "", f"{findings.workers:,}"],
        *([text, "0", f"{findings.verdict.violations[claim]:,}"] for claim, text in _PROMISED.items()),
        ["longest time in which the whole group did nothing", "", f"{findings.stall_sec:.1f} s"],
        ["memory of a worker, at most", "", f"{findings.memory_mb:.0f} MB"],
    ]
    if findings.produced_twice:
        rows.append(["records that the producer has written twice", "", f"{findings.produced_twice:,}"])
    return _table(["", "promised", "found"], rows)


def _again(findings: Findings) -> str:
    of = {
        Cause.KILL: f"{findings.killed} processes killed",
        Cause.FROZEN: f"{findings.frozen} processes frozen",
        Cause.REBALANCE: f"{findings.workers:,} processes joining",
        Cause.BROKER: f"{findings.troubles} broker faults",
    }
    rows = [[cause, f"{findings.verdict.again[cause]:,}", of[cause]] for cause in Cause if cause in ALLOWED]
    return _table(["handled again, as at-least-once allows", "records", "in"], rows)


def _faults(findings: Findings) -> str:
    rows = []
    for kind, times in sorted(findings.faults.items()):
        pauses = findings.pauses_sec.get(kind) or [0.0]
        rows.append([kind, f"{times:,}", f"{statistics.median(pauses):.1f} s", f"{max(pauses):.1f} s"])
    return _table(["fault", "times", "its partitions stood still, median", "at most"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {first[0].ljust(first[1])} | {' | '.join(cell.rjust(width) for cell, width in others)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])

"""Writes the results of a run between the markers of docs/benchmarks.md: no figure is typed by hand."""

import datetime as dt
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks import plot
from benchmarks.report import memory_table, scenario_table, targets_table
from benchmarks.runner import ROOT, Results
from benchmarks.scenarios import Scenario


DOCUMENT = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "benchmarks.png"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_PACKAGES = ("faststream", "aiokafka", "faststream-concurrent-kafka")


def conditions(kafka: str, command: str, rounds: int, *, quick: bool) -> str:
    """Return the machine, the versions and the command of the run."""
    warning = ["**A quick run: its figures show that everything works, and nothing about speed.**\n"] if quick else []
    memory_gb = psutil.virtual_memory().total / 1e9
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    machine = f"{_processor()}, {os.cpu_count()} CPUs, {memory_gb:.0f} GB, {platform.system()} {platform.machine()}"
    load = f"load average {os.getloadavg()[0]:.1f} before the run" if hasattr(os, "getloadavg") else "load unknown"
    place = "" if kafka == "external" else ", on the same machine"
    return "\n".join(
        [
            *warning,
            f"- `{command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}, rounds: {rounds}",
            f"- {machine}; {load}",
            f"- Kafka: {kafka}{place}; {platform.python_implementation()} {platform.python_version()}, {versions}",
        ]
    )


def body(measured: Sequence[tuple[Scenario, Results]]) -> str:
    """Return the tables of a run."""
    targets = targets_table(measured)
    parts = ["## Targets", targets] if targets else []
    for scenario, results in measured:
        parts += [f"## {scenario.title}", scenario.note, scenario_table(scenario, results), memory_table(results)]
    return "\n\n".join(filter(None, parts))


def between_markers(document: str, text: str) -> str:
    """Return the document with `text` in the place of what was between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document must have {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def write(measured: Sequence[tuple[Scenario, Results]], how: str) -> None:
    """Put tables and picture in their places."""
    plot.draw(measured, PICTURE)
    picture = f"![Throughput, cost per record and memory]({PICTURE.name})"
    text = "\n\n".join([how, picture, body(measured)])
    DOCUMENT.write_text(between_markers(DOCUMENT.read_text(), text))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"

"""Results as Markdown, for the terminal and for docs/benchmarks.md, and the verdict on each target."""

import enum
from collections.abc import Iterable, Sequence

from benchmarks.runner import Results, Spread
from benchmarks.scenarios import Scenario, Target


class Verdict(enum.Enum):
    """The verdict on a target."""

    MET = "met"
    WITHIN_NOISE = "not met, within noise"
    MISSED = "**not met**"


def verdict(target: Target, results: Results) -> Verdict:
    """Judge the median; a target is missed for certain only if no round has met it."""

    def is_met(value: float) -> bool:
        return value <= target.wanted if target.at_most else value >= target.wanted

    spread = Spread.of(target.values(results))
    if is_met(spread.median):
        return Verdict.MET
    return Verdict.WITHIN_NOISE if is_met(spread.low) or is_met(spread.high) else Verdict.MISSED


def scenario_table(scenario: Scenario, results: Results) -> str:
    """Return all measurements of a scenario: medians, with the lowest and the highest round in brackets."""
    head = [*scenario.columns, "records/s (wall)", "x (wall)", "CPU µs/record", "x (CPU)", "RSS MB"]
    lines = []
    for row in scenario.rows:
        trial, against = row.trial, row.against
        ratios = ("1", "1") if any(each.against == trial for each in scenario.rows) else ("", "")
        if against is not None:
            ratios = (
                _spread(results.wall_ratio(trial, against), ".2f"),
                _spread(results.cpu_ratio(trial, against), ".2f"),
            )
        lines.append(
            [
                *row.cells,
                _spread(results.rate(trial), ",.0f"),
                ratios[0],
                _spread(results.cpu_us(trial), ".1f"),
                ratios[1],
                f"{max(each.rss_mb[-1] for each in results[trial]):.0f}",
            ]
        )
    return _table(head, lines, text_columns=len(scenario.columns))


def memory_table(results: Results) -> str:
    """Return memory over time, for the trials that measured it more than once."""
    lines = [
        [f"{trial.rss_every * (index + 1):,}", _spread([each.rss_mb[index] for each in rounds], ".1f")]
        for trial, rounds in results.items()
        if trial.rss_every
        for index in range(len(rounds[0].rss_mb))
    ]
    return _table(["records", "RSS MB"], lines, text_columns=0) if lines else ""


def targets_table(measured: Iterable[tuple[Scenario, Results]]) -> str:
    """Return every target with the measured value; empty if there are none."""
    head = ["target", "wanted", "measured", "the same by CPU", "verdict"]
    lines = [
        [
            target.what,
            f"{'≤' if target.at_most else '≥'} {target.wanted:g}",
            _spread(target.values(results), ".2f"),
            _spread(target.by_cpu(results), ".2f") if target.by_cpu else "",
            verdict(target, results).value,
        ]
        for scenario, results in measured
        for target in scenario.targets
    ]
    return _table(head, lines, text_columns=1) if lines else ""


def _spread(values: Iterable[float], form: str) -> str:
    spread = Spread.of(values)
    median, low, high = (format(value, form) for value in spread)
    return median if low == high else f"{median} ({low}-{high})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], *, text_columns: int) -> str:
    widths = [max(len(line[index]) for line in (head, *lines)) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(aligned)} |"

    rule = "|".join(
        f"{'-' * (width + 2)}" if index < text_columns else f"{'-' * (width + 1)}:"
        for index, width in enumerate(widths)
    )
    return "\n".join([line(head), f"|{rule}|", *map(line, lines)])

"""The picture of docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.runner import Results, Spread
from benchmarks.scenarios import NAMES, TUNED, Row, Scenario


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_GREY, _ORANGE, _BLUE, _LIGHT_BLUE = "#8c8c8c", "#dd8452", "#1f4e9c", "#8fb4e3"


def draw(measured: Sequence[tuple[Scenario, Results]], path: Path) -> None:
    """Draw what was measured of throughput, costs and memory."""
    # Here and not above: importing it takes seconds, which each worker of a test run would pay.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    painters = {"throughput": _throughput, "in-flight": _in_flight, "partitions": _partitions, "memory": _memory}
    drawn = [pair for pair in measured if pair[0].name in painters]
    axes = figure.subplots(2, 2).flat
    for (scenario, results), each in zip(drawn, axes, strict=False):
        painters[scenario.name](each, scenario.rows, results)
        each.grid(axis="y", alpha=0.3)
        each.set_ylim(0, 1.05 * each.get_ylim()[1])
    for each in list(figure.axes)[len(drawn) :]:
        each.remove()
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _throughput(axes: "Axes", rows: Sequence[Row], results: Results) -> None:
    handlers = list(dict.fromkeys(row.cells[0] for row in rows))
    bars = {
        NAMES["sequential"]: (_GREY, 0),
        NAMES["max_workers"]: (_ORANGE, 1),
        NAMES["concurrent"]: (_BLUE, 2),
        f"{NAMES['concurrent']}, collector tuned": (_LIGHT_BLUE, 3),
    }
    width = 0.8 / len(bars)
    for row in rows:
        handler, system, gc = row.cells
        label = f"{system}, collector tuned" if gc == TUNED else system
        if label not in bars:
            continue
        color, place = bars[label]
        spread = Spread.of(results.rate(row.trial))
        at = handlers.index(handler) + (place - 1.5) * width
        axes.bar(at, spread.median, width, color=color, label=label if handler == handlers[0] else None)
        noise = ([spread.median - spread.low], [spread.high - spread.median])
        axes.errorbar(at, spread.median, noise, color="black", linewidth=0.8, capsize=2)
        axes.annotate(
            f"{spread.median:,.0f}", (at, spread.high), (0, 2), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_xticks(range(len(handlers)), handlers)
    axes.set_title("Records per second, logger off")
    axes.legend(frameon=False, fontsize=8)


def _in_flight(axes: "Axes", rows: Sequence[Row], results: Results) -> None:
    for gc in dict.fromkeys(row.cells[1] for row in rows):
        spreads = {
            row.trial.concurrency_limit: Spread.of(results.cpu_us(row.trial)) for row in rows if row.cells[1] == gc
        }
        _line(axes, spreads, f"collector {gc}", _LIGHT_BLUE if gc == TUNED else _BLUE)
    axes.set_title("CPU µs per record, by records in flight")


def _partitions(axes: "Axes", rows: Sequence[Row], results: Results) -> None:
    for system, color in ((NAMES["sequential"], _GREY), (NAMES["concurrent"], _BLUE)):
        spreads = {row.trial.partitions: Spread.of(results.cpu_us(row.trial)) for row in rows if row.cells[1] == system}
        _line(axes, spreads, system, color)
    axes.set_title("CPU µs per record, by partitions")


def _line(axes: "Axes", spreads: Mapping[int, Spread], label: str, color: str) -> None:
    """Draw medians with their noise over a logarithmic axis."""
    places = list(spreads)
    medians = [spread.median for spread in spreads.values()]
    below, above = zip(
        *((spread.median - spread.low, spread.high - spread.median) for spread in spreads.values()), strict=True
    )
    axes.errorbar(places, medians, (below, above), marker="o", capsize=3, label=label, color=color)
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def _memory(axes: "Axes", rows: Sequence[Row], results: Results) -> None:
    for row in rows:
        for measured in results[row.trial]:
            records = [row.trial.rss_every * (index + 1) for index in range(len(measured.rss_mb))]
            axes.plot(records, measured.rss_mb, marker="o", color=_BLUE)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title("Memory (RSS MB), by records handled")

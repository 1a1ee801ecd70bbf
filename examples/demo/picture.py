"""The progress of the demo: a live picture in a terminal, plain lines elsewhere."""

import dataclasses
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override


_SPARKS = "▁▂▃▄▅▆▇█"
_HISTORY = 40
_LINE_INTERVAL_SEC = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot of a run, with figures measured or requested from the broker at this moment."""

    title: str
    orders: int
    charged: int
    refused: int
    """Orders that could not be charged, after their last attempt."""
    per_second: float
    """Charges of the last second."""
    in_flight: int
    committed: Sequence[int]
    """The group's committed offset of each partition, as reported by the broker."""
    ends: Sequence[int]
    """The end of each partition."""

    @property
    def lag(self) -> int:
        """The number of uncommitted records."""
        return sum(self.ends) - sum(self.committed)


class Picture:
    """Plain lines, one per second: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._next_line_at = 0.0
        self._last_line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Do nothing: nothing is open."""

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self, now: Snapshot) -> None:
        """Print the progress if it has changed, at most once per second."""
        line = (
            f"   charged {now.charged:6,}/{now.orders:,}  {now.per_second:6,.0f}/s  in flight {now.in_flight:3}"
            f"  refused {now.refused}  lag {now.lag:6,}  committed {' '.join(map(str, now.committed))}"
        )
        if time.monotonic() >= self._next_line_at and line != self._last_line:
            self._next_line_at, self._last_line = time.monotonic() + _LINE_INTERVAL_SEC, line
            self.say(line)

    def clear(self) -> None:
        """Remove the picture of the run; printed lines stay."""
        self._next_line_at, self._last_line = 0.0, ""


class LivePicture(Picture):
    """A panel that is redrawn below the printed lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=10, transient=True)
        self._rates: list[float] = []

    @override
    def __enter__(self) -> Self:
        self._live.start()
        return self

    @override
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    @override
    def show(self, now: Snapshot) -> None:
        self._rates = [*self._rates, now.per_second][-_HISTORY:]
        self._live.update(Panel(Group(_figures(now, self._rates), _partitions(now)), title=now.title, expand=False))

    @override
    def clear(self) -> None:
        self._rates = []
        self._live.update(Text())


def _figures(now: Snapshot, rates: Sequence[float]) -> RenderableType:
    grid = Table.grid(padding=(0, 3))
    highest = max(*rates, 1.0)
    sparks = "".join(_SPARKS[int(rate / highest * (len(_SPARKS) - 1))] for rate in rates)
    grid.add_row("orders charged", "per second", "in flight", "refused", "lag")
    grid.add_row(
        Text(f"{now.charged:,} of {now.orders:,}", style="bold"),
        Text(f"{now.per_second:,.0f}", style="bold green"),
        Text(str(now.in_flight), style="bold cyan"),
        Text(str(now.refused), style="bold red"),
        Text(f"{now.lag:,}", style="bold yellow"),
    )
    return Group(grid, Text(sparks, style="green"))


def _partitions(now: Snapshot) -> RenderableType:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("partition", justify="right")
    table.add_column("committed", justify="right", min_width=9)
    table.add_column("lag", justify="right", min_width=6)
    table.add_column("", min_width=40)
    for partition, (committed, end) in enumerate(zip(now.committed, now.ends, strict=True)):
        bar = ProgressBar(total=max(end, 1), completed=committed, width=40)
        table.add_row(str(partition), f"{committed:,}", f"{end - committed:,}", bar)
    return table


def make_picture(console: Console) -> Picture:
    """Return the picture for this output."""
    return LivePicture(console) if console.is_terminal else Picture(console)

"""The demo: load a topic, run the service in two ways, stop it in mid-flight, and check the result of every order."""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo.ledger import ATTEMPTS, REASON, STOPPING, Verdict, check, exit_status
from examples.demo.orders import load, make_orders, make_poison_orders
from examples.demo.picture import Picture, make_picture
from examples.demo.runs import DEAD_LETTERS, PARTITIONS, DemoError, Run, Shop
from examples.demo.service import AT_ONCE, CONCURRENT, MAX_WORKERS, PAYMENT_SEC, SEQUENTIAL
from testkit.brokers import BrokerError, Tansu, create_topic


_TOPIC = "orders"
_MOST_SEC = 120.0
_NOT_CARRIED_OUT = 2
_LEGEND = f"""\
sec: from the first delivery to the last charge. dead: in {DEAD_LETTERS} after {ATTEMPTS} attempts, as they can't be
charged; FastStream alone has no such topic. lost: committed, and neither charged and confirmed nor dead.
twice: delivered, charged, confirmed or buried again, or done and not committed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    name: str
    verdict: Verdict
    shows_speed: bool = True
    """Whether the run worked without interruption, so that its time counts."""


async def sequential(shop: Shop, seconds: float) -> Row:
    """Let FastStream alone handle orders for this time: all of them would take minutes."""
    shop.picture.say(f"1. FastStream by itself, one order at a time (AckPolicy.ACK_FIRST, its default), {seconds:g} s")
    run = Run(shop, name=SEQUENTIAL, way=SEQUENTIAL, title="FastStream, one at a time")
    started_at: list[float] = []

    def is_over() -> bool:
        if run.charged and not started_at:
            started_at.append(time.monotonic())
        return run.handled == len(shop.placed) or bool(started_at and time.monotonic() - started_at[0] >= seconds)

    async with run.watched():
        await run.serve(until=is_over)
        return Row(name="FastStream alone", verdict=check(await run.evidence()))


async def concurrent(shop: Shop, way: str) -> Row:
    """Let the same service handle all orders, many at once."""
    shop.picture.say(f"2. The same service, {AT_ONCE} orders at once ({way}), all orders")
    run = Run(shop, name=way, way=way, title=f"{way}, {AT_ONCE} at once")
    async with run.watched():
        await run.serve(until=lambda: run.handled >= len(shop.placed))
        return Row(name=f"{way}, {AT_ONCE}", verdict=check(await run.evidence()))


async def stop_in_mid_flight(shop: Shop, way: str) -> Row:
    """Stop the service by SIGTERM while it works, and start it again for the rest of the orders."""
    shop.picture.say("3. The same again from the start, with a SIGTERM in mid-flight")
    run = Run(shop, name=f"{way}-stopped", way=way, title=f"{way}, until SIGTERM")
    async with run.watched():
        took_sec = await run.serve(until=lambda: run.charged >= len(shop.placed) * 0.4 and run.in_flight > 0)
        evidence = await run.evidence()
        in_flight = next((int(event.what) for event in evidence.events if event.kind == STOPPING), 0)
        shop.picture.say(
            f"   stopped in {took_sec:.2f} s with {in_flight} orders in flight, {run.charged:,} charged by then, "
            f"{sum(evidence.committed.values()):,} committed",
        )
        if in_flight == 0:
            raise DemoError("no order was in flight when the signal came, so that the stop proves nothing")
        run.title = f"{way}, started again"
        # An order that was committed and not handled will never be delivered.
        within_reach = run.handled + sum(shop.ends.values()) - sum(evidence.committed.values())
        await run.serve(until=lambda: run.handled >= within_reach)
        return Row(name="SIGTERM, restart", verdict=check(await run.evidence()), shows_speed=False)


async def run_demo(options: argparse.Namespace, picture: Picture, directory: Path) -> list[Row]:
    """Make all runs, and return their results."""
    with Tansu() as broker:
        servers = broker.bootstrap_servers
        confirmations = (SEQUENTIAL, options.way, f"{options.way}-stopped")
        names = (_TOPIC, DEAD_LETTERS, *(f"confirmations-{name}" for name in confirmations))
        await asyncio.gather(*(create_topic(servers, name, PARTITIONS) for name in names))
        orders = await load(servers, _TOPIC, itertools.islice(make_orders(), options.orders))
        # Last in their partitions: a stop may leave failing orders undone, and finished ones behind them would be
        # handled again with them.
        poison = await load(servers, _TOPIC, make_poison_orders(PARTITIONS))
        picture.say(
            f"{len(orders):,} orders in {PARTITIONS} partitions of an embedded broker; "
            f"each is one payment call of {PAYMENT_SEC * 1000:g} ms and one confirmation",
        )
        picture.say(f"and {len(poison)} with a negative sum, which can't be charged: {REASON}")
        shop = Shop(
            servers=servers,
            topic=_TOPIC,
            placed=orders | poison,
            poison=poison.keys(),
            directory=directory,
            picture=picture,
        )
        return [
            await sequential(shop, options.sequential_sec),
            await concurrent(shop, options.way),
            await stop_in_mid_flight(shop, options.way),
        ]


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="What the journal and the broker say")
    for heading in ("", "charged", "sec", "msg/s", "speed-up", "dead", "lost", "twice"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    rates = [row.verdict.charged / row.verdict.seconds for row in rows]
    for row, rate in zip(rows, rates, strict=True):
        verdict = row.verdict
        table.add_row(
            row.name,
            f"{verdict.charged:,}",
            f"{verdict.seconds:.1f}",
            f"{rate:,.0f}" if row.shows_speed else "-",
            f"{rate / rates[0]:.1f}x" if row.shows_speed else "-",
            "-" if verdict.buried is None else str(verdict.buried),
            *(str(count) if count == 0 else f"[bold red]{count}[/]" for count in (verdict.missing, verdict.repeated)),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if every promise was kept, 1 if one was broken, 2 if it could not be carried out."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--orders", type=int, default=5_000, help="how many to load (default: %(default)s)")
    parser.add_argument("--sequential-sec", type=float, default=4.0, help="how long the comparison runs")
    parser.add_argument("--way", choices=(CONCURRENT, MAX_WORKERS), default=CONCURRENT, help="what to put to the test")
    parser.add_argument("--keep", type=Path, help="an empty directory to leave journals, logs and offsets in")
    options = parser.parse_args(arguments)
    console = Console()
    started_at = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            with make_picture(console) as picture:
                rows = asyncio.run(asyncio.wait_for(run_demo(options, picture, directory), _MOST_SEC))
        except (BrokerError, DemoError, TimeoutError) as error:
            print(f"the demo failed: {error or f'not done after {_MOST_SEC:g} s'}", file=sys.stderr)
            return _NOT_CARRIED_OUT
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return _NOT_CARRIED_OUT
    console.print(_table(rows))
    print(_LEGEND)
    print(f"The whole demo took {time.monotonic() - started_at:.1f} s.")
    return exit_status({row.name: row.verdict for row in rows})


if __name__ == "__main__":
    raise SystemExit(main())

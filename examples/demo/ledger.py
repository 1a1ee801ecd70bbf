"""The journal that a run keeps outside of Kafka, and the check of the promises.

python -m examples.demo.ledger DIRECTORY        checks again what `python -m examples.demo --keep` has left there
"""

import argparse
import collections
import dataclasses
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.demo.orders import NotChargeableError, Place


DELIVERED = "delivered"
"""The handler was called with the order."""
CHARGED = "charged"
"""The payment went through."""
STOPPING = "stopping"
"""The process got SIGTERM; the line says how many orders it was handling then."""
ATTEMPTS = 2
"""How often an order that can't be charged is handled before it becomes a dead letter."""
REASON = f"{NotChargeableError.__module__}.{NotChargeableError.__qualname__}"
"""The exception in its dead letter."""


class Event(NamedTuple):
    """One line of a journal."""

    at: float
    pid: int
    kind: str
    what: str


class Journal:
    """An append-only file. Each line is passed to the operating system at once, so that it survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, kind: str, what: str) -> None:
        """Append a line for an event."""
        self._file.write(f"{time.time():.6f} {os.getpid()} {kind} {what}\n".encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def read(path: Path) -> list[Event]:
        """Return the lines so far."""
        return list(_parse(path.read_text()))


def _parse(text: str) -> Iterator[Event]:
    for line in text.splitlines():
        at, pid, kind, what = line.split()
        yield Event(float(at), int(pid), kind, what)


class Buried(NamedTuple):
    """A dead letter: its order and its headers."""

    order: str
    place: Place
    exception: str
    attempts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence of one run of the service, over all of its starts and stops."""

    placed: Mapping[str, Place]
    """The orders in the topic, and their places."""
    poison: Collection[str] = ()
    """The orders that can't be charged."""
    committed: Mapping[int, int]
    """The group's committed offset of each partition at the end, as reported by the broker."""
    confirmed: Sequence[str]
    """The orders in all confirmations, as read from their topic."""
    buried: Sequence[Buried] | None = None
    """The dead letters of the service, as read from their topic; None if it has no such topic."""
    events: Sequence[Event]
    """The journal."""

    def write(self, directory: Path) -> None:
        """Write the evidence to a directory, where the service has written its journal."""
        directory.mkdir(parents=True, exist_ok=True)
        known = {
            "placed": self.placed,
            "poison": sorted(self.poison),
            "committed": self.committed,
            "confirmed": self.confirmed,
            "buried": self.buried,
        }
        (directory / "kafka.json").write_text(json.dumps(known))

    @classmethod
    def read(cls, directory: Path) -> "Evidence":
        """Read the evidence from a directory."""
        known = json.loads((directory / "kafka.json").read_text())
        return cls(
            placed={order: Place(*place) for order, place in known["placed"].items()},
            poison=known["poison"],
            committed={int(partition): offset for partition, offset in known["committed"].items()},
            confirmed=known["confirmed"],
            buried=known["buried"] and [Buried(order, Place(*at), *why) for order, at, *why in known["buried"]],
            events=Journal.read(directory / "journal"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of one run. All but the first three figures have to be 0."""

    charged: int
    """Orders that were charged."""
    seconds: float
    """From the first delivery to the last charge."""
    buried: int | None
    """Orders that are dead letters; None if there is no topic for them."""
    lost: int
    """Committed orders, which are never delivered again, that are neither charged nor rightly dead letters."""
    redelivered: int
    """Orders that were delivered too often, or are done and not committed, so that the next start gets them again."""
    charged_twice: int
    unconfirmed: int
    """Charged orders without a confirmation."""
    confirmed_twice: int
    invented: int
    """Charges or confirmations of orders that do not exist, or that can't be charged."""
    buried_wrongly: int
    """Dead letters of orders that can be charged, or whose headers name no origin or error."""
    buried_twice: int

    @property
    def missing(self) -> int:
        """Orders that will never be handled, or whose confirmation never comes."""
        return self.lost + self.unconfirmed

    @property
    def repeated(self) -> int:
        """Orders that were handled or confirmed more than once, or will be."""
        return max(self.redelivered, self.charged_twice, self.confirmed_twice, self.buried_twice)

    @property
    def broken(self) -> dict[str, int]:
        """The broken promises, and for how many orders each."""
        found = dataclasses.asdict(self)
        return {name: found[name] for name in list(found)[3:] if found[name]}


def check(evidence: Evidence) -> Verdict:
    """Compare the evidence with the promises."""
    poison = set(evidence.poison)
    burials = collections.Counter(letter.order for letter in evidence.buried or ())
    # Without a topic for dead letters, FastStream logs the failure and goes on: nothing else is promised.
    given_up = poison if evidence.buried is None else poison & burials.keys()
    charges = collections.Counter(event.what for event in evidence.events if event.kind == CHARGED)
    confirmations = collections.Counter(evidence.confirmed)
    done = {
        order for order, place in evidence.placed.items() if place.offset < evidence.committed.get(place.partition, 0)
    }
    times = [event.at for event in evidence.events if event.kind in {DELIVERED, CHARGED}]
    return Verdict(
        charged=len(charges),
        buried=None if evidence.buried is None else len(burials),
        seconds=max(times, default=0.0) - min(times, default=0.0),
        lost=len(done - charges.keys() - given_up),
        redelivered=len(_delivered_again(evidence.events, poison) | ((charges.keys() | burials.keys()) - done)),
        charged_twice=len(_more_than_once(charges)),
        unconfirmed=len(charges.keys() - confirmations.keys()),
        confirmed_twice=len(_more_than_once(confirmations)),
        invented=len((charges.keys() | confirmations.keys()) - (evidence.placed.keys() - poison)),
        buried_wrongly=len({letter.order for letter in evidence.buried or () if not _is_right(letter, evidence)}),
        buried_twice=len(_more_than_once(burials)),
    )


def _is_right(letter: Buried, evidence: Evidence) -> bool:
    says = (letter.place, letter.exception, letter.attempts)
    return letter.order in evidence.poison and says == (evidence.placed[letter.order], REASON, ATTEMPTS)


def _delivered_again(events: Sequence[Event], poison: Collection[str]) -> set[str]:
    deliveries = [event for event in events if event.kind == DELIVERED]
    charged_once = _more_than_once(collections.Counter(event.what for event in deliveries)) - set(poison)
    # An order that has failed once when its process stops gets all attempts from the next process.
    attempts = collections.Counter((event.pid, event.what) for event in deliveries if event.what in poison)
    return charged_once | {order for (_, order), count in attempts.items() if count > ATTEMPTS}


def _more_than_once(counts: Mapping[str, int]) -> set[str]:
    return {what for what, count in counts.items() if count > 1}


def exit_status(verdicts: Mapping[str, Verdict]) -> int:
    """Print the broken promises; return 1 if there are any, else 0."""
    broken = [(run, *item) for run, verdict in verdicts.items() for item in verdict.broken.items()]
    for run, promise, count in broken:
        print(f"BROKEN in {run}: {promise.replace('_', ' ')}: {count}")
    if not broken:
        print("Every promise was kept.")
    return 1 if broken else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the kept evidence of each run in a directory."""
    parser = argparse.ArgumentParser(description="Check again what a demo has left behind.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory
    runs = sorted(path.parent for path in directory.glob("*/kafka.json"))
    if not runs:
        parser.error(f"no run was kept in {directory}")
    verdicts = {path.name: check(Evidence.read(path)) for path in runs}
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}")
    return exit_status(verdicts)


if __name__ == "__main__":
    raise SystemExit(main())

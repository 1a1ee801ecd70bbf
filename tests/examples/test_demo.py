"""The demo runs as a user runs it, and reports a broken promise."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from rich.console import Console

from examples.demo import ledger
from examples.demo.ledger import Buried, Event, Evidence, check
from examples.demo.orders import Place
from examples.demo.picture import LivePicture, Picture, Snapshot, make_picture
from tests.examples.programs import ROOT


DEMO_SEC = 60


def run(*arguments, **environ):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEMO_SEC,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo: its output, its evidence and its duration."""
    kept = tmp_path_factory.mktemp("demo") / "kept"
    started_at = time.monotonic()
    done = run("-m", "examples.demo", "--keep", str(kept))
    return done, kept, time.monotonic() - started_at


@pytest.fixture
def kept(demo, tmp_path):
    """A copy of the demo's evidence, to be changed."""
    return shutil.copytree(demo[1], tmp_path / "kept")


@pytest.mark.slow("the demo takes most of a minute")
@pytest.mark.alone  # a minute of this machine without other tests; it comes first, so the demo runs in it
def test_demo_keeps_its_promises_within_a_minute(demo):
    done, _, seconds = demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert seconds < DEMO_SEC, done.stdout
    assert "Every promise was kept." in done.stdout


def test_demo_prints_a_table_of_what_the_evidence_says(demo):
    done, kept, _ = demo
    heading = next(line for line in done.stdout.splitlines() if "speed-up" in line)
    assert heading.split() == ["charged", "sec", "msg/s", "speed-up", "dead", "lost", "twice"]
    rows = {
        "FastStream alone": "sequential",
        "concurrent, 100": "concurrent",
        "SIGTERM, restart": "concurrent-stopped",
    }
    verdicts = {label: check(Evidence.read(kept / name)) for label, name in rows.items()}
    for label, verdict in verdicts.items():
        row = next(line for line in done.stdout.splitlines() if line.strip().startswith(label))
        charged, seconds, rate, _, dead, lost, twice = row.split()[-7:]
        assert (charged, seconds, lost, twice) == (f"{verdict.charged:,}", f"{verdict.seconds:.1f}", "0", "0")
        assert dead == ("-" if verdict.buried is None else str(verdict.buried))
        if label != "SIGTERM, restart":
            assert rate == f"{verdict.charged / verdict.seconds:,.0f}"
    alone, concurrent = verdicts["FastStream alone"], verdicts["concurrent, 100"]
    assert concurrent.charged / concurrent.seconds > 3 * alone.charged / alone.seconds


def test_demo_buries_the_orders_that_can_not_be_charged_and_charges_all_others(demo):
    """Exactly these orders are in the dead letter topic, each after two attempts, with its place and the exception."""
    done, kept, _ = demo
    for run_name in ("concurrent", "concurrent-stopped"):
        evidence = Evidence.read(kept / run_name)
        buried = evidence.buried or ()
        assert sorted(letter.order for letter in buried) == sorted(evidence.poison) != []
        for letter in buried:
            assert letter.place == evidence.placed[letter.order]
            assert (letter.exception, letter.attempts) == ("examples.demo.orders.NotChargeableError", 2)
        charged = {event.what for event in evidence.events if event.kind == ledger.CHARGED}
        assert charged == evidence.placed.keys() - set(evidence.poison)
    assert "  refused " in done.stdout


def test_demo_stops_its_service_in_mid_flight(demo):
    _, kept, _ = demo
    events = Evidence.read(kept / "concurrent-stopped").events
    in_flight, _ = (int(event.what) for event in events if event.kind == ledger.STOPPING)
    assert in_flight > 0
    assert len({event.pid for event in events}) == 2


def test_demo_fails_when_it_cannot_be_carried_out():
    done = run("-m", "examples.demo", CALF_TANSU_BIN="/nowhere/tansu")
    assert done.returncode == 2
    assert "the demo failed" in done.stderr


def tamper(kept, change):
    """Change the journal's lines and what Kafka has said."""
    journal, kafka = kept / "concurrent-stopped" / "journal", kept / "concurrent-stopped" / "kafka.json"
    lines, known = journal.read_text().splitlines(), json.loads(kafka.read_text())
    change(lines, known)
    journal.write_text("\n".join(lines))
    kafka.write_text(json.dumps(known))


def last(lines, kind):
    return next(number for number in reversed(range(len(lines))) if f" {kind} " in lines[number])


def test_the_evidence_as_it_is_holds(kept):
    tamper(kept, lambda _lines, _known: None)
    done = run("-m", "examples.demo.ledger", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda lines, _: lines.pop(last(lines, ledger.CHARGED)), "lost: 1"),
        (lambda lines, _: lines.append(lines[last(lines, ledger.DELIVERED)]), "redelivered: 1"),
        (lambda lines, _: lines.append(lines[last(lines, ledger.CHARGED)]), "charged twice: 1"),
        (lambda _, known: known["confirmed"].pop(), "unconfirmed: 1"),
        (lambda _, known: known["confirmed"].append(known["confirmed"][0]), "confirmed twice: 1"),
        (lambda _, known: known["committed"].update({"0": known["committed"]["0"] - 1}), "redelivered: 1"),
        (lambda _, known: known["confirmed"].append("order-000000"), "invented: 1"),
        (lambda _, known: known["confirmed"].append(known["poison"][0]), "invented: 1"),
        (lambda _, known: known["buried"].pop(), "lost: 1"),
        (lambda _, known: known["buried"].append(known["buried"][0]), "buried twice: 1"),
        (lambda _, known: known["buried"][0].__setitem__(2, "builtins.ValueError"), "buried wrongly: 1"),
        (lambda _, known: known["buried"][0].__setitem__(1, [0, 0]), "buried wrongly: 1"),
        (lambda _, known: known["buried"][0].__setitem__(0, known["confirmed"][0]), "buried wrongly: 1"),
    ],
)
def test_one_order_that_went_wrong_breaks_a_promise(kept, capsys, change, complaint):
    tamper(kept, change)
    assert ledger.main([str(kept)]) == 1
    assert f"BROKEN in concurrent-stopped: {complaint}\n" in capsys.readouterr().out


def test_an_order_that_is_not_committed_yet_is_not_lost():
    evidence = Evidence(
        placed={"a": Place(0, 0), "b": Place(0, 1), "c": Place(1, 0)},
        committed={0: 1},
        confirmed=["a"],
        events=[Event(10.0, 1, ledger.DELIVERED, "a"), Event(12.5, 1, ledger.CHARGED, "a")],
    )
    verdict = check(evidence)
    assert verdict.broken == {}
    assert (verdict.charged, verdict.seconds) == (1, 2.5)


def poisoned(*deliveries, buried):
    """Evidence of one order that can't be charged, in the processes to which it was delivered."""
    place = Place(0, 0)
    return Evidence(
        placed={"p": place},
        poison=["p"],
        committed={0: 1},
        confirmed=[],
        buried=[Buried("p", place, ledger.REASON, 2)] if buried else None,
        events=[Event(float(at), pid, ledger.DELIVERED, "p") for at, pid in enumerate(deliveries)],
    )


@pytest.mark.parametrize(
    ("evidence", "broken"),
    [
        (poisoned(1, 1, buried=True), {}),
        (poisoned(1, 2, 2, buried=True), {}),
        (poisoned(1, 1, 1, buried=True), {"redelivered": 1}),
        (poisoned(1, buried=False), {}),
    ],
    ids=["two attempts", "a stop after the first one", "three attempts", "FastStream alone"],
)
def test_an_order_that_can_not_be_charged_gets_two_attempts_in_one_process(evidence, broken):
    """A stop may interrupt the attempts, and the next process makes all; without a topic there is no promise."""
    assert check(evidence).broken == broken


SNAPSHOT = Snapshot(
    title="concurrent",
    orders=1000,
    charged=400,
    refused=13,
    per_second=1234.0,
    in_flight=57,
    committed=[300, 50],
    ends=[500, 500],
)


def test_the_picture_is_live_in_a_terminal_and_plain_elsewhere():
    assert isinstance(make_picture(Console(force_terminal=True, file=io.StringIO())), LivePicture)
    assert type(make_picture(Console(file=io.StringIO()))) is Picture


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_picture_shows_all_figures(is_terminal):
    shown = io.StringIO()
    with make_picture(Console(force_terminal=is_terminal, file=shown, width=120)) as picture:
        picture.say("begins")
        picture.show(SNAPSHOT)
    text = shown.getvalue()
    assert "begins" in text
    for figure in ("400", "1,000", "1,234", "57", "13", "650", "300", "50"):
        assert figure in text


def test_plain_lines_come_once_a_second_and_only_with_news():
    shown = io.StringIO()
    picture = make_picture(Console(file=shown, width=120))
    picture.show(SNAPSHOT)
    picture.show(dataclasses.replace(SNAPSHOT, charged=401))
    picture.clear()
    picture.show(SNAPSHOT)
    assert len(shown.getvalue().splitlines()) == 2

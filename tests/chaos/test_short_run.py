"""Less than half a minute of chaos on three brokers and three workers. `CHAOS_SEED` chooses the faults."""

import os

import pytest

from chaos import document
from chaos.nemesis import BROKERS
from chaos.run import BROKER_SETTINGS, HEAP_MB, RunSettings, analyse, run
from testkit.causes import Cause
from testkit.oracle import Claim


@pytest.mark.slow("24 s of faults, on three brokers and three workers that have to start")
@pytest.mark.cluster
@pytest.mark.timeout(600)
async def test_stops_kills_freezes_and_broker_faults_lose_nothing_and_keep_the_order(own_kafka, tmp_path):
    """None lost, none out of order, none twice by the same process or after a clean stop; and there were faults."""
    asked = RunSettings(seed=int(os.environ.get("CHAOS_SEED", "24")), minutes=0.4, records=12_000, gap_sec=2.8)
    said: list[str] = []
    kafka = own_kafka(BROKERS, settings=BROKER_SETTINGS, heap_mb=HEAP_MB)
    problem = await run(asked, kafka, tmp_path, said.append)
    assert not problem, said
    findings = analyse(tmp_path)
    story = "\n".join([f"CHAOS_SEED={asked.seed}", *said, document.body(findings), document.details(findings)])
    assert not findings.broken(), story
    assert findings.records == asked.records, story
    found = findings.verdict
    assert not any(found.violations[each] for each in (Claim.LOST, Claim.INVERSIONS, Claim.OVERLAPS, Claim.ORDER))
    assert found.again[Cause.CLEAN_STOP] == found.again[Cause.KEPT] == 0
    assert findings.faults.total() >= 6, story
    assert len(findings.faults) >= 5, story

"""Each example is started as a user would start it, on the real broker."""

import asyncio
import signal
import sys
from uuid import uuid4

import httpx
import pytest

from testkit.brokers import Tansu, committed, wait_until
from testkit.brokers.process import free_ports
from tests.examples.programs import PATIENCE_SEC, STOP_SEC, ensure_topic, feed, reading, running


# uvicorn raises the signal again once it has shut down.
UVICORN_STATUS = -signal.SIGTERM


def example(name, tmp_path, bootstrap, **environ):
    command = [sys.executable, f"examples/{name}.py"]
    return running(command, tmp_path / f"{name}.log", bootstrap=bootstrap, environ=environ)


def unique(count):
    run = uuid4().hex[:8]
    return [f"{run}-{number}" for number in range(count)]


async def assert_all_committed(bootstrap, group, topic, reader):
    """Compare the committed offsets of a group with the ends that a reader has found."""
    assert reader.ends
    found = await committed(bootstrap, group, topic)
    assert {partition: found.get(partition, 0) for partition in reader.ends} == reader.ends


async def answered(url, status, program):
    """Wait until a GET gives this status; return the answer."""
    answer = None

    async def asked(client):
        nonlocal answer
        program.assert_alive()
        try:
            answer = await client.get(url)
        except httpx.TransportError as error:
            answer = error
            return False
        return answer.status_code == status

    async with httpx.AsyncClient(timeout=10) as client:
        await wait_until(lambda: asked(client), PATIENCE_SEC, lambda: f"{url}: {answer!r}, {program.story()}")
    assert isinstance(answer, httpx.Response)
    return answer


@pytest.mark.slow("two services start, one after the other, and handle 1,500 purchases")
async def test_lifespan_service_charges_each_purchase_once_also_when_stopped_in_the_middle(kafka, tmp_path):
    bootstrap = kafka.bootstrap_servers
    await ensure_topic(bootstrap, "purchases")
    await ensure_topic(bootstrap, "purchase-receipts")
    ids = unique(1500)
    purchases = [{"purchase_id": purchase_id, "amount_cents": cents} for cents, purchase_id in enumerate(ids)]
    async with reading(bootstrap, "purchases") as placed, reading(bootstrap, "purchase-receipts") as receipts:
        with example("service_lifespan", tmp_path, bootstrap) as program:
            await feed(bootstrap, "purchases", purchases[:1000])
            await receipts.until_any("purchase_id", ids, program)
            assert await program.stop() == 0, program.story()
        await feed(bootstrap, "purchases", purchases[1000:])
        with example("service_lifespan", tmp_path, bootstrap) as program:
            found = await receipts.until("purchase_id", ids, program)
            assert await program.stop() == 0, program.story()
        await receipts.poll()
        assert receipts.counts("purchase_id", ids) == dict.fromkeys(ids, 1)
        await placed.until("purchase_id", ids)
    cents = {each["purchase_id"]: each["amount_cents"] for each in purchases}
    assert all(receipt["charged_cents"] == cents[receipt["purchase_id"]] for receipt in found)
    await assert_all_committed(bootstrap, "payments", "purchases", placed)
    assert "ERROR" not in program.output


async def test_router_service_labels_concurrently_and_counts_stock_in_order(kafka, tmp_path):
    bootstrap = kafka.bootstrap_servers
    for topic in ("parcels", "labels", "stock-changes", "stock-levels"):
        await ensure_topic(bootstrap, topic)
    parcels, (article,) = unique(100), unique(1)
    changes = [{"article": article, "pieces": pieces} for pieces in (5, -2, 10, -1, 7)]
    async with (
        reading(bootstrap, "parcels") as sent,
        reading(bootstrap, "labels") as labels,
        reading(bootstrap, "stock-changes") as changed,
        reading(bootstrap, "stock-levels") as levels,
    ):
        with example("service_router", tmp_path, bootstrap) as program:
            await feed(bootstrap, "parcels", [{"parcel_id": parcel, "country": "CH"} for parcel in parcels])
            # One after the other, because Kafka keeps their order only within a partition.
            seen = []
            for change in changes:
                await feed(bootstrap, "stock-changes", [change])
                seen.append(sum(each["pieces"] for each in changes[: len(seen) + 1]))
                await levels.until("pieces", seen[-1:], program)
            found = await labels.until("parcel_id", parcels, program)
            assert await program.stop() == 0, program.story()
        await sent.until("parcel_id", parcels)
        await changed.until("pieces", [change["pieces"] for change in changes])
    assert sorted(label["text"] for label in found) == sorted(f"CH-{parcel}" for parcel in parcels)
    assert [level["pieces"] for level in levels.values if level["article"] == article] == seen
    await assert_all_committed(bootstrap, "labels", "parcels", sent)
    await assert_all_committed(bootstrap, "stock", "stock-changes", changed)


async def test_asgi_service_makes_thumbnails_and_answers_probes(kafka, tmp_path):
    bootstrap = kafka.bootstrap_servers
    await ensure_topic(bootstrap, "photos")
    await ensure_topic(bootstrap, "thumbnails")
    photos, (port,) = unique(100), free_ports(1)
    async with reading(bootstrap, "photos") as sent, reading(bootstrap, "thumbnails") as thumbnails:
        with example("service_asgi", tmp_path, bootstrap, PORT=str(port)) as program:
            ready = (await answered(f"http://127.0.0.1:{port}/readyz", 200, program)).json()
            assert ready["connected"]
            assert ready["is_healthy"]
            assert ready["problems"] == []
            await feed(bootstrap, "photos", [{"photo_id": photo, "url": f"/{photo}"} for photo in photos])
            found = await thumbnails.until("photo_id", photos, program)
            await answered(f"http://127.0.0.1:{port}/livez", 204, program)
            ready = (await answered(f"http://127.0.0.1:{port}/readyz", 200, program)).json()
            assert {each["topic"] for each in ready["partitions"]} == {"photos"}
            assert await program.stop() == UVICORN_STATUS, program.story()
        await sent.until("photo_id", photos)
    assert sorted(each["url"] for each in found) == sorted(f"/{photo}?width=200" for photo in photos)
    await assert_all_committed(bootstrap, "thumbnails", "photos", sent)


async def test_fastapi_service_sends_mails_for_posted_invoices_and_answers_probes(kafka, tmp_path):
    bootstrap = kafka.bootstrap_servers
    await ensure_topic(bootstrap, "invoices")
    await ensure_topic(bootstrap, "mails")
    invoices, (port,) = unique(100), free_ports(1)
    async with reading(bootstrap, "invoices") as posted, reading(bootstrap, "mails") as mails:
        with example("service_fastapi", tmp_path, bootstrap, PORT=str(port)) as program:
            ready = (await answered(f"http://127.0.0.1:{port}/readyz", 200, program)).json()
            assert ready["is_healthy"]
            async with httpx.AsyncClient(timeout=10) as client:
                posts = (
                    client.post(f"http://127.0.0.1:{port}/invoices", json={"invoice_id": invoice, "cents": 1250})
                    for invoice in invoices
                )
                assert {answer.status_code for answer in await asyncio.gather(*posts)} == {202}
            found = await mails.until("invoice_id", invoices, program)
            await answered(f"http://127.0.0.1:{port}/livez", 204, program)
            assert await program.stop() == UVICORN_STATUS, program.story()
        await posted.until("invoice_id", invoices)
    assert {mail["text"] for mail in found} == {"12.50 EUR, please"}
    assert len(found) == len(invoices)
    await assert_all_committed(bootstrap, "invoice-mails", "invoices", posted)


@pytest.mark.parametrize("name", ["service_asgi", "service_fastapi"])
async def test_readiness_turns_red_while_the_broker_is_silent_and_liveness_does_not(name, tmp_path):
    (port,) = free_ports(1)
    ready, live = (f"http://127.0.0.1:{port}/{probe}" for probe in ("readyz", "livez"))
    with Tansu() as silent, example(name, tmp_path, silent.bootstrap_servers, PORT=str(port)) as program:
        await answered(ready, 200, program)
        silent.pause()
        await answered(ready, 503, program)
        await answered(live, 204, program)
        silent.resume()
        await answered(ready, 200, program)


@pytest.mark.parametrize("name", ["service_lifespan", "service_router", "service_fastapi"])
async def test_example_does_not_pretend_to_run_without_a_broker(name, tmp_path):
    unused, port = free_ports(2)
    with example(name, tmp_path, [f"127.0.0.1:{unused}"], PORT=str(port)) as program:
        assert await program.ended(2 * STOP_SEC) > 0, program.story()


async def test_asgi_service_is_not_alive_without_a_broker(tmp_path):
    # FastStream serves HTTP even if the broker could not be started, so the probe has to show it.
    unused, port = free_ports(2)
    with example("service_asgi", tmp_path, [f"127.0.0.1:{unused}"], PORT=str(port)) as program:
        await answered(f"http://127.0.0.1:{port}/livez", 500, program)
        await answered(f"http://127.0.0.1:{port}/readyz", 503, program)

"""The service in each of its hosts: `python -m tests.stop.apps.hosts`, or `uvicorn tests.stop.apps.hosts:app`."""
# ruff: noqa: PLC0415 - FastAPI takes a second to import, and few of them need it

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from faststream import ContextRepo, FastStream
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker

from tests.stop.apps import service
from tests.stop.apps.service import end, initialize, journal, lifetime, plan


def _faststream(kind: type[FastStream] | type[AsgiFastStream] = FastStream) -> Any:
    broker = service.new_broker()

    @asynccontextmanager
    async def lifespan(context: ContextRepo) -> AsyncGenerator[None]:
        assert context is app.context
        async with lifetime(broker):
            yield

    async def begin() -> None:
        await initialize(broker)

    async def finish() -> None:
        await end(broker)

    if plan.where == "lifespan":
        app = kind(broker, lifespan=lifespan, logger=None)
    else:
        app = kind(broker, on_startup=[begin], after_shutdown=[finish], logger=None)
    return app


def _asgi() -> Any:
    return _faststream(AsgiFastStream)


def _fastapi() -> Any:
    from fastapi import FastAPI
    from faststream_fastapi import FastStreamAPI

    broker = service.new_broker()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with lifetime(broker):
            yield

    return FastStreamAPI(broker, application=FastAPI(lifespan=lifespan))


def _fastapi_router() -> Any:
    from fastapi import FastAPI
    from faststream.kafka.fastapi import KafkaRouter

    router = KafkaRouter(plan.bootstrap_servers, middlewares=service.middlewares(), logger=None)
    service.subscribe(router.broker, router.subscriber)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with lifetime(router.broker):
            yield

    if plan.where == "hooks":
        # FastStream's hooks run after the start of the broker and before its stop.
        @router.after_startup
        async def begin(_: FastAPI) -> None:
            await initialize(router.broker)

        @router.on_broker_shutdown
        async def finish(_: FastAPI) -> None:
            await end(router.broker)

        app = FastAPI()
    else:
        app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app


async def _plain(broker: KafkaBroker) -> None:
    async with lifetime(broker, explicit=broker):
        await broker.start()
        try:
            await service.leave.wait()
        finally:
            await broker.stop()


_APPS: dict[str, Callable[[], Any]] = {
    "faststream": _faststream,
    "asgi": _asgi,
    "asgi-uvicorn": _asgi,
    "fastapi-uvicorn": _fastapi,
    "fastapi-router-uvicorn": _fastapi_router,
}


async def _main(rounds: int = 1) -> None:
    if broker is not None:
        for _ in range(rounds):
            service.leave = asyncio.Event()  # not of the loop before
            await _plain(broker)
            journal.notes("round ended")
    elif plan.host == "asgi":
        await app.run(log_level=logging.ERROR, run_extra_options={"port": 0})
    else:
        await app.run()
    service.note_tasks()
    journal.notes("main ended")


service.leave_no_core()
broker = service.new_broker() if plan.host.startswith("plain") else None
if broker is None:
    app = _APPS[plan.host]()
if __name__ == "__main__":
    for _ in range(2 if plan.host == "plain, a loop each" else 1):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if plan.loop == "uvloop" else None) as runner:
            runner.run(_main(2 if plan.host == "plain, again" else 1))

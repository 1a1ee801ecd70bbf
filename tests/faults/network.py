"""A broker behind a proxy that can be cut; other clients reach it directly."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import Self

from typing_extensions import override

from testkit.brokers import ApacheKafka
from testkit.brokers.process import free_ports


class _Late:
    """A broker setting whose value is known only when the server has its ports."""

    text = ""

    @override
    def __str__(self):
        return self.text


class Site:
    """One broker: `direct` is its own address; clients that connect to `proxied` stay on the proxy."""

    def __init__(self) -> None:
        self._inner, controller, self._outer = free_ports(3)
        listeners, advertised = _Late(), _Late()
        self.server = ApacheKafka(
            settings={
                "listeners": listeners,
                "advertised.listeners": advertised,
                "controller.quorum.voters": f"0@127.0.0.1:{controller}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            }
        )
        self.direct = self.server.bootstrap_servers
        self.proxied = [f"127.0.0.1:{self._outer}"]
        plain = f"PLAINTEXT://{self.direct[0]}"
        listeners.text = f"{plain},PROXIED://127.0.0.1:{self._inner},CONTROLLER://127.0.0.1:{controller}"
        advertised.text = f"{plain},PROXIED://{self.proxied[0]}"

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    @asynccontextmanager
    async def proxy(self):
        """Run the proxy in this event loop."""
        proxy = Proxy(self._outer, self._inner)
        await proxy.heal()
        try:
            yield proxy
        finally:
            await proxy.drop()


class Proxy:
    """Forwards bytes between two loopback ports; can drop all connections, or swallow all bytes."""

    def __init__(self, port, target):
        self._port, self._target = port, target
        self._server = None
        self._silent = False
        self._carrying = set()

    async def heal(self):
        """Forward again. Connections whose bytes were swallowed are dropped first: their streams are incomplete."""
        await self.drop()
        self._silent = False
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)

    async def drop(self):
        """Drop all connections and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        carrying = set(self._carrying)
        for each in carrying:
            each.cancel()
        if carrying:
            await asyncio.wait(carrying)

    async def swallow(self):
        """Accept connections and bytes, and forward nothing in either direction."""
        self._silent = True

    async def _carry(self, reader, writer):
        task = asyncio.current_task()
        self._carrying.add(task)
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(far_writer)
            there = asyncio.ensure_future(self._pipe(reader, far_writer))
            back = asyncio.ensure_future(self._pipe(far_reader, writer))
            try:
                await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.wait({there, back})
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in writers:
                each.transport.abort()
            self._carrying.discard(task)

    async def _pipe(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self._silent:
                    writer.write(data)
                    await writer.drain()

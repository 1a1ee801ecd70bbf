"""Carries out the faults of a plan. They may overlap, except broker faults: two of three must be alive."""

import asyncio
from collections.abc import Callable, Sequence

from chaos.group import Group, Worker, until
from chaos.plan import Fault
from testkit.brokers import ApacheKafka
from testkit.log import LogWriter


BROKERS = 3
WORKERS, MOST_WORKERS, FEWEST_WORKERS = 3, 5, 2
_VICTIM_SEC = 10.0


class Nemesis:
    """Kills, freezes, stops and restarts workers and brokers."""

    def __init__(self, kafka: ApacheKafka, group: Group, log: LogWriter, say: Callable[[str], object]) -> None:
        self._kafka = kafka
        self._group = group
        self._log = log
        self._say = say
        self._one_broker = asyncio.Lock()
        self._scalings = 0

    async def run(self, faults: Sequence[Fault]) -> None:
        """Carry out each fault at its time; when this returns, all workers and brokers run again."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number, fault in enumerate(faults):
                await asyncio.sleep(began + fault.at_sec - loop.time())
                self._say(f"  {fault.at_sec:7.1f} s  {fault.kind}")
                tasks.create_task(self._carry_out(number, fault))

    async def _carry_out(self, number: int, fault: Fault) -> None:
        if fault.kind in {"broker kill", "broker pause"}:
            async with self._one_broker:
                self._log.write("fault", number, fault.kind)
                await self._hit_broker(fault)
        else:
            self._log.write("fault", number, fault.kind)
            if not await self._hit_workers(number, fault):
                self._log.write("skipped", number)
                return
            await self._group.whole()
        self._log.write("over", number)

    async def _hit_workers(self, number: int, fault: Fault) -> bool:
        match fault.kind:
            case "rolling deploy":
                await self._deploy(number, fault)
            case "scale up":
                await self._scale(MOST_WORKERS, number, fault)
            case "scale down":
                await self._scale(FEWEST_WORKERS, number, fault)
            case "stop all":
                victims = [each for each in self._group.living if each.is_alive and not each.is_told]
                for each in victims:
                    self._group.stop(each, number)
                await asyncio.gather(*map(self._group.gone, victims))
            case "kill all":
                for each in list(self._group.living):
                    self._group.kill(each, number)
            case _:
                if not await until(lambda: bool(self._victims()), _VICTIM_SEC):
                    return False
                victims = self._victims()
                await self._hit_one(victims[int(fault.pick * len(victims))], number, fault)
        return True

    async def _deploy(self, number: int, fault: Fault) -> None:
        for each in self._group.free:
            if each.is_alive and not each.is_told:
                # In half of the deployments the new ones start before the old ones have gone.
                self._group.stop(each, number, makes_room=fault.pick < 1 / 2)
                await self._group.gone(each)
                await self._group.whole()

    async def _scale(self, workers: int, number: int, fault: Fault) -> None:
        self._scalings += 1
        mine, oldest_first = self._scalings, fault.pick < 1 / 2
        self._group.resize(workers, number, oldest_first=oldest_first)
        await asyncio.sleep(fault.lasts_sec)
        if mine == self._scalings:
            self._group.resize(WORKERS, number, oldest_first=oldest_first)

    def _victims(self) -> list[Worker]:
        return [each for each in self._group.free if each.has_begun]

    async def _hit_one(self, victim: Worker, number: int, fault: Fault) -> None:
        group = self._group
        if fault.kind == "stop":
            group.stop(victim, number)
            await group.gone(victim)
        elif fault.kind == "kill":
            group.kill(victim, number)
        else:
            group.freeze(victim, number)
            try:
                await asyncio.sleep(fault.lasts_sec)
            finally:
                group.thaw(victim, number)

    async def _hit_broker(self, fault: Fault) -> None:
        kafka, broker = self._kafka, int(fault.pick * BROKERS)
        self._log.write("down", broker)
        if fault.kind == "broker kill":
            kafka.kill(broker)
            await asyncio.sleep(fault.lasts_sec)
            await asyncio.to_thread(kafka.restart, broker)
        else:
            kafka.pause(broker)
            try:
                await asyncio.sleep(fault.lasts_sec)
            finally:
                kafka.resume(broker)
        self._log.write("up", broker)

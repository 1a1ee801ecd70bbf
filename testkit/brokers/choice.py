"""Decides on which Kafka to run."""

import os
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum

from .apache import ApacheKafka, java_and_maven_answer
from .redpanda import Redpanda, docker_answers
from .server import External, KafkaServer
from .tansu import Tansu


__all__ = ["Kind", "choose_broker", "decide"]


class Kind(StrEnum):
    """The Kafkas to choose from, by the names that `TEST_KAFKA` takes."""

    EXTERNAL = External.name
    REDPANDA = Redpanda.name
    APACHE_KAFKA = ApacheKafka.name
    TANSU = Tansu.name


def decide(environ: Mapping[str, str], *, docker: Callable[[], bool], java: Callable[[], bool]) -> tuple[Kind, str]:
    """Return which Kafka to use and why; `docker` and `java` say what this machine has, and are called only if needed.

    `TEST_KAFKA` overrides everything. Raises ValueError when it names none, or `external` without addresses.
    """
    addresses = environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
    forced = environ.get("TEST_KAFKA", "")
    if forced:
        if forced not in set(Kind) or (forced == Kind.EXTERNAL and not addresses):
            raise ValueError(
                f"TEST_KAFKA={forced!r}: allowed are {', '.join(Kind)}, the first with KAFKA_BOOTSTRAP_SERVERS"
            )
        return Kind(forced), "TEST_KAFKA says so"
    if addresses:
        return Kind.EXTERNAL, f"KAFKA_BOOTSTRAP_SERVERS={addresses}"
    if docker():
        return Kind.REDPANDA, "a Docker engine answers"
    if java():
        return Kind.APACHE_KAFKA, "no Docker engine, but java and mvn are there"
    return Kind.TANSU, "neither a Docker engine nor java and mvn"


def choose_broker(say: Callable[[str], object] | None = None) -> KafkaServer:
    """Return the Kafka to run on, not started yet; `say` (or stderr) gets a line with the choice and its reason."""
    kind, why = decide(os.environ, docker=docker_answers, java=java_and_maven_answer)
    line = f"Kafka: {kind} ({why})"
    if say is None:
        sys.stderr.write(f"{line}\n")
    else:
        say(line)
    match kind:
        case Kind.EXTERNAL:
            return External([part.strip() for part in os.environ["KAFKA_BOOTSTRAP_SERVERS"].split(",") if part.strip()])
        case Kind.REDPANDA:
            return Redpanda()
        case Kind.APACHE_KAFKA:
            return ApacheKafka()
        case Kind.TANSU:
            return Tansu()

"""The jars of Apache Kafka, fetched once by Maven into the checkout."""

import shutil
import subprocess
from pathlib import Path

from .once import made_once
from .server import BrokerError


__all__ = ["VERSION", "apache_kafka_jars"]

VERSION = "4.3.1"
# slf4j-simple, because Kafka brings no logging backend along: without it a broker that fails to start says nothing.
_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def apache_kafka_jars() -> Path:
    """Return the folder with all jars, after fetching them if they are not there yet."""
    return made_once(f"apache-kafka-{VERSION}", _fetch)


def _fetch(folder: Path) -> None:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise BrokerError("mvn is not on the PATH: the jars of Apache Kafka cannot be fetched")
    pom = folder.with_name("pom.xml")
    pom.write_text(_POM)
    command = [mvn, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, text=True, timeout=600
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerError("Maven did not fetch the jars of Apache Kafka within 600 s") from error
    if done.returncode != 0 or not (folder / f"kafka_2.13-{VERSION}.jar").is_file():
        raise BrokerError(f"Maven did not fetch the jars of Apache Kafka:\n{done.stdout}{done.stderr}")

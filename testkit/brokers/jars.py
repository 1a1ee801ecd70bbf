"""The jars of Apache Kafka, fetched once by Maven into the checkout."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from .server import BrokerError


__all__ = ["apache_kafka_jars"]

_VERSION = "4.3.1"
_CACHE = Path(__file__).parents[2] / ".kafka"
# slf4j-simple, because Kafka brings no logging backend along: without it a broker that fails to start says nothing.
_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def apache_kafka_jars() -> Path:
    """Return the folder with all jars, after fetching them if they are not there yet."""
    jars = _CACHE / f"apache-kafka-{_VERSION}"
    if jars.is_dir():
        return jars
    mvn = shutil.which("mvn")
    if mvn is None:
        raise BrokerError("mvn is not on the PATH: the jars of Apache Kafka cannot be fetched")
    _CACHE.mkdir(exist_ok=True)
    # Under another name until the download is complete, so that an interrupted one is never used.
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=_CACHE, ignore_cleanup_errors=True) as scratch:
        pom, fetched = Path(scratch, "pom.xml"), Path(scratch, "lib")
        pom.write_text(_POM)
        command = [mvn, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, stdin=subprocess.DEVNULL, text=True, timeout=600
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerError("Maven did not fetch the jars of Apache Kafka within 600 s") from error
        if done.returncode != 0 or not (fetched / f"kafka_2.13-{_VERSION}.jar").is_file():
            raise BrokerError(f"Maven did not fetch the jars of Apache Kafka:\n{done.stdout}{done.stderr}")
        try:
            fetched.rename(jars)
        except OSError:
            # Another test run has finished the download first.
            if not jars.is_dir():
                raise
    return jars

"""Brokers for the demo and the tests: a configured one, Apache Kafka from KAFKA_HOME, or the embedded one.

The embedded broker (noida-db) is for development only: a kill -9 of it can lose up to about a second of acknowledged
writes, and its coordinator elects no new leader, so every worker uses static membership.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import resources, util
from typing import NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from state.config import Refused
from thousandfold import children

KAFKA, EMBEDDED, EXTERNAL = "kafka", "embedded", "external"
LABELS = {
    KAFKA: "Apache Kafka from KAFKA_HOME",
    EMBEDDED: "noida-db, embedded, development only",
    EXTERNAL: "the configured brokers",
}
# The embedded broker rewrites one JSON file whole and keeps everything in memory.
EMBEDDED_CAP_BYTES = 2_000_000_000
START_TIMEOUT_S = 120.0


class BrokerFailed(Refused, RuntimeError):
    """A broker could not be started or did not answer; the message holds the end of its log."""


class Listener(NamedTuple):
    """A further listener of our Apache Kafka on loopback that asks for TLS or a password: what secured clients are tested on."""

    protocol: str
    """SSL, SASL_PLAINTEXT or SASL_SSL"""
    port: int
    settings: Mapping[str, str]
    """Kafka's own names, such as `ssl.keystore.location`, for this listener alone"""


class Broker(children.Server):
    """A running broker: `name`, `bootstrap`, and for one of ours its pid, data directory and log."""

    def __init__(self, name: str, bootstrap: str, argv: tuple[str, ...] = (), directory: pathlib.Path | None = None) -> None:
        super().__init__(name, argv, directory)
        self.bootstrap, self.label = bootstrap, LABELS[name]

    @property
    def keep_for_ever(self) -> bool:
        """Whether topics must be created without retention: the embedded broker drops records by their own old time."""
        return self.name == EMBEDDED

    @property
    def log(self) -> pathlib.Path:
        """Where its output goes."""
        if self.directory is None:
            raise BrokerFailed("the configured brokers write their own logs")
        return self.directory / "broker.log"

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it on its data, old or new, and wait until it answers.

        Raises:
            BrokerFailed: it ended, or did not answer in time.
        """
        _wait_until_it_answers(self.bootstrap, self._spawn(self.log), self.log, timeout_s)

    def data_bytes(self) -> int:
        """Size of its data on disk; 0 when it is not ours."""
        if self.directory is None:
            return 0
        total = 0
        for file in self.directory.rglob("*"):
            # The broker replaces and removes files meanwhile.
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size if file.is_file() else 0
        return total

    def full(self) -> bool:
        """Whether the embedded broker holds as much as it may; whoever produces must then stop."""
        return self.name == EMBEDDED and self.data_bytes() > EMBEDDED_CAP_BYTES


def available(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the brokers that can be started here, the preferred one first."""
    found = []
    if environment.get("KAFKA_HOME") and not kafka_problem(environment):
        found.append(KAFKA)
    if util.find_spec("noida_db") is not None:
        found.append(EMBEDDED)
    return found


@contextlib.contextmanager
def running(
    name: str,
    directory: pathlib.Path | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    secured: Listener | None = None,
) -> Iterator[Broker]:
    """Start the broker `name` in a fresh folder (under `directory`, else a temporary one that is removed); stop it at the end.

    `secured` is for Apache Kafka; the broker's `bootstrap` stays that of the plain listener.

    Raises:
        BrokerFailed: it cannot be started; the message says what is missing.
    """
    with tempfile.TemporaryDirectory(prefix=f"thousandfold-{name}-", dir=directory, ignore_cleanup_errors=True) as fresh:
        home = pathlib.Path(fresh)
        broker = _kafka(home, environment, secured) if name == KAFKA else _embedded(home)
        try:
            broker.start()
            yield broker
        finally:
            broker.stop()


@contextlib.contextmanager
def chosen(
    bootstrap: str | None, directory: pathlib.Path | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[Broker]:
    """The broker of the demo: `bootstrap` when given, else Kafka when KAFKA_HOME is set, else the embedded one.

    Raises:
        BrokerFailed: none of them can be had; the message says what to install or set.
    """
    if bootstrap:
        yield Broker(EXTERNAL, bootstrap)
        return
    if environment.get("KAFKA_HOME"):
        # Asked for by name: a broken KAFKA_HOME is an error, not a reason to take another broker in silence.
        name = KAFKA
    elif EMBEDDED in available(environment):
        name = EMBEDDED
    else:
        raise BrokerFailed(
            "no broker: give --bootstrap HOST:PORT, or set KAFKA_HOME to an unpacked Apache Kafka, "
            "or install the embedded one: pip install 'thousandfold[embedded]'"
        )
    with running(name, directory, environment) as broker:
        yield broker


def kafka_problem(environment: Mapping[str, str]) -> str:
    """Why KAFKA_HOME cannot be used, with what to do; empty when it can."""
    home = pathlib.Path(environment.get("KAFKA_HOME", ""))
    for script in ("kafka-storage.sh", "kafka-server-start.sh"):
        if not (home / "bin" / script).is_file():
            return f"KAFKA_HOME={home}: bin/{script} is not there; unpack an Apache Kafka 4 distribution and point to it"
    if not environment.get("JAVA_HOME") and shutil.which("java", path=environment.get("PATH")) is None:
        return "KAFKA_HOME is set but no java is on PATH; install a Java 17 runtime, or unset KAFKA_HOME"
    return ""


def _kafka(home: pathlib.Path, environment: Mapping[str, str], secured: Listener | None) -> Broker:
    problem = kafka_problem(environment)
    if problem:
        raise BrokerFailed(problem)
    scripts = pathlib.Path(environment["KAFKA_HOME"]) / "bin"
    port, control = children.free_ports(2)
    listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{control}"
    protocols, further = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT", ""
    if secured:
        listeners += f",SECURED://127.0.0.1:{secured.port}"
        protocols += f",SECURED:{secured.protocol}"
        further = "".join(f"listener.name.secured.{key}={value}\n" for key, value in secured.settings.items())
    settings = home / "server.properties"
    settings.write_text(
        f"""process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{control}
listeners={listeners}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
listener.security.protocol.map={protocols}
inter.broker.listener.name=PLAINTEXT
log.dirs={home / "data"}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=10
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=1000
auto.create.topics.enable=false
socket.request.max.bytes=200000000
{further}"""
    )
    made = subprocess.run([scripts / "kafka-storage.sh", "random-uuid"], capture_output=True, text=True, check=False)
    identity = made.stdout.strip().splitlines()[-1] if made.returncode == 0 and made.stdout.strip() else ""
    command = [str(scripts / "kafka-storage.sh"), "format", "-t", identity, "-c", str(settings), "--standalone"]
    formatted = subprocess.run(command, capture_output=True, text=True, check=False)
    if formatted.returncode != 0:
        raise BrokerFailed(f"kafka-storage.sh format failed: {made.stderr}{formatted.stdout}{formatted.stderr}")
    return Broker(KAFKA, f"127.0.0.1:{port}", (str(scripts / "kafka-server-start.sh"), str(settings)), home)


def _embedded(home: pathlib.Path) -> Broker:
    if util.find_spec("noida_db") is None:
        raise BrokerFailed("the embedded broker is not installed: pip install 'thousandfold[embedded]'")
    # The binary itself, not the wheel's launcher: a kill of the launcher would leave the server running.
    binary = pathlib.Path(str(resources.files("noida_db") / "noida-db"))
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    (port,) = children.free_ports(1)
    data = str(home / "data")
    argv = (str(binary), "start", "--data-dir", data, "--host", "127.0.0.1", "--only", "kafka", "--kafka-port", str(port))
    return Broker(EMBEDDED, f"127.0.0.1:{port}", argv, home)


def _wait_until_it_answers(bootstrap: str, process: subprocess.Popen[bytes], log: pathlib.Path, timeout_s: float) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise BrokerFailed(f"the broker ended with code {process.returncode}:\n{children.tail(log)}")
        with contextlib.suppress(KafkaException):
            if admin.list_topics(timeout=1).brokers:
                return
    children.kill(process)
    raise BrokerFailed(f"the broker at {bootstrap} did not answer within {timeout_s:g} s:\n{children.tail(log)}")

"""What the Kafka clients are told: address, security, sizes. Secrets come from the environment, by the names in the file."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from state.config import Config, ConfigError

RAW_HEADROOM = 2
HEADER_BYTES = 65_536
DERIVED_HEADROOM = 4


class Credentials(NamedTuple):
    """How to prove who we are; user name and password are empty without SASL, `ca_file` without TLS or for the system's."""

    protocol: str
    mechanism: str
    username: str
    password: str
    ca_file: str

    @property
    def sasl(self) -> bool:
        """Whether a user name and a password are sent."""
        return self.protocol.startswith("SASL")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol.endswith("SSL")


def credentials(config: Config, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Read what `config.security` names.

    Raises:
        ConfigError: SASL is configured and a variable is not set, or the certificate file cannot be read.
    """
    security = config.security
    protocol = security.kafka_protocol
    username = password = ""
    if protocol.startswith("SASL"):
        username = _secret(security.kafka_username_env, "security.kafka_username_env", environment)
        password = _secret(security.kafka_password_env, "security.kafka_password_env", environment)
    if protocol.endswith("SSL") and security.kafka_ca_file and not os.access(security.kafka_ca_file, os.R_OK):
        raise ConfigError(f"security.kafka_ca_file: {security.kafka_ca_file} cannot be read")
    return Credentials(protocol, security.kafka_mechanism, username, password, security.kafka_ca_file)


def client(config: Config, /, **extra: Any) -> dict[str, Any]:
    """Settings of any confluent-kafka client; `extra` (as `**{"group.id": ...}`) comes last and wins.

    Raises:
        ConfigError: as `credentials`.
    """
    known = credentials(config)
    settings: dict[str, Any] = {
        "bootstrap.servers": config.kafka.bootstrap,
        "security.protocol": known.protocol,
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 1000,
    }
    if known.sasl:
        settings |= {"sasl.mechanism": known.mechanism, "sasl.username": known.username, "sasl.password": known.password}
    if known.tls and known.ca_file:
        settings["ssl.ca.location"] = known.ca_file
    return settings | extra


def producer(config: Config, /, **extra: Any) -> dict[str, Any]:
    """Settings of a producer that loses and reorders nothing: idempotent, acknowledged by all, up to the largest message."""
    safe: dict[str, Any] = {
        "enable.idempotence": True,
        "acks": "all",
        "message.max.bytes": largest_message_bytes(config),
        "linger.ms": 5,
    }
    return client(config, **(safe | extra))


def consumer(config: Config, /, **extra: Any) -> dict[str, Any]:
    """Settings of a consumer that commits nothing by itself and is not starved by librdkafka's default back-off.

    `group.id` is required by librdkafka even with `assign()`, so one is always given.
    """
    plain: dict[str, Any] = {
        "group.id": f"{config.kafka.group}-reader",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "fetch.queue.backoff.ms": 5,
        "fetch.message.max.bytes": largest_message_bytes(config),
        "receive.message.max.bytes": max(100_000_000, 2 * largest_message_bytes(config)),
        "allow.auto.create.topics": False,
    }
    return client(config, **(plain | extra))


def raw_message_bytes(config: Config) -> int:
    """`max.message.bytes` of the raw topics: above the accepted size, so that a larger input arrives and is dead-lettered."""
    return RAW_HEADROOM * config.topics.max_message_bytes + HEADER_BYTES


def largest_message_bytes(config: Config) -> int:
    """`max.message.bytes` of every other topic: one list with all its features and its support rows fits."""
    return DERIVED_HEADROOM * config.topics.max_message_bytes + HEADER_BYTES


def _secret(variable: str, setting: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "")
    if not value:
        raise ConfigError(f"{setting}: the environment variable {variable} is not set; export it, or name another variable")
    return value

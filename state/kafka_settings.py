"""What the Kafka clients are told: address, security, sizes."""

from typing import Any

from state import credentials
from state.config import Config

RAW_HEADROOM = 2
HEADER_BYTES = 65_536
DERIVED_HEADROOM = 4
LARGEST_RESPONSE_BYTES = 2**31 - 1
"""The most that the library can be told to accept. Brokers keep to what a fetch asks for, but the embedded one sends all that a
partition has left, and a reader that refuses it (by default above 100 MB) asks for it again for ever."""


def client(config: Config, /, **extra: Any) -> dict[str, Any]:
    """Settings of any confluent-kafka client; `extra` (as `**{"group.id": ...}`) comes last and wins.

    Raises:
        ConfigError: as `credentials.kafka`.
    """
    known = credentials.kafka(config)
    settings: dict[str, Any] = {
        "bootstrap.servers": config.kafka.bootstrap,
        "security.protocol": known.protocol,
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 1000,
        "receive.message.max.bytes": LARGEST_RESPONSE_BYTES,
    }
    if known.sasl:
        settings |= {"sasl.mechanism": known.mechanism, "sasl.username": known.username, "sasl.password": known.password}
    if known.tls and known.ca_file:
        settings["ssl.ca.location"] = known.ca_file
    if known.certificate_file:
        settings |= {"ssl.certificate.location": known.certificate_file, "ssl.key.location": known.key_file}
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
        "allow.auto.create.topics": False,
    }
    return client(config, **(plain | extra))


def raw_message_bytes(config: Config) -> int:
    """`max.message.bytes` of the raw topics: above the accepted size, so that a larger input arrives and is dead-lettered."""
    return RAW_HEADROOM * config.topics.max_message_bytes + HEADER_BYTES


def largest_message_bytes(config: Config) -> int:
    """`max.message.bytes` of every other topic: one list with all its features and its support rows fits."""
    return DERIVED_HEADROOM * config.topics.max_message_bytes + HEADER_BYTES

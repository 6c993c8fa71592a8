"""Episodes from Kafka: every partition assigned from the snapshot's offsets, nothing committed to the broker."""

import logging

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from learner.episodes import Message
from state import kafka_settings
from state.config import Config

log = logging.getLogger(__name__)
TIMEOUT_S = 15.0


def _report(error: KafkaError) -> None:
    if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - librdkafka's own code
        log.warning("no broker answers; trying again until one does")


class KafkaInput:
    """Reads all partitions of the `episodes` topic."""

    def __init__(self, config: Config) -> None:
        self._topic, self._partitions = config.topics.episodes, range(config.kafka.partitions)
        # Auto-commit stays off: the manifest of the newest snapshot is the only truth about what was consumed.
        # librdkafka would print each of its twenty attempts a second to reconnect; `error_cb` says once that no broker answers.
        own = {"group.id": f"{config.kafka.group}-learner", "isolation.level": "read_committed", "log_level": 2}
        self._consumer = Consumer(kafka_settings.consumer(config, **own, error_cb=_report))
        self._positions: dict[tuple[str, int], int] = {}
        self.lost = 0

    def assign(self, saved: dict[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Start at `saved` offsets, or at the earliest kept one; returns where each partition starts.

        Offsets that the broker no longer has are counted in `lost` and logged: a gap in the plan shows them for ever.

        Raises:
            KafkaException: the brokers do not answer.
        """
        for partition in self._partitions:
            key = (self._topic, partition)
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=TIMEOUT_S)
            wanted = saved.get(key, low)
            start = min(max(wanted, low), high)
            if start > wanted:
                self.lost += start - wanted
                log.error(
                    "%s-%d: offsets %d to %d are gone (retention); replay the raw topics to train on them", *key, wanted, start
                )
            elif start < wanted:
                log.warning("%s-%d ends at %d, before the snapshot's %d: the broker lost its newest records", *key, start, wanted)
            self._positions[key] = start
        self._consumer.assign([TopicPartition(*key, start) for key, start in self._positions.items()])
        return dict(self._positions)

    def fetch(self, limit: int, deadline_s: float) -> list[Message]:
        """Up to `limit` messages within `deadline_s`; passing troubles of the brokers are logged.

        Raises:
            KafkaException: the client can go on no more.
        """
        found = []
        for message in self._consumer.consume(limit, deadline_s):
            error = message.error()
            if error is None:
                topic, partition, offset = str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)
                self._positions[topic, partition] = offset + 1
                found.append(Message(topic, partition, offset, message.key(), message.value() or b""))
            elif error.fatal():
                raise KafkaException(error)
            elif error.code() not in {KafkaError._PARTITION_EOF, KafkaError._TRANSPORT}:  # noqa: SLF001 - librdkafka's own codes
                log.warning("%s: %s", self._topic, error.str())
        return found

    def lag(self) -> dict[tuple[str, int], int]:
        """Messages behind the newest known, by (topic, partition); asks no broker."""
        out = {}
        for key, position in self._positions.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
            out[key] = max(high - position, 0)
        return out

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()

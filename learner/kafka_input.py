"""Episodes and switches from Kafka: every partition assigned from the snapshot's offsets, nothing committed to the broker."""

import logging
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from learner.episodes import Message
from state import kafka_settings
from state.config import Config

log = logging.getLogger(__name__)
TIMEOUT_S = 15.0
SWITCHES = 1000


def _report(error: KafkaError) -> None:
    if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - librdkafka's own code
        log.warning("no broker answers; trying again until one does")


class KafkaInput:
    """Reads all partitions of `episodes`, and `control` beside them: a switch does not wait behind fetched episodes."""

    def __init__(self, config: Config) -> None:
        t = config.topics
        # Auto-commit stays off: the manifest of the newest snapshot is the only truth about what was consumed.
        # librdkafka would print each of its twenty attempts a second to reconnect; `error_cb` says once that no broker answers.
        own = {"group.id": f"{config.kafka.group}-learner", "isolation.level": "read_committed", "log_level": 2}
        self._episodes = Consumer(kafka_settings.consumer(config, **own, error_cb=_report))
        self._control = Consumer(kafka_settings.consumer(config, **own, **{"enable.partition.eof": True}))
        self._readers = {(t.episodes, p): self._episodes for p in range(config.kafka.partitions)}
        self._readers[t.control, 0] = self._control
        self._positions: dict[tuple[str, int], int] = {}
        self._switches: list[Message] = []
        self.lost = 0

    def assign(self, saved: dict[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Start at `saved` offsets, or at the earliest kept one; returns where each partition starts.

        Offsets that the broker no longer has are counted in `lost` and logged: a gap in the plan shows them for ever. All
        switches that came so far are read here, so that the first fetch brings them before its steps.

        Raises:
            KafkaException: the brokers do not answer.
        """
        for key, reader in self._readers.items():
            low, high = reader.get_watermark_offsets(TopicPartition(*key), timeout=TIMEOUT_S)
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
        for reader in (self._episodes, self._control):
            reader.assign([TopicPartition(*key, self._positions[key]) for key, own in self._readers.items() if own is reader])
        starts = dict(self._positions)
        self._catch_up()
        return starts

    def fetch(self, limit: int, deadline_s: float) -> list[Message]:
        """Up to `limit` episodes within `deadline_s`, and the switches that have come; passing troubles of brokers are logged.

        Raises:
            KafkaException: a client can go on no more.
        """
        found, _ = self._take(self._episodes, limit, deadline_s)
        new, _ = self._take(self._control, SWITCHES, 0.0)
        switches, self._switches = [*self._switches, *new], []
        return found + switches

    def lag(self) -> dict[tuple[str, int], int]:
        """Messages behind the newest known, by (topic, partition); asks no broker."""
        out = {}
        for key, position in self._positions.items():
            _, high = self._readers[key].get_watermark_offsets(TopicPartition(*key), cached=True)
            out[key] = max(high - position, 0)
        return out

    def close(self) -> None:
        """Leave the brokers."""
        self._episodes.close()
        self._control.close()

    def _catch_up(self) -> None:
        until_s, ended = time.monotonic() + TIMEOUT_S, False
        while not ended:
            if time.monotonic() > until_s:
                problem = "the switches of the topic control could not be read to their end"
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, problem))  # noqa: SLF001 - librdkafka's own code
            found, ended = self._take(self._control, SWITCHES, 0.2)
            self._switches += found

    def _take(self, reader: Consumer, limit: int, deadline_s: float) -> tuple[list[Message], bool]:
        """Messages, and whether the end of a partition was met, where the reader is told of ends."""
        found, ended = [], False
        for message in reader.consume(limit, deadline_s):
            error = message.error()
            if error is None:
                topic, partition, offset = str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)
                self._positions[topic, partition] = offset + 1
                found.append(Message(topic, partition, offset, message.key(), message.value() or b""))
            elif error.fatal():
                raise KafkaException(error)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's own codes
                ended = True
                # Past the marks that transactions leave, which are no messages and would look like lag for ever.
                at = str(message.topic()), int(message.partition() or 0)
                self._positions[at] = max(self._positions[at], int(message.offset() or 0))
            elif error.code() != KafkaError._TRANSPORT:  # noqa: SLF001
                log.warning("%s: %s", message.topic(), error.str())
        return found, ended

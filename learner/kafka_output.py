"""Plan records, dead letters and announcements, written in transactions by a producer that fences every older one."""

import logging
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer

from learner.loop import DeadLetter, Note
from state import dead_letters, kafka_settings, snapshots
from state.config import Config
from state.snapshots import Manifest

log = logging.getLogger(__name__)
POLL_S = 1.0
OPEN_S = 30.0
_FENCED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}  # noqa: SLF001

Record = tuple[str, bytes | None, bytes, dict[str, str | bytes | None]]


class Fenced(RuntimeError):
    """Another learner with the same group has started; this one must not go on."""


class Interrupted(RuntimeError):
    """The process was asked to stop while a record could not be written; what it covers was not trained."""


class KafkaOutput:
    """One transactional producer per learner shard."""

    def __init__(self, config: Config, stopping: Callable[[], bool], shard: int = 0) -> None:
        """`stopping` says whether to give up while the brokers cannot be reached."""
        self._topics, self._stopping = config.topics, stopping
        self.name = f"{config.kafka.group}-learner-{shard}"
        self._producer = Producer(
            kafka_settings.producer(
                config, **{"transactional.id": self.name, "transaction.timeout.ms": 30_000, "linger.ms": 0, "log_level": 2}
            )
        )

    def open(self) -> None:
        """Fence every older producer of this name.

        Raises:
            KafkaException: the brokers did not answer in time.
            Fenced: a newer one exists already.
        """
        try:
            self._producer.init_transactions(OPEN_S)
        except KafkaException as error:
            self._raise_if_fatal(error)
            raise

    def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
        """Write a plan record with the dead letters of its fetch and notes for `control`, all or nothing; then it is durable.

        Raises:
            Fenced: another learner took over.
            Interrupted: asked to stop before it could be written.
        """
        records: list[Record] = [(self._topics.plan, None, record, {})]
        for message, letter in letters:
            records.append((self._topics.dead_letters, message.key, message.value, {**dict(dead_letters.headers(letter))}))
        records += [(self._topics.control, key, value, {}) for key, value in notes]
        self._transact(records)

    def announce(self, manifest: Manifest) -> None:
        """Tell readers of `snapshots` that a snapshot is whole. Raises like `write`."""
        self._transact([(self._topics.snapshots, None, snapshots.pack(manifest), {})])

    def _transact(self, records: Sequence[Record]) -> None:
        while not self._attempt(records):
            if self._stopping():
                raise Interrupted("asked to stop while the brokers refused a record; what was not planned was not run")

    def _attempt(self, records: Sequence[Record]) -> bool:
        """One transaction; False if it was rolled back and can be tried again."""
        try:
            self._producer.begin_transaction()
            for topic, key, value, headers in records:
                self._producer.produce(topic, value, key, headers=headers)
            self._again(self._producer.commit_transaction)
        except KafkaException as error:
            self._raise_if_fatal(error)
            log.warning("transaction rolled back, trying again: %s", error.args[0].str())
            self._again(self._producer.abort_transaction)
            return False
        return True

    def _again(self, call: Callable[[float], object]) -> None:
        """Repeat a call until it neither times out nor meets a passing trouble."""
        while True:
            try:
                call(POLL_S)
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                if self._stopping():
                    raise Interrupted(
                        "asked to stop while the brokers did not answer; what was not planned was not run"
                    ) from error
                log.warning("waiting for the brokers: %s", error.args[0].str())
            else:
                return

    def _raise_if_fatal(self, error: KafkaException) -> None:
        found: KafkaError = error.args[0]
        if found.code() in _FENCED:
            raise Fenced(f"{self.name}: another learner of this group has taken over ({found.str()})") from error
        if found.fatal():
            raise error

"""The topics on the wire: the table, how to create them, and the check that every process makes before it runs."""

import time
from collections.abc import Iterable
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicMetadata,
)

from state import kafka_settings
from state.config import Config, Refused

KEPT_FOR_EVER = -1
HINT = "run: thousandfold topics create --config FILE"
REFUSALS = {KafkaError._AUTHENTICATION, KafkaError._SSL}  # noqa: SLF001 the library's public names of the codes
"""What waiting longer does not mend."""


class Topic(NamedTuple):
    """One row of the table; `retention_ms` of -1 keeps for ever; a compacted one keeps the newest record of every key."""

    name: str
    partitions: int
    retention_ms: int
    max_message_bytes: int
    compacted: bool = False


class TopicsWrong(Refused, RuntimeError):
    """The brokers' topics are not those of the configuration; the message says what differs and what to run."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class BrokerUnreachable(Refused, RuntimeError):
    """No broker answered at `kafka.bootstrap`; the message says where and why, `why` only why."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def table(config: Config, *, keep_for_ever: bool = False) -> tuple[Topic, ...]:
    """Every topic of a deployment. All data topics have the same number of partitions, the others one.

    `keep_for_ever` switches retention off, for the embedded broker, which drops records by their own time.
    """
    t = config.topics
    raw_ms = KEPT_FOR_EVER if keep_for_ever else round(t.raw_retention_hours * 3_600_000)
    derived_ms = KEPT_FOR_EVER if keep_for_ever else round(t.derived_retention_hours * 3_600_000)
    raw, largest = kafka_settings.raw_message_bytes(config), kafka_settings.largest_message_bytes(config)
    many = config.kafka.partitions
    return (
        Topic(t.impressions, many, raw_ms, raw),
        Topic(t.clicks, many, raw_ms, raw),
        Topic(t.enriched, many, derived_ms, largest),
        Topic(t.samples, many, derived_ms, largest),
        Topic(t.episodes, many, derived_ms, largest),
        Topic(t.plan, 1, raw_ms, largest),
        Topic(t.snapshots, 1, raw_ms, largest),
        Topic(t.deltas, 1, derived_ms, largest),
        Topic(t.control, 1, KEPT_FOR_EVER, raw, compacted=True),
        Topic(t.dead_letters, 1, raw_ms, largest),
    )


def create(config: Config, *, keep_for_ever: bool = False, timeout_s: float = 15.0) -> list[str]:
    """Create what is missing, raise retention and message size where they are too small, compact what is to be compacted.

    Returns what was done, in words.

    Raises:
        TopicsWrong: something differs that only an operator may change (a topic's partitions).
        BrokerUnreachable: no broker answers.
    """
    admin, cluster = connected(config, timeout_s=timeout_s)
    rows, present = table(config, keep_for_ever=keep_for_ever), cluster.topics
    done = _create_missing(admin, config, [row for row in rows if row.name not in present], timeout_s)
    existing = [row for row in rows if row.name in present]
    done += _repair(admin, existing, timeout_s)
    problems = _partition_problems(config, existing, present)
    if problems:
        raise TopicsWrong(problems)
    return done


def check(config: Config, *, timeout_s: float = 15.0) -> list[str]:
    """What differs between the brokers and the configuration, one sentence each, with what to do; empty when all is well.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    admin, cluster = connected(config, timeout_s=timeout_s)
    rows, present = table(config), cluster.topics
    missing = [row.name for row in rows if row.name not in present]
    existing = [row for row in rows if row.name in present]
    problems = [f"missing: {', '.join(missing)}; {HINT}"] if missing else []
    problems += _partition_problems(config, existing, present)
    problems += [f"{wrong.topic}: {wrong.problem}; {HINT}" for wrong in _wrong(admin, existing, timeout_s)]
    return problems


def require(config: Config, *, timeout_s: float = 15.0) -> None:
    """The check that every process makes at start.

    Raises:
        TopicsWrong: the topics are not those of the configuration.
        BrokerUnreachable: no broker answers.
    """
    problems = check(config, timeout_s=timeout_s)
    if problems:
        raise TopicsWrong(problems)


def connected(config: Config, *, timeout_s: float) -> tuple[AdminClient, ClusterMetadata]:
    """A client that has reached the brokers, and what they said of themselves.

    The caller keeps the client in a name until its futures are done: as a temporary it is collected first (_DESTROY).

    Raises:
        BrokerUnreachable: no broker answers, refuses the password, or shows a certificate that is not trusted.
    """
    told: list[KafkaError] = []
    admin = AdminClient(kafka_settings.client(config, log_level=0, error_cb=told.append))
    began, patience_s = time.monotonic(), 1.0
    while True:
        left_s = timeout_s - (time.monotonic() - began)
        try:
            return admin, admin.list_topics(timeout=max(0.0, min(patience_s, left_s)))
        except KafkaException as error:
            # The exception says only that no answer came; why is told to the callback, by the way.
            admin.poll(0)
            if left_s > patience_s and not {e.code() for e in told} & REFUSALS:
                patience_s *= 2
                continue
            reasons = [e.str() for e in told if e.code() != KafkaError._ALL_BROKERS_DOWN]  # noqa: SLF001 the library's public name of the code
            why = reasons[-1] if reasons else error.args[0].str()
            raise BrokerUnreachable(
                f"no broker answered at {config.kafka.bootstrap} within {timeout_s:g} s ({why}); "
                "check kafka.bootstrap and security, or run: thousandfold doctor",
                why,
            ) from error


def _create_missing(admin: AdminClient, config: Config, rows: list[Topic], timeout_s: float) -> list[str]:
    if not rows:
        return []
    replication = config.kafka.replication
    new = [
        NewTopic(
            row.name,
            num_partitions=row.partitions,
            replication_factor=replication,
            config={
                "cleanup.policy": "compact" if row.compacted else "delete",
                "retention.ms": str(row.retention_ms),
                "max.message.bytes": str(row.max_message_bytes),
                "min.insync.replicas": str(max(1, replication - 1)),
            },
        )
        for row in rows
    ]
    done, refused = [], []
    for name, future in admin.create_topics(new, operation_timeout=timeout_s).items():
        try:
            future.result()
        except KafkaException as error:
            # Another process may create them at the same time; what it made is checked by everyone.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                refused.append(f"{name}: the broker refused to create it: {error.args[0].str()}")
        else:
            done.append(f"created {name}")
    if refused:
        raise TopicsWrong(refused)
    _wait_for_leaders(config, rows, timeout_s)
    return done


def _wait_for_leaders(config: Config, rows: list[Topic], timeout_s: float) -> None:
    """A broker answers that a topic is created before its leaders take requests: wait for those."""
    latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    wanted = {TopicPartition(row.name, p): latest for row in rows for p in range(row.partitions)}
    end = time.monotonic() + timeout_s
    while True:
        # A client that once saw a topic without leaders goes on saying so: a fresh one each time.
        admin = AdminClient(kafka_settings.client(config, log_level=0))
        failed = [f.exception() for f in admin.list_offsets(wanted, request_timeout=timeout_s).values() if f.exception(timeout_s)]
        if not failed:
            return
        if time.monotonic() > end:
            raise TopicsWrong([f"created, but no leader took requests within {timeout_s:g} s: {failed[0]}"])
        time.sleep(0.05)


def _partition_problems(config: Config, rows: Iterable[Topic], present: dict[str, TopicMetadata]) -> list[str]:
    problems = []
    for row in rows:
        partitions = present[row.name].partitions
        if len(partitions) != row.partitions:
            remedy = (
                f"set kafka.partitions = {len(partitions)} if all data topics have as many"
                if row.partitions == config.kafka.partitions
                else "it must have exactly one"
            )
            problems.append(
                f"{row.name}: {len(partitions)} partitions, the configuration says {row.partitions}; {remedy}, "
                "or name another topic under [topics], or delete this one and create it anew"
            )
        copies = min((len(p.replicas) for p in partitions.values()), default=config.kafka.replication)
        if copies < config.kafka.replication:
            problems.append(
                f"{row.name}: {copies} replicas, the configuration says {config.kafka.replication}; "
                "reassign its partitions, or lower kafka.replication"
            )
    return problems


class _Wrong(NamedTuple):
    """A setting of an existing topic that `create` puts right."""

    topic: str
    key: str
    wanted: str
    problem: str
    done: str


def _wrong(admin: AdminClient, rows: list[Topic], timeout_s: float) -> list[_Wrong]:
    """Limits that are below the table's, and compacted topics that are not."""
    if not rows:
        return []
    by_name = {row.name: row for row in rows}
    resources = [ConfigResource(ResourceType.TOPIC, row.name) for row in rows]
    found = []
    for resource, future in admin.describe_configs(resources, request_timeout=timeout_s).items():
        row, entries = by_name[resource.name], future.result()
        for key, wanted in (("retention.ms", row.retention_ms), ("max.message.bytes", row.max_message_bytes)):
            actual = int(entries[key].value)
            kept = key == "retention.ms" and (actual == KEPT_FOR_EVER or (wanted != KEPT_FOR_EVER and actual >= wanted))
            if not (kept or (key != "retention.ms" and actual >= wanted)):
                problem = f"{key} is {actual}, at least {wanted} is configured"
                found.append(_Wrong(row.name, key, str(wanted), problem, f"raised {key} of {row.name} from {actual} to {wanted}"))
        policy = entries["cleanup.policy"].value
        if row.compacted and policy != "compact":
            problem = f"cleanup.policy is {policy}, it must be compact"
            found.append(_Wrong(row.name, "cleanup.policy", "compact", problem, f"made {row.name} compacted"))
    return found


def _repair(admin: AdminClient, rows: list[Topic], timeout_s: float) -> list[str]:
    changes: dict[str, list[ConfigEntry]] = {}
    done = []
    for wrong in _wrong(admin, rows, timeout_s):
        entry = ConfigEntry(wrong.key, wrong.wanted, incremental_operation=AlterConfigOpType.SET)
        changes.setdefault(wrong.topic, []).append(entry)
        done.append(wrong.done)
    if changes:
        resources = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=c) for name, c in changes.items()]
        for future in admin.incremental_alter_configs(resources, request_timeout=timeout_s).values():
            future.result()
    return done

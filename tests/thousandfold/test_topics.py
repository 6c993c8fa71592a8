from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, NewTopic, ResourceType

from state import kafka_settings, kafka_topics
from state.config import Config
from thousandfold.brokers import Broker

Make = Callable[..., Any]


def test_topics_are_missing_until_created_and_right_afterwards(broker: Broker, make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": broker.bootstrap, "partitions": 3}).config
    [problem] = kafka_topics.check(config)
    assert config.topics.dead_letters in problem
    assert "thousandfold topics create" in problem
    with pytest.raises(kafka_topics.TopicsWrong, match="missing"):
        kafka_topics.require(config)
    done = kafka_topics.create(config, keep_for_ever=broker.keep_for_ever)
    assert len(done) == 10
    assert kafka_topics.check(config) == []
    assert kafka_topics.create(config, keep_for_ever=broker.keep_for_ever) == []
    admin = AdminClient(kafka_settings.client(config))
    found = {name: len(t.partitions) for name, t in admin.list_topics(timeout=5).topics.items()}
    t = config.topics
    assert {found[n] for n in (t.impressions, t.clicks, t.enriched, t.samples, t.episodes)} == {3}
    assert {found[n] for n in (t.plan, t.snapshots, t.deltas, t.control, t.dead_letters)} == {1}


def test_a_wrong_number_of_partitions_is_named_and_never_changed(broker: Broker, make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": broker.bootstrap, "partitions": 2}).config
    admin = AdminClient(kafka_settings.client(config))
    for future in admin.create_topics([NewTopic(config.topics.clicks, 5, 1)]).values():
        future.result()
    with pytest.raises(kafka_topics.TopicsWrong, match=f"{config.topics.clicks}: 5 partitions, the configuration says 2"):
        kafka_topics.create(config)
    assert any("5 partitions" in problem for problem in kafka_topics.check(config))
    assert len(admin.list_topics(config.topics.clicks, timeout=5).topics[config.topics.clicks].partitions) == 5


def test_create_raises_a_retention_and_a_size_that_are_too_small(broker: Broker, make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": broker.bootstrap}).config
    admin = AdminClient(kafka_settings.client(config))
    small = {"retention.ms": "60000", "max.message.bytes": "1000"}
    for future in admin.create_topics([NewTopic(config.topics.plan, 1, 1, config=small)]).values():
        future.result()
    assert sum(config.topics.plan in problem for problem in kafka_topics.check(config)) == 2
    done = kafka_topics.create(config)
    assert sum(line.startswith("raised") for line in done) == 2
    assert kafka_topics.check(config) == []


def test_the_topic_of_switches_keeps_the_newest_of_every_key_and_create_makes_it_so(broker: Broker, make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": broker.bootstrap}).config
    admin = AdminClient(kafka_settings.client(config))
    for future in admin.create_topics([NewTopic(config.topics.control, 1, 1, config={"cleanup.policy": "delete"})]).values():
        future.result()
    assert any(f"{config.topics.control}: cleanup.policy is delete" in problem for problem in kafka_topics.check(config))
    assert f"made {config.topics.control} compacted" in kafka_topics.create(config, keep_for_ever=broker.keep_for_ever)
    assert kafka_topics.check(config) == []
    other: Config = make_config(kafka={"bootstrap": broker.bootstrap}, topics={"control": f"{config.topics.control}-2"}).config
    kafka_topics.create(other)
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in (config.topics.control, other.topics.control)]
    policies = {future.result()["cleanup.policy"].value for future in admin.describe_configs(resources).values()}
    assert policies == {"compact"}


def test_a_longer_retention_than_configured_is_no_problem(broker: Broker, make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": broker.bootstrap}, topics={"raw_retention_hours": 2.0}).config
    kafka_topics.create(config)
    admin = AdminClient(kafka_settings.client(config))
    resource = ConfigResource(ResourceType.TOPIC, config.topics.clicks)
    [entries] = [future.result() for future in admin.describe_configs([resource]).values()]
    assert entries["retention.ms"].value == str(2 * 3_600_000)
    assert isinstance(entries["retention.ms"], ConfigEntry)
    forever = make_config(kafka={"bootstrap": broker.bootstrap}, topics={"raw_retention_hours": 1.0}).config
    assert kafka_topics.check(forever) == []


def test_a_message_larger_than_accepted_still_fits_the_topics(broker: Broker, make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": broker.bootstrap}, topics={"max_message_bytes": 1_200_000}).config
    kafka_topics.create(config, keep_for_ever=broker.keep_for_ever)
    refused: list[Any] = []
    producer = Producer(kafka_settings.producer(config))
    for topic in (config.topics.impressions, config.topics.dead_letters):
        producer.produce(topic, b"x" * 1_300_000, on_delivery=lambda error, _message: refused.append(error))
    assert producer.flush(20) == 0
    assert refused == [None, None]


def test_an_unreachable_broker_is_named_with_what_to_do(make_config: Make) -> None:
    config: Config = make_config(kafka={"bootstrap": "127.0.0.1:1"}).config
    with pytest.raises(kafka_topics.BrokerUnreachable, match=r"127\.0\.0\.1:1 .*thousandfold doctor"):
        kafka_topics.check(config, timeout_s=1)

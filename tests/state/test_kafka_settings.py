import pathlib
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from state import kafka_settings
from state.config import Config, Security


def secured(**settings: Any) -> Config:
    return msgspec.structs.replace(Config(), security=Security(**settings))


def test_secrets_are_read_from_the_variables_that_the_file_names(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in ("ca.pem", "our.pem", "our.key"):
        (tmp_path / name).touch()
    monkeypatch.setenv("MY_USER", "bob")
    monkeypatch.setenv("MY_PASSWORD", "pw")
    config = secured(
        kafka_protocol="SASL_SSL",
        kafka_mechanism="SCRAM-SHA-512",
        kafka_username_env="MY_USER",
        kafka_password_env="MY_PASSWORD",
        kafka_ca_file=str(tmp_path / "ca.pem"),
        kafka_certificate_file=str(tmp_path / "our.pem"),
        kafka_key_file=str(tmp_path / "our.key"),
    )
    settings = kafka_settings.client(config)
    assert settings["security.protocol"] == "SASL_SSL"
    assert settings["sasl.mechanism"] == "SCRAM-SHA-512"
    assert (settings["sasl.username"], settings["sasl.password"]) == ("bob", "pw")
    assert settings["ssl.ca.location"] == str(tmp_path / "ca.pem")
    assert settings["ssl.certificate.location"] == str(tmp_path / "our.pem")
    assert settings["ssl.key.location"] == str(tmp_path / "our.key")


def test_plain_text_sends_no_secret() -> None:
    assert not {"sasl.username", "sasl.password", "ssl.ca.location"} & set(kafka_settings.client(Config()))


def test_what_the_caller_says_comes_last() -> None:
    settings = kafka_settings.consumer(Config(), **{"group.id": "mine", "auto.offset.reset": "latest"})
    assert (settings["group.id"], settings["auto.offset.reset"]) == ("mine", "latest")


def test_a_consumer_commits_nothing_and_a_producer_is_idempotent() -> None:
    assert kafka_settings.consumer(Config())["enable.auto.commit"] is False
    assert kafka_settings.producer(Config())["enable.idempotence"] is True
    assert kafka_settings.producer(Config())["acks"] == "all"


def test_the_library_knows_every_setting() -> None:
    config = Config()
    AdminClient(kafka_settings.client(config, log_level=0))
    Producer(kafka_settings.producer(config, log_level=0))
    Consumer(kafka_settings.consumer(config, log_level=0)).close()


def test_an_input_above_the_limit_still_fits_its_topic_and_a_dead_letter_holds_any_input() -> None:
    config = Config()
    assert (
        config.topics.max_message_bytes < kafka_settings.raw_message_bytes(config) < kafka_settings.largest_message_bytes(config)
    )

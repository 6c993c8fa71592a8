import pathlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
import redis
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner

from thousandfold import brokers, doctor, live

Make = Callable[..., Any]


def verdicts(found: Any) -> dict[str, str]:
    return {finding.subject: finding.verdict for finding in found}


def every_failure_has_a_remedy(found: list[doctor.Finding]) -> bool:
    return all(bool(f.remedy) == (f.verdict != "ok") for f in found)


def test_a_deployment_that_is_well_has_nothing_to_put_right(deployed: Make) -> None:
    config = deployed().config
    found = [*doctor.broker(config, write=True), *doctor.store(config)]
    assert set(verdicts(found).values()) == {"ok"}
    assert {"broker", "broker clock", "topics", "store", "store durability", "store clock"} == set(verdicts(found))


def test_looking_leaves_no_topic_behind(deployed: Make) -> None:
    config = deployed().config
    list(doctor.broker(config, write=True))
    admin = AdminClient({"bootstrap.servers": config.kafka.bootstrap})
    assert not [name for name in admin.list_topics(timeout=5).topics if name.startswith("thousandfold-doctor")]


def test_missing_topics_say_which_command_creates_them(broker: brokers.Broker, make_config: Make) -> None:
    found = list(doctor.broker(make_config(kafka={"bootstrap": broker.bootstrap}).config))
    assert verdicts(found)["topics"] == "fail"
    assert "thousandfold topics create" in found[-1].remedy


def test_more_copies_than_brokers_is_a_failure(broker: brokers.Broker, make_config: Make) -> None:
    found = list(doctor.broker(make_config(kafka={"bootstrap": broker.bootstrap, "replication": 3}).config))
    assert verdicts(found)["replication"] == "fail"


def test_nothing_listening_says_so_for_broker_and_store(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.5)
    config = make_config(kafka={"bootstrap": "127.0.0.1:1"}, store={"url": "redis://:secret@127.0.0.1:1/0"}).config
    found = [*doctor.broker(config), *doctor.store(config)]
    assert verdicts(found) == {"broker": "fail", "store": "fail"}
    assert "Connection refused" in found[0].found
    assert "secret" not in str(found)
    assert every_failure_has_a_remedy(found)


def test_a_store_that_evicts_or_forgets_is_named(store_url: str, make_config: Make) -> None:
    config = make_config(store={"url": store_url}).config
    with redis.Redis.from_url(store_url) as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            assert verdicts(doctor.store(config))["store durability"] == "fail"
            client.config_set("appendonly", "no")
            assert verdicts(doctor.store(config))["store durability"] == "warn"
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")


def test_a_clock_that_is_off_is_a_failure(store_url: str, make_config: Make) -> None:
    config = make_config(store={"url": store_url}).config
    found = list(doctor.store(config, clock=lambda: 1_000.0))
    assert verdicts(found)["store clock"] == "fail"
    assert every_failure_has_a_remedy(found)


def test_a_wrong_or_missing_version_is_named_with_what_to_install() -> None:
    def installed(name: str) -> str:
        if name == "numba":
            raise metadata.PackageNotFoundError
        return "9.9" if name == "faust-streaming" else "2.13.0+cpu"

    found = list(doctor.versions(installed, python=(3, 9, 1)))
    assert verdicts(found) | {"python": "fail", "faust-streaming": "fail", "numba": "fail", "torch": "ok"} == verdicts(found)
    assert every_failure_has_a_remedy(found)


def test_a_kafka_home_that_is_no_kafka_is_a_warning(tmp_path: pathlib.Path) -> None:
    found = list(doctor.servers({"KAFKA_HOME": str(tmp_path), "PATH": ""}))
    assert verdicts(found)["KAFKA_HOME"] == "warn"
    assert every_failure_has_a_remedy(found)


def test_little_memory_and_a_full_disk_are_warnings(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 10**18)
    found = list(doctor.machine(tmp_path / "not" / "yet", 10**9, 2))
    assert verdicts(found) == {"memory": "warn", "disk": "warn"}
    assert every_failure_has_a_remedy(found)


def test_a_source_that_no_event_carries_is_a_warning(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config, carried = make_config(streams={"metrics_port": 1}).config, {"item.price": 20_000.0, "item.prise": 20_000.0}
    said: dict[str, Any] = {"thousandfold_events_total": [({"stage": "enrich", "kind": "rows"}, 20_000.0)]}
    monkeypatch.setattr(live, "scrape", lambda where: (said if list(where) == ["streams"] else {}, ()))
    for rows, verdict in ((20_000.0, "ok"), (0.0, "warn")):
        carried["item.prise"] = rows
        said["thousandfold_source_rows_total"] = [({"source": source}, n) for source, n in carried.items()]
        found = list(doctor.sources(config))
        assert verdicts(found) == {"sources": verdict}
        assert every_failure_has_a_remedy(found)
    assert "item.prise: in none of 20,000 rows" in found[0].found
    monkeypatch.setattr(live, "scrape", lambda _: ({}, ("streams",)))
    assert list(doctor.sources(config)) == []


def test_the_command_exits_2_when_something_fails_and_says_how_much(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.5)
    path = make_config(kafka={"bootstrap": "127.0.0.1:1"}, store={"url": "redis://127.0.0.1:1"}).path
    result = CliRunner().invoke(doctor.app, ["--config", str(path)])
    assert result.exit_code == 2
    assert "2 to put right" in result.output


def test_an_invalid_configuration_is_one_of_the_findings(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.toml").write_text("[kafka]\npartitions = 0")
    result = CliRunner().invoke(doctor.app, ["--config", str(tmp_path / "bad.toml")])
    assert result.exit_code == 2
    assert "kafka.partitions" in result.output


def test_without_a_configuration_the_machine_alone_is_looked_at(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(doctor.app, [])
    assert "name a configuration with --config" in result.output
    assert "store clock" not in result.output

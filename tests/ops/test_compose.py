import re
from typing import Any

import pytest

from state import config as configuration
from tests.ops import expressions

COMPOSE = expressions.document("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIG = configuration.load(expressions.ROOT / "ops/thousandfold.toml")
OURS = ("topics", "streams", "learner", "serving")
every_service = pytest.mark.parametrize("name", SERVICES)


@every_service
def test_a_container_is_read_only_unprivileged_and_without_capabilities(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "cap_add" not in service
    assert not service.get("privileged")
    assert re.fullmatch(r"[1-9]\d*(:\d+)?", service["user"]), "a number, so that the host can tell it is not root"


@every_service
def test_a_port_is_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@every_service
def test_a_container_has_a_bound_of_memory_and_is_started_again(name: str) -> None:
    assert SERVICES[name]["mem_limit"]
    assert SERVICES[name]["restart"] == ("on-failure" if name == "topics" else "unless-stopped")


@every_service
def test_a_lasting_container_has_a_health_check(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) == (name != "topics")


@every_service
def test_an_image_is_ours_or_pinned_by_a_default_that_the_environment_can_change(name: str) -> None:
    image = SERVICES[name]["image"]
    if name in OURS:
        assert image == "${THOUSANDFOLD_IMAGE:-thousandfold:local}"
        return
    found = re.fullmatch(r"[a-z]+/[a-z]+:\$\{([A-Z]+)_TAG:-(v?\d[\d.]*)\}", image)
    assert found, image
    assert found[1].lower() == name


def test_the_image_is_built_once_for_all_that_run_it() -> None:
    built = {name: service["build"] for name, service in SERVICES.items() if "build" in service}
    assert list(built) == ["topics"]
    assert built["topics"]["dockerfile"] == "ops/Dockerfile"
    assert set(built["topics"]["args"]) == {"PIP_ARGS", "COMMIT"}


@every_service
def test_what_is_mounted_exists_and_is_not_written_unless_it_is_a_volume(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        source, _, rest = mount.partition(":")
        if source.startswith("./"):
            assert (expressions.ROOT / source).exists(), source
            assert rest.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_snapshots_are_written_by_the_learner_alone() -> None:
    mounts = {n: [m for m in s.get("volumes", ()) if m.startswith("snapshots:")] for n, s in SERVICES.items()}
    folder = CONFIG.snapshot.directory
    assert {n: m for n, m in mounts.items() if m} == {"learner": [f"snapshots:{folder}"], "serving": [f"snapshots:{folder}:ro"]}


def test_addresses_in_the_configuration_are_names_of_services() -> None:
    assert CONFIG.kafka.bootstrap == "kafka:9092"
    assert CONFIG.store.url == "redis://valkey:6379/0"
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INSIDE://{CONFIG.kafka.bootstrap}" in listeners
    assert SERVICES["kafka"]["ports"] == ["127.0.0.1:${KAFKA_PORT:-19092}:19092"]


def test_prometheus_scrapes_and_health_checks_ask_the_ports_of_the_configuration() -> None:
    jobs = {job["job_name"]: job for job in expressions.document("ops/prometheus.yml")["scrape_configs"]}
    (discovered,) = jobs["streams"]["dns_sd_configs"]
    assert (discovered["names"], discovered["type"], discovered["port"]) == (["streams"], "A", CONFIG.streams.metrics_port)
    assert jobs["learner"]["static_configs"] == [{"targets": [f"learner:{CONFIG.learner.metrics_port}"]}]
    assert jobs["serving"]["static_configs"] == [{"targets": [f"serving:{CONFIG.serving.port}"]}]
    for name, url in (
        ("streams", f"http://127.0.0.1:{CONFIG.streams.metrics_port}/metrics"),
        ("learner", f"http://127.0.0.1:{CONFIG.learner.metrics_port}/metrics"),
        ("serving", f"http://127.0.0.1:{CONFIG.serving.port}/healthz"),
    ):
        assert url in SERVICES[name]["healthcheck"]["test"]
    assert f"127.0.0.1:${{SERVING_PORT:-{CONFIG.serving.port}}}:{CONFIG.serving.port}" in SERVICES["serving"]["ports"]


def test_metrics_are_reachable_from_the_network_of_the_containers() -> None:
    for name in OURS:
        assert SERVICES[name]["environment"]["THOUSANDFOLD_METRICS_HOST"] == "0.0.0.0"
    assert CONFIG.serving.host == "0.0.0.0"


def test_the_deployment_learns_from_the_features_of_the_example() -> None:
    example = configuration.load(expressions.ROOT / "examples/ml1m.toml")
    assert CONFIG.features == example.features
    assert CONFIG.model == example.model


def test_streams_workers_can_be_scaled() -> None:
    service = SERVICES["streams"]
    assert not {"ports", "container_name", "hostname"} & set(service)
    assert "--instance" not in service["command"], "the host name tells workers apart"


def test_no_secret_has_a_value_in_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "USERNAME" in name:
                assert re.fullmatch(r"\$\{[A-Z_]+:-\}", value), name

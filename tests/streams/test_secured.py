"""Every kind of client on a broker that asks for TLS, a certificate of ours, or a password: a real Apache Kafka."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import trustme
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives import serialization

from state import ids, kafka_topics
from thousandfold import brokers, children

USER, PASSWORD = "ann", "s3cret"
LOGIN = "org.apache.kafka.common.security"

pytestmark = pytest.mark.skipif(
    brokers.KAFKA not in brokers.available(), reason="the embedded broker knows neither TLS nor SASL: set KAFKA_HOME"
)


class Place(NamedTuple):
    """A secured listener, and the settings that open it."""

    bootstrap: str
    security: dict[str, str]


def tls(authority: trustme.CA, folder: pathlib.Path) -> dict[str, str]:
    """The broker's own certificate and whom it trusts, for the settings of a listener."""
    own = authority.issue_cert("127.0.0.1")
    key = serialization.load_pem_private_key(own.private_key_pem.bytes(), None)
    # Java reads no other form of a key.
    plain = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "broker.pem").write_bytes(plain + b"".join(part.bytes() for part in own.cert_chain_pems))
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
    }


@contextlib.contextmanager
def with_passwords(folder: pathlib.Path, authority: trustme.CA) -> Iterator[Place]:
    (port,) = children.free_ports(1)
    asks = {
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "plain.sasl.jaas.config": f'{LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
    }
    with brokers.running(brokers.KAFKA, secured=brokers.Listener("SASL_SSL", port, tls(authority, folder) | asks)) as broker:
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion(USER, info, PASSWORD.encode())
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        for future in admin.alter_user_scram_credentials([user]).values():
            future.result(10)
        security = {"kafka_protocol": "SASL_SSL", "kafka_mechanism": "SCRAM-SHA-512", "kafka_ca_file": str(folder / "ca.pem")}
        yield Place(f"127.0.0.1:{port}", security)


@contextlib.contextmanager
def with_certificates(folder: pathlib.Path, authority: trustme.CA) -> Iterator[Place]:
    (port,) = children.free_ports(1)
    ours = authority.issue_cert("learner@example.org")
    ours.private_key_pem.write_to_path(folder / "our.key")
    for i, part in enumerate(ours.cert_chain_pems):
        part.write_to_path(folder / "our.pem", append=i > 0)
    asks = {"ssl.client.auth": "required"}
    with brokers.running(brokers.KAFKA, secured=brokers.Listener("SSL", port, tls(authority, folder) | asks)):
        security = {"kafka_protocol": "SSL", "kafka_ca_file": str(folder / "ca.pem")}
        security |= {"kafka_certificate_file": str(folder / "our.pem"), "kafka_key_file": str(folder / "our.key")}
        yield Place(f"127.0.0.1:{port}", security)


@pytest.fixture(scope="module", params=[with_passwords, with_certificates], ids=["passwords", "certificates"])
def secured_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with request.param(tmp_path_factory.mktemp("tls"), trustme.CA()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THOUSANDFOLD_KAFKA_USERNAME", USER)
    monkeypatch.setenv("THOUSANDFOLD_KAFKA_PASSWORD", PASSWORD)


def test_topics_are_made_and_a_list_goes_through_all_stages(
    secured_broker: Place,
    store_url: str,
    make_config: Callable[..., Any],
    start: Callable[..., Any],
    kafka_of: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    join = {"window_s": 0.5, "lateness_s": 0.1, "idle_timeout_s": 0.5}
    made = make_config(
        kafka={"bootstrap": secured_broker.bootstrap}, security=secured_broker.security, store={"url": store_url}, join=join
    )
    assert len(kafka_topics.create(made.config)) == len(kafka_topics.table(made.config))
    worker, kafka = start(made.path).until_ready(), kafka_of(made.config)
    now_ms = time.time_ns() // 1_000_000
    kafka.impression("r", "u", now_ms, ["a", "b"])
    kafka.click("r", "u", now_ms + 200, "b")
    kafka.flush()
    eventually(lambda: kafka.labels(made.config.topics.episodes), timeout_s=60.0)
    assert kafka.labels(made.config.topics.episodes) == {ids.of("r"): {ids.of("b")}}
    assert worker.stop() == 0


def test_what_the_broker_refuses_is_named_with_the_reason(
    secured_broker: Place, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "stranger.pem")
    wrong = make_config(
        kafka={"bootstrap": secured_broker.bootstrap},
        security={**secured_broker.security, "kafka_ca_file": str(tmp_path / "stranger.pem")},
    )
    with pytest.raises(kafka_topics.BrokerUnreachable, match="certificate"):
        kafka_topics.check(wrong.config, timeout_s=30.0)
    if secured_broker.security["kafka_protocol"] == "SSL":
        return
    monkeypatch.setenv("THOUSANDFOLD_KAFKA_PASSWORD", "guessed")
    right = make_config(kafka={"bootstrap": secured_broker.bootstrap}, security=secured_broker.security)
    with pytest.raises(kafka_topics.BrokerUnreachable, match=r"(?i)authentication"):
        kafka_topics.check(right.config, timeout_s=30.0)


def test_a_password_may_be_sent_plainly_under_tls(secured_broker: Place, make_config: Callable[..., Any]) -> None:
    if secured_broker.security["kafka_protocol"] == "SSL":
        pytest.skip("this listener asks for no password")
    made = make_config(
        kafka={"bootstrap": secured_broker.bootstrap}, security={**secured_broker.security, "kafka_mechanism": "PLAIN"}
    )
    _, cluster = kafka_topics.connected(made.config, timeout_s=10.0)
    assert cluster.brokers

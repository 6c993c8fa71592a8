"""The service when something is missing, slow, damaged or told to stop."""

import collections
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest
import redis

from state import config as configuration

TS = 1_700_000_000_000
BODY: dict[str, Any] = {
    "user_id": "ann",
    "scenario": "s",
    "ts_ms": TS,
    "candidates": [{"item_id": f"i{k}", "features": {"price": float(k)}} for k in range(50)],
}
PATIENCE_S = 60


def eventually(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


def degraded(deployment: Any) -> str | None:
    reply = deployment.score(BODY)
    assert len(reply["scores"]["click"]) == 50
    found: str | None = reply["degraded"]
    assert (reply["mode"] == "adapted") == (found is None)
    return found


def metric(deployment: Any, line: str) -> float:
    lines = deployment.client.get("/metrics").text.splitlines()
    return next((float(found.rpartition(" ")[2]) for found in lines if found.startswith(line + " ")), 0.0)


def test_it_starts_before_store_and_snapshot_and_finds_both_when_they_come(fresh: Any) -> None:
    fresh.store.stop()
    fresh.start()
    assert fresh.client.get("/healthz").status_code == 200
    for response in (fresh.client.get("/readyz"), fresh.client.post("/v1/score", json=BODY)):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_model")
        assert int(response.headers["retry-after"]) >= 1
    assert "store is unavailable" in fresh.client.get("/readyz").json()["error"]["message"]
    version = fresh.published()
    assert fresh.client.get("/readyz").json()["store"] == "unavailable"
    assert degraded(fresh) in {"store_unavailable", "breaker_open"}
    fresh.store.start()
    fresh.put_support("ann", 9, TS - 1)
    eventually(lambda: degraded(fresh) is None, "the store is used")
    assert fresh.score(BODY)["scores"]["click"] == fresh.expected(version, BODY)


def test_a_killed_store_degrades_replies_and_a_restarted_one_mends_them(fresh: Any) -> None:
    fresh.publish()
    fresh.start()
    fresh.put_support("ann", 9, TS - 1)
    with redis.Redis.from_url(fresh.store.url) as client:
        client.execute_command("BGREWRITEAOF")
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the store is on disk")
    assert degraded(fresh) is None
    fresh.store.kill()
    seen = [degraded(fresh) for _ in range(10)]
    assert seen[0] == "store_unavailable"
    assert "breaker_open" in seen
    assert metric(fresh, 'thousandfold_plain_total{reason="store_unavailable"}') >= 1
    assert metric(fresh, 'thousandfold_plain_total{reason="breaker_open"}') >= 1
    fresh.store.start()
    eventually(lambda: degraded(fresh) is None, "the store is used again")


def test_a_paused_store_is_not_waited_for_beyond_the_deadline(impatient: Any) -> None:
    impatient.publish()
    impatient.start()
    impatient.put_support("ann", 9, TS - 1)
    eventually(lambda: degraded(impatient) is None, "the store is used")
    with redis.Redis.from_url(impatient.store.url) as client:
        client.client_pause(8_000, all=True)
    seen = [degraded(impatient) for _ in range(6)]
    assert seen[:3] == ["store_slow"] * 3
    assert "breaker_open" in seen
    eventually(lambda: degraded(impatient) is None, "the store is used again")


def test_a_damaged_snapshot_is_refused_and_counted_and_the_previous_one_answers(fresh: Any) -> None:
    good = fresh.publish()
    damaged = fresh.publish()
    fresh.damage(damaged)
    fresh.start()
    assert fresh.score(BODY)["version"] == good
    rows = {row["version"]: row for row in fresh.admin.get("/admin/versions").json()["versions"]}
    assert "sha256" in rows[damaged]["refused"]
    assert rows[good]["refused"] is None
    assert metric(fresh, "thousandfold_snapshots_refused_total") == 1
    assert fresh.score(BODY)["version"] == good
    newest = fresh.published()
    assert fresh.score(BODY)["version"] == newest


def test_a_snapshot_of_another_feature_spec_is_refused(fresh: Any) -> None:
    good = fresh.publish()
    text = fresh.config_file.read_text().replace('{ name = "genre", source = "item.genre" },', "")
    foreign = fresh.publish(config=configuration.parse(text))
    fresh.start()
    assert fresh.score(BODY)["version"] == good
    rows = {row["version"]: row for row in fresh.admin.get("/admin/versions").json()["versions"]}
    assert "feature spec" in rows[foreign]["refused"]


def test_snapshots_are_swapped_under_load_without_an_error_or_a_mixed_reply(fresh: Any) -> None:
    fresh.publish()
    fresh.start()
    fresh.put_support("ann", 12, TS - 1)
    replies: list[httpx.Response] = []
    done = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=fresh.client.base_url, timeout=PATIENCE_S) as client:
            while not done.is_set():
                replies.append(client.post("/v1/score", json=BODY))

    loaders = [threading.Thread(target=load) for _ in range(4)]
    for loader in loaders:
        loader.start()
    try:
        for _ in range(12):
            fresh.published()
    finally:
        done.set()
        for loader in loaders:
            loader.join()
    by_version = collections.defaultdict(list)
    for response in replies:
        assert response.status_code == 200, response.text
        by_version[response.json()["version"]].append(response.json())
    assert len(by_version) >= 8
    assert len({tuple(found[0]["scores"]["click"]) for found in by_version.values()}) == len(by_version)
    for version, found in by_version.items():
        adapted = fresh.expected(version, BODY)
        for reply in found:
            assert (reply["degraded"], reply["support_rows"]) == (None, 12)
            assert reply["scores"]["click"] == adapted
            assert reply["step"] == int(version.rpartition("-")[2])
    assert metric(fresh, "thousandfold_swaps_total") == 13


def test_sigterm_ends_it_in_order_while_requests_run(fresh: Any) -> None:
    fresh.publish()
    fresh.start()
    outcomes: list[int] = []

    def load() -> None:
        with httpx.Client(base_url=fresh.client.base_url, timeout=PATIENCE_S) as client:
            while True:
                try:
                    outcomes.append(client.post("/v1/score", json=BODY).status_code)
                except httpx.TransportError:
                    return

    loader = threading.Thread(target=load)
    loader.start()
    eventually(lambda: len(outcomes) > 5, "requests run")
    assert fresh.stop() == 0
    loader.join()
    assert set(outcomes) == {200}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("port = 0", "port = {taken}"), "serving.port"),
        (("port = 0", "port = true"), "serving.port"),
        (("[store]", "[stor]"), "stor"),
    ],
)
def test_a_taken_port_or_a_wrong_file_ends_it_with_status_2_and_the_reason(
    fresh: Any, listening: int, change: tuple[str, str], named: str
) -> None:
    text = fresh.config_file.read_text().replace(change[0], change[1].format(taken=listening), 1)
    fresh.config_file.write_text(text)
    argv = [sys.executable, "-m", "serving", "--config", str(fresh.config_file)]
    ended = subprocess.run(argv, capture_output=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert named in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()

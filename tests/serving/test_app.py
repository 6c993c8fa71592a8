"""The whole service as a process: scoring, adaptation, what it reads of the store, administration."""

from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from state import config as configuration

TS = 1_700_000_000_000
IDS = st.text(max_size=4) | st.integers(-(2**63), 2**64 - 1)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4)
ITEMS = [{"item_id": f"i{k}", "features": {"genre": f"g{k % 3}", "price": float(k)}} for k in range(20)]


def body(user: str, items: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "scenario": "s", "ts_ms": TS, "candidates": items or ITEMS} | more


def metric(deployment: Any, line: str) -> float:
    for found in deployment.client.get("/metrics").text.splitlines():
        if found.startswith(line + " "):
            return float(found.rpartition(" ")[2])
    return 0.0


def test_an_unknown_user_item_and_scenario_are_served_by_the_plain_tower(deployment: Any) -> None:
    reply = deployment.score(body("nobody", [{"item_id": "never seen"}, {"item_id": 99}], scenario="nowhere", request_id="r-1"))
    assert reply["request_id"] == "r-1"
    assert reply["version"] == deployment.current()
    assert (reply["mode"], reply["adapted"], reply["support_rows"], reply["degraded"]) == ("plain", False, 0, "no_support")
    assert len(reply["scores"]["click"]) == 2
    assert all(0 < score < 1 for score in reply["scores"]["click"])
    assert reply["took_ms"] > 0


def test_the_tower_is_adapted_to_the_users_support_rows(deployment: Any) -> None:
    deployment.put_support("ann", 10, TS - 1)
    reply = deployment.score(body("ann"))
    assert (reply["mode"], reply["adapted"], reply["support_rows"], reply["degraded"]) == ("adapted", True, 10, None)
    assert reply["scores"]["click"] == deployment.expected(reply["version"], body("ann"))
    assert reply["scores"]["click"] != deployment.score(body("bob"))["scores"]["click"]


def test_only_rows_strictly_before_the_request_and_young_enough_are_used(deployment: Any) -> None:
    deployment.put_support("carl", 10, TS + 3000)
    assert deployment.score(body("carl"))["support_rows"] == 6
    oldest_allowed_ms = round(deployment.config.support.max_age_s * 1000)
    assert deployment.score(body("carl", ts_ms=TS + oldest_allowed_ms))["support_rows"] == 4
    assert deployment.score(body("carl", ts_ms=TS + oldest_allowed_ms + 4000))["degraded"] == "no_support"


def test_a_support_set_of_another_feature_spec_is_ignored_and_counted(deployment: Any) -> None:
    text = deployment.config_file.read_text().replace('{ name = "genre", source = "item.genre" },', "")
    before = metric(deployment, "thousandfold_foreign_supports_total")
    deployment.put_support("dora", 5, TS - 1, configuration.parse(text))
    reply = deployment.score(body("dora"))
    assert (reply["mode"], reply["degraded"]) == ("plain", "foreign_support")
    assert metric(deployment, "thousandfold_foreign_supports_total") == before + 1
    assert metric(deployment, 'thousandfold_plain_total{reason="foreign_support"}') >= 1


def test_support_rows_of_the_future_are_refused_and_counted(deployment: Any) -> None:
    before = metric(deployment, "thousandfold_future_support_rows_total")
    deployment.put_support("gerd", 5, TS + 9000)
    reply = deployment.score(body("gerd"))
    assert (reply["mode"], reply["degraded"]) == ("plain", "no_support")
    assert metric(deployment, "thousandfold_future_support_rows_total") == before + 5


def test_a_support_set_that_leads_to_no_number_leaves_the_plain_tower_and_is_counted(deployment: Any) -> None:
    before = metric(deployment, "thousandfold_diverged_adaptations_total")
    deployment.put_support("hans", 5, TS - 1, label=float("nan"))
    reply = deployment.score(body("hans"))
    assert (reply["mode"], reply["degraded"]) == ("plain", "diverged")
    assert reply["scores"]["click"] == deployment.score(body("nobody at all"))["scores"]["click"]
    assert metric(deployment, "thousandfold_diverged_adaptations_total") == before + 1
    assert metric(deployment, 'thousandfold_plain_total{reason="diverged"}') >= 1


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_support_of_one_class_is_adapted_to(deployment: Any, label: float) -> None:
    user = f"ines {label}"
    deployment.put_support(user, 5, TS - 1, label=label)
    adapted, plain = (deployment.score(body(who))["scores"]["click"] for who in (user, "nobody at all"))
    assert (sum(adapted) > sum(plain)) == bool(label)


def test_what_the_streams_count_of_a_user_is_in_the_very_next_score(deployment: Any) -> None:
    before = deployment.score(body("emil"))
    for k in range(3):
        deployment.count("emil", ["x", "y"], TS - 100 + k)
        after = deployment.score(body("emil"))
        assert after["scores"] != before["scores"]
        assert after["scores"]["click"] == deployment.expected(after["version"], body("emil"))
        before = after


def test_shared_counters_are_seen_once_their_cached_age_is_over(deployment: Any) -> None:
    one = [{"item_id": "popular"}]
    first = deployment.score(body("fred", one))["scores"]
    deployment.count("somebody else", ["popular"], TS - 100)
    for _ in range(600):
        if deployment.score(body("fred", one))["scores"] != first:
            break
    reply = deployment.score(body("fred", one))
    assert reply["scores"]["click"] == deployment.expected(reply["version"], body("fred", one))


def test_a_score_does_not_depend_on_the_other_candidates(deployment: Any) -> None:
    deployment.put_support("gina", 7, TS - 1)
    together = deployment.score(body("gina"))["scores"]["click"]
    alone = [deployment.score(body("gina", [item]))["scores"]["click"][0] for item in ITEMS]
    assert together == pytest.approx(alone, rel=1e-5)


def test_json_and_msgpack_score_the_same(deployment: Any) -> None:
    packed = deployment.client.post(
        "/v1/score", content=msgspec.msgpack.encode(body("hans")), headers={"content-type": "application/msgpack"}
    )
    assert msgspec.msgpack.decode(packed.content)["scores"] == deployment.score(body("hans"))["scores"]


def test_only_the_objectives_that_were_asked_for_are_returned(deployment: Any) -> None:
    assert set(deployment.score(body("ida", objectives=["click"]))["scores"]) == {"click"}


def test_readiness_names_the_model_and_the_store(deployment: Any) -> None:
    ready = deployment.client.get("/readyz").json()
    assert (ready["ready"], ready["version"], ready["store"]) == (True, deployment.current(), "up")


def test_the_switch_turns_adaptation_off_and_on_for_a_scenario_and_stays_over_a_swap(deployment: Any) -> None:
    deployment.put_support("jane", 6, TS - 1)
    elsewhere = body("jane", scenario="other")

    def adapted() -> tuple[bool, bool]:
        return deployment.score(body("jane"))["adapted"], deployment.score(elsewhere)["adapted"]

    assert deployment.admin.post("/admin/meta", json={"scenario": "s", "mode": "off"}).json() == {"switches": {"s": "off"}}
    assert adapted() == (False, True)
    assert deployment.score(body("jane"))["degraded"] is None
    deployment.published()
    assert adapted() == (False, True)
    deployment.admin.post("/admin/meta", json={"mode": "off"})
    deployment.admin.post("/admin/meta", json={"scenario": "s", "mode": "on"})
    assert adapted() == (True, False)
    deployment.admin.post("/admin/meta", json={"mode": "on"})
    assert adapted() == (True, True)


def test_a_rollback_pins_the_version_before_until_follow(deployment: Any) -> None:
    old = deployment.current()
    new = deployment.published()
    answer = deployment.admin.post("/admin/rollback", json={}).json()
    assert (answer["current"], answer["pinned"]) == (old, old)
    assert deployment.score(body("kai"))["version"] == old
    assert deployment.admin.post("/admin/rollback", json={"version": "nope"}).status_code == 404
    assert deployment.admin.post("/admin/follow").json()["pinned"] is None
    deployment.wait_for(new)
    assert deployment.score(body("kai"))["version"] == new


def test_the_versions_tell_when_each_first_scored(deployment: Any) -> None:
    version = deployment.published()

    def first() -> Any:
        found = deployment.admin.get("/admin/versions").json()["versions"]
        return next(v["first_scored_ms"] for v in found if v["version"] == version)

    assert first() is None
    deployment.score(body("lena"))
    noted = first()
    deployment.score(body("lena"))
    assert first() == noted
    line = f'thousandfold_version_first_score_seconds{{version="{version}"}}'
    assert metric(deployment, line) == pytest.approx(noted / 1000)
    assert metric(deployment, "thousandfold_model_step") == int(version.rpartition("-")[2])


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
def test_a_web_page_cannot_reach_administration(deployment: Any, headers: dict[str, str]) -> None:
    for path in ("/admin/rollback", "/admin/follow", "/admin/meta"):
        response = deployment.admin.post(path, json={"mode": "off"}, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "not_local")


@pytest.mark.parametrize("content", [b"{", b'{"mode": "sometimes"}', b'{"mode": "on", "what": 1}', b"[]"])
def test_a_wrong_administrative_body_is_explained(deployment: Any, content: bytes) -> None:
    response = deployment.admin.post("/admin/meta", content=content)
    assert response.status_code in {400, 422}
    assert set(response.json()["error"]) == {"code", "message", "hint"}


@hypothesis.settings(max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    candidates=st.lists(
        st.fixed_dictionaries(
            {"item_id": IDS},
            optional={
                "position": st.none() | st.integers(-(2**33), 2**33),
                "features": st.fixed_dictionaries(
                    {}, optional={"genre": SCALARS | st.lists(SCALARS, max_size=3), "price": SCALARS}
                ),
            },
        ),
        max_size=5,
    ),
    more=st.fixed_dictionaries(
        {"user_id": IDS, "scenario": IDS},
        optional={"request_id": IDS, "ts_ms": st.integers(-1, 2**62), "user": st.dictionaries(st.text(max_size=3), SCALARS)},
    ),
)
def test_whatever_the_fields_hold_is_scored_or_explained(deployment: Any, candidates: Any, more: Any) -> None:
    content = msgspec.msgpack.encode(more | {"candidates": candidates})
    response = deployment.client.post("/v1/score", content=content, headers={"content-type": "application/msgpack"})
    reply = msgspec.msgpack.decode(response.content)
    if response.status_code == 200:
        assert len(reply["scores"]["click"]) == len(candidates)
        assert all(0 <= score <= 1 for score in reply["scores"]["click"])
    else:
        assert (response.status_code, set(reply)) == (422, {"error"})

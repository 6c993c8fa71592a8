import copy
import itertools
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from tests.ops import expressions

SCHEMA = json.loads((expressions.ROOT / "ops/grafana/board.schema.json").read_text(encoding="utf-8"))
PROVIDED = {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}


def check(board: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(board)


def test_the_board_follows_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    check(expressions.board())


@pytest.mark.parametrize("damage", ["misspelt", "unit", "no target", "datasource"])
def test_the_schema_refuses_a_damaged_board(damage: str) -> None:
    board = copy.deepcopy(expressions.board())
    panel = next(p for p in board["panels"] if p["type"] == "timeseries")
    match damage:
        case "misspelt":
            panel["targets"][0]["legendFromat"] = panel["targets"][0].pop("legendFormat")
        case "unit":
            panel["fieldConfig"]["defaults"]["unit"] = "seconds"
        case "no target":
            panel["targets"] = []
        case "datasource":
            panel["datasource"]["uid"] = "elsewhere"
    with pytest.raises(jsonschema.ValidationError):
        check(board)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    every = expressions.board()["panels"]
    assert len({p["id"] for p in every}) == len(every)
    for one, other in itertools.combinations([p["gridPos"] for p in every], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in every)


def test_the_board_shows_what_an_operator_of_scenarios_needs() -> None:
    text = " ".join(t["expr"] for p in expressions.panels() for t in p["targets"])
    for needed in (
        "rate(thousandfold_rows_total",
        "thousandfold_lag_messages",
        "thousandfold_gauc",
        "thousandfold_logloss{",
        "thousandfold_calibration",
        'variant="adapted"',
        'variant="unadapted"',
        'variant="river"',
        "thousandfold_model_created_seconds",
        "thousandfold_request_seconds_bucket",
    ):
        assert needed in text


def test_the_row_of_a_scenario_is_repeated_for_each_and_every_variable_used_is_declared() -> None:
    declared = {v["name"] for v in expressions.board()["templating"]["list"]}
    assert [p["repeat"] for p in expressions.board()["panels"] if "repeat" in p] == ["scenario"]
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for p in expressions.panels() for t in p["targets"])))
    assert used == declared


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
def test_prometheus_can_parse_every_expression_of_the_board(tmp_path: pathlib.Path) -> None:
    values = {f"${v['name']}": "any" for v in expressions.board()["templating"]["list"]} | PROVIDED
    records = []
    for k, (where, expression) in enumerate(expressions.asked().items()):
        if where.startswith("variable"):
            continue
        for name, value in values.items():
            expression = expression.replace(name, value)  # noqa: PLW2901 - filled in, one variable after the other
        records.append({"record": f"r{k}", "expr": expression})
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": records}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_provisioned_data_source_is_the_one_that_the_board_names() -> None:
    sources = expressions.document("ops/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert [(s["type"], s["uid"]) for s in sources] == [("prometheus", "prometheus")]
    service = expressions.document("docker-compose.yml")["services"]["grafana"]
    boards = expressions.document("ops/grafana/provisioning/dashboards/thousandfold.yml")["providers"][0]["options"]["path"]
    assert f"./ops/grafana/dashboards:{boards}:ro" in service["volumes"]
    assert service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{boards}/{expressions.BOARD.name}"

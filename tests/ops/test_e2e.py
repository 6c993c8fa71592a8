import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ops import expressions

OPS = expressions.ROOT / "ops"


class World(http.server.BaseHTTPRequestHandler):
    """Prometheus and serving, as a test says that they are."""

    figures: dict[str, dict[str, float]]
    score: tuple[int, dict[str, Any]]
    asked: dict[str, Any]

    def do_GET(self) -> None:
        (expression,) = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["query"]
        label = "instance" if expression.startswith("up{") else "scenario"
        name = expression if label == "instance" else expression.partition("{")[0].removeprefix("thousandfold_")
        rows = [{"metric": {label: key}, "value": [0, str(value)]} for key, value in self.figures.get(name, {}).items()]
        self._answer(200, {"status": "success", "data": {"resultType": "vector", "result": rows}})

    def do_POST(self) -> None:
        type(self).asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(*self.score)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def world() -> Iterator[tuple[type[World], str]]:
    class Mine(World):
        figures = {f: {"home": 0.7, "search": 0.8} for f in ("auc", "gauc", "logloss", "calibration")} | {
            "rows_total": {"home": 10.0, "search": 5.0, "young": 0.0},
            'up{job="streams"} == 1': {"10.0.0.1:9101": 1.0, "10.0.0.2:9101": 1.0},
            'up{job="learner"} == 1': {"learner:9102": 1.0},
            'up{job="serving"} == 1': {"serving:8080": 1.0},
        }
        score = (200, {"version": "v", "step": 3, "mode": "plain", "scores": {"click": [0.1, 0.2, 0.3]}})

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield Mine, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def observe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, OPS / "observe.py", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_figures_of_enough_scenarios_are_seen_and_printed(world: tuple[type[World], str]) -> None:
    seen = observe("metrics", world[1], "2")
    assert seen.returncode == 0, seen.stderr
    assert [line.split()[:2] for line in seen.stdout.splitlines()] == [["scenario", "rows"], ["home", "10"], ["search", "5"]]


def test_a_scenario_without_rows_or_without_a_figure_does_not_count(world: tuple[type[World], str]) -> None:
    assert observe("metrics", world[1], "3").returncode == 1
    del world[0].figures["auc"]["home"]
    short = observe("metrics", world[1], "2")
    assert short.returncode == 1
    assert "1 of 2 scenarios" in short.stderr


def test_every_worker_must_be_reached(world: tuple[type[World], str]) -> None:
    assert observe("targets", world[1], "2").returncode == 0
    assert observe("targets", world[1], "3").returncode == 1
    world[0].figures['up{job="learner"} == 1'] = {}
    assert observe("targets", world[1], "2").returncode == 1


def test_a_score_is_a_probability_for_every_candidate_from_a_trained_model(world: tuple[type[World], str]) -> None:
    assert observe("score", world[1]).returncode == 0
    assert len(world[0].asked["candidates"]) == 3
    good = world[0].score[1]
    for bad in ({"step": 0}, {"scores": {"click": [0.1, 0.2]}}, {"scores": {"click": [0.1, 0.2, 1.5]}}):
        world[0].score = (200, good | bad)
        assert observe("score", world[1]).returncode == 1, bad
    world[0].score = (503, {"error": {"code": "no_model"}})
    refused = observe("score", world[1])
    assert refused.returncode == 1
    assert "no_model" in refused.stderr


def test_nothing_there_is_not_yet_and_a_wrong_call_is_an_error() -> None:
    assert observe("score", "http://127.0.0.1:9").returncode == 1
    assert observe("scores").returncode == 2


def test_the_script_is_valid_and_explains_itself() -> None:
    assert subprocess.run(["bash", "-n", OPS / "e2e.sh"], check=False, timeout=30).returncode == 0
    wrong = subprocess.run(["bash", OPS / "e2e.sh", "--nonsense"], capture_output=True, text=True, check=False, timeout=30)
    assert wrong.returncode == 2
    assert "usage" in wrong.stderr


def test_without_an_engine_the_script_says_so_and_fails(tmp_path: pathlib.Path) -> None:
    for tool in ("bash", "dirname", "mktemp", "rm", "python3"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    environment = {
        "PATH": str(tmp_path),
        "CONTAINERS_SETUP": str(tmp_path / "none"),
        "TMPDIR": str(tmp_path),
        "HOME": os.environ["HOME"],
    }
    script = str(OPS / "e2e.sh")
    ran = subprocess.run(["bash", script], capture_output=True, text=True, env=environment, check=False, timeout=30)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "neither docker compose nor podman-compose is installed" in ran.stderr

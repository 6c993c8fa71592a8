import re
import shutil
import subprocess

import pytest

from tests.ops import expressions

promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(promtool is None, reason="promtool is not installed (Debian package prometheus)")


def run(*arguments: str) -> str:
    done = subprocess.run(
        [str(promtool), *arguments], cwd=expressions.ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    assert f"{len(expressions.rules())} rules found" in run("check", "rules", "ops/rules.yml")


@needs_promtool
def test_promtool_accepts_the_scrape_configuration() -> None:
    assert "SUCCESS" in run("check", "config", "ops/prometheus.yml")


@needs_promtool
def test_every_alert_fires_on_what_it_is_for_and_is_silent_on_a_healthy_system() -> None:
    assert "SUCCESS" in run("test", "rules", "ops/rules_test.yml")


def test_every_alert_is_seen_firing_by_a_rule_test() -> None:
    tested = {
        case["alertname"]
        for test in expressions.document("ops/rules_test.yml")["tests"]
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert tested == {rule["alert"] for rule in expressions.rules()}


def test_every_alert_has_a_severity_a_summary_and_a_section_of_the_operations_page() -> None:
    page = (expressions.ROOT / "docs/operations.md").read_text(encoding="utf-8")
    sections = {title.lower() for title in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    for rule in expressions.rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert anchor in sections, f"docs/operations.md has no section {rule['alert']}"

"""What the rules and the board ask Prometheus, and what the code and the architecture say there is."""

import json
import pathlib
import re
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from learner import prometheus_metrics as learner_metrics
from learner import reports
from learner.prequential import Gain, Quality
from serving import metrics as serving_metrics
from streams import prometheus_metrics as streams_metrics

ROOT = pathlib.Path(__file__).parents[2]
BOARD = ROOT / "ops/grafana/dashboards/scenarios.json"
NAME = re.compile(r"\bthousandfold_[a-z_]+")
SUFFIX = re.compile(r"_(total|bucket|count|sum)$")
PROVIDED = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
"""Series of Prometheus itself."""
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds to every series."""


def document(path: str) -> Any:
    """A YAML or JSON file of the repository."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in document("ops/rules.yml")["groups"] for rule in group["rules"]]


def board() -> Any:
    """The board of scenarios."""
    return json.loads(BOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    """The board's panels, without the rows that title them."""
    return [p for p in board()["panels"] if p["type"] != "row"]


def asked() -> dict[str, str]:
    """Every PromQL expression, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"panel {panel['id']} {panel['title']} {target['refId']}"] = target["expr"]
    for each in board()["annotations"]["list"]:
        found[f"annotation {each['name']}"] = each["expr"]
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            found[f"variable {variable['name']}"] = variable["definition"]
    return found


def exported() -> dict[str, set[str]]:
    """Metric names without the suffix of their kind, and the labels of each, as the three processes export them."""
    report = reports.Report(
        qualities=(Quality("s", "click", "adapted", "recent", 10, 0.7, 0.7, 0.6, 1.0),),
        gains=(Gain("s", "click", 0.01, 0.001, 0.0),),
        rows={"s": 10},
        counts=reports.Counts(),
        lag={("episodes", 0): 1},
    )
    for counter in (report.counts.skipped_steps, report.counts.drift, report.counts.dead_letters):
        counter["one"] += 1
    report.counts.seconds["step"] += 1.0
    found: dict[str, set[str]] = {}
    for registry in (streams_metrics.Metrics().registry, serving_metrics.Metrics().registry):
        for name, labels in declared(registry).items():
            found.setdefault(name, set()).update(labels)
    for family in learner_metrics.ReportCollector(lambda: report, 1.0, 0, 0).collect():
        found.setdefault(family.name, set()).update(*(s.labels for s in family.samples))
    return found


def declared(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Families of a registry with the labels that they were made with."""
    metrics = {id(m): m for m in registry._names_to_collectors.values()}
    return {m._name: set(m._labelnames) | ({"le"} if m._type == "histogram" else set()) for m in metrics.values()}  # type: ignore[attr-defined]


def documented() -> set[str]:
    """Names under "Metrics" in the architecture, without the suffix of their kind."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.split("## Metrics (Prometheus)")[1].split("\n## ")[0]
    return {SUFFIX.sub("", name) for name in NAME.findall(section)}


def family(name: str) -> str:
    """The family that a series belongs to."""
    return SUFFIX.sub("", name)

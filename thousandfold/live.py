"""The live table: what every process exposes to Prometheus, read and put side by side per scenario."""

import math
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streams.presence import LEAST_ROWS

Samples = dict[str, list[tuple[dict[str, str], float]]]
HTTP_TIMEOUT_S = 1.0


class Scenario(NamedTuple):
    """One row of the table. Quality is of the model as served (adapted) and over the recent window unless said otherwise."""

    name: str
    rows: float
    rows_per_s: float
    auc: float
    auc_recent: float
    gauc: float
    logloss: float
    calibration: float
    auc_unadapted: float
    auc_river: float
    drifts: float
    meta: str = "-"
    """The mode of meta-learning in force, as `in_force`."""
    auc_weighted: float = math.nan
    """By inverse propensities, as are the two mean labels: of all that could be shown, and as it was shown."""
    label_weighted: float = math.nan
    label_shown: float = math.nan


class Reading(NamedTuple):
    """One look at all processes, taken at `at_s` (seconds of the caller's clock)."""

    at_s: float
    scenarios: tuple[Scenario, ...]
    lag_messages: float
    open_lists: float
    dead_letters: float
    duplicates: float
    steps: float
    model_step: float
    model_age_s: float
    requests: float
    errors: float
    plain: float
    swaps: float
    unreachable: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Sources of the feature spec that no event carried, as `missing`."""


def scrape(endpoints: dict[str, str]) -> tuple[Samples, tuple[str, ...]]:
    """Read the Prometheus text of every endpoint (name to URL). Returns samples by metric name, and who did not answer."""
    samples: Samples = {}
    silent: list[str] = []
    for name, url in endpoints.items():
        try:
            with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as reply:  # noqa: S310 - the operator's own endpoints
                text = reply.read().decode()
        except (urllib.error.URLError, OSError, ValueError):
            silent.append(name)
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    return samples, tuple(silent)


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of all samples of a metric whose labels agree."""
    return sum(value for found, value in samples.get(name, ()) if all(found.get(k) == v for k, v in labels.items()))


def missing(samples: Samples) -> tuple[str, ...]:
    """Sources of the feature spec that no row carried since the stream workers began, once there are enough rows to tell."""
    name = "thousandfold_source_rows_total"
    if total(samples, "thousandfold_events_total", stage="enrich", kind="rows") < LEAST_ROWS:
        return ()
    sources = sorted({labels["source"] for labels, _ in samples.get(name, ())})
    return tuple(source for source in sources if not total(samples, name, source=source))


def in_force(samples: Samples) -> dict[str, str]:
    """The learner's mode of meta-learning by scenario (`*`: all others); of one that is `auto` also whether it is on."""
    auto = {labels["scenario"]: value for labels, value in samples.get("thousandfold_meta_auto", ())}
    found = {labels["scenario"]: labels["mode"] for labels, _ in samples.get("thousandfold_meta_mode", ())}
    return {
        name: f"auto: {'on' if auto.get(name) else 'off'}" if mode == "auto" and name != "*" else mode
        for name, mode in found.items()
    }


def read(
    samples: Samples,
    silent: tuple[str, ...],
    at_s: float,
    wall_s: float,
    objective: str,
    order: Sequence[str],
    before: Reading | None,
) -> Reading:
    """Put one scrape into the shape of the table.

    `wall_s` is Unix time (for the model's age); `before` gives rates; `order` lists the scenarios to show first.
    """
    earlier = {s.name: s for s in before.scenarios} if before else {}
    gap_s = at_s - before.at_s if before else 0.0
    names = list(dict.fromkeys([*order, *sorted({x["scenario"] for x, _ in samples.get("thousandfold_rows_total", ())})]))

    def value(metric: str, scenario: str, variant: str, window: str) -> float:
        wanted = {"scenario": scenario, "objective": objective, "variant": variant, "window": window}
        return next((v for found, v in samples.get(metric, ()) if found == wanted), math.nan)

    def label(metric: str, scenario: str) -> float:
        wanted = {"scenario": scenario, "objective": objective, "window": "cumulative"}
        return next((v for found, v in samples.get(metric, ()) if found == wanted), math.nan)

    scenarios, force = [], in_force(samples)
    for name in names:
        rows = total(samples, "thousandfold_rows_total", scenario=name)
        was = earlier[name].rows if name in earlier else rows
        scenarios.append(
            Scenario(
                name=name,
                rows=rows,
                rows_per_s=max(rows - was, 0.0) / gap_s if gap_s > 0 else 0.0,
                auc=value("thousandfold_auc", name, "adapted", "cumulative"),
                auc_recent=value("thousandfold_auc", name, "adapted", "recent"),
                gauc=value("thousandfold_gauc", name, "adapted", "cumulative"),
                logloss=value("thousandfold_logloss", name, "adapted", "cumulative"),
                calibration=value("thousandfold_calibration", name, "adapted", "cumulative"),
                auc_unadapted=value("thousandfold_auc", name, "unadapted", "cumulative"),
                auc_river=value("thousandfold_auc", name, "river", "cumulative"),
                drifts=total(samples, "thousandfold_drift_total", scenario=name),
                meta=force.get(name, force.get("*", "-")),
                auc_weighted=value("thousandfold_ips_auc", name, "adapted", "cumulative"),
                label_weighted=label("thousandfold_ips_mean_label", name),
                label_shown=label("thousandfold_shown_mean_label", name),
            )
        )
    created = total(samples, "thousandfold_snapshot_created_seconds")
    requests = total(samples, "thousandfold_requests_total")
    return Reading(
        at_s=at_s,
        scenarios=tuple(scenarios),
        lag_messages=total(samples, "thousandfold_lag_messages"),
        open_lists=total(samples, "thousandfold_open_lists"),
        dead_letters=total(samples, "thousandfold_dead_letters_total"),
        duplicates=total(samples, "thousandfold_duplicates_total"),
        steps=total(samples, "thousandfold_steps_total"),
        model_step=total(samples, "thousandfold_model_step"),
        model_age_s=wall_s - created if created else math.nan,
        requests=requests,
        errors=requests - total(samples, "thousandfold_requests_total", status="200"),
        plain=total(samples, "thousandfold_plain_total"),
        swaps=total(samples, "thousandfold_swaps_total"),
        unreachable=silent,
        missing=missing(samples),
    )


def render(reading: Reading, title: str, notes: Iterable[str] = ()) -> RenderableType:
    """The table that a person sees."""
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("scenario")
    for heading in ("rows", "rows/s", "AUC", "recent", "GAUC", "logloss", "calib.", "adapted-plain", "river AUC", "drifts"):
        table.add_column(heading, justify="right")
    table.add_column("meta")
    explores = any(not math.isnan(s.auc_weighted + s.label_weighted) for s in reading.scenarios)
    for heading in ("IPS AUC", "IPS label", "shown label") if explores else ():
        table.add_column(heading, justify="right")
    for s in reading.scenarios:
        gain = s.auc - s.auc_unadapted
        table.add_row(
            s.name,
            f"{s.rows:,.0f}",
            f"{s.rows_per_s:,.0f}",
            _number(s.auc),
            _number(s.auc_recent),
            _number(s.gauc),
            _number(s.logloss),
            _number(s.calibration, 2),
            Text(_number(gain, 4, "+"), style="green" if gain > 0 else "red" if gain < 0 else ""),
            _number(s.auc_river),
            f"{s.drifts:.0f}",
            s.meta,
            *((_number(s.auc_weighted), _number(s.label_weighted), _number(s.label_shown)) if explores else ()),
        )
    counts = {
        "lag in messages": reading.lag_messages,
        "open lists": reading.open_lists,
        "dead letters": reading.dead_letters,
        "duplicates skipped": reading.duplicates,
    }
    service = {"requests": reading.requests, "errors": reading.errors, "plain": reading.plain, "swaps": reading.swaps}
    model = f"steps {reading.steps:,.0f}   model at step {reading.model_step:,.0f}, {_number(reading.model_age_s, 1)} s old   "
    lines = [_counts(counts), model + _counts(service)]
    if reading.missing:
        lines.append(f"no event carries {', '.join(reading.missing)}: misspelt in [features], or not sent?")
    if reading.unreachable:
        lines.append(f"not answering: {', '.join(reading.unreachable)}")
    return Group(table, *(Text(line) for line in (*lines, *notes)))


def _counts(values: dict[str, float]) -> str:
    return "   ".join(f"{name} {value:,.0f}" for name, value in values.items())


def _number(value: float, digits: int = 4, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f}"

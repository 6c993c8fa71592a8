"""The live table: from Prometheus text to rows, rates and a rendering."""

import http.server
import io
import math
import re
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from streams import presence
from thousandfold import live

TEXT = b"""# TYPE thousandfold_rows_total counter
thousandfold_rows_total{scenario="home"} %d
thousandfold_rows_total{scenario="search"} 10
# TYPE thousandfold_auc gauge
thousandfold_auc{scenario="home",objective="click",variant="adapted",window="cumulative"} 0.8
thousandfold_auc{scenario="home",objective="click",variant="unadapted",window="cumulative"} 0.75
thousandfold_auc{scenario="home",objective="like",variant="adapted",window="cumulative"} 0.1
# TYPE thousandfold_requests_total counter
thousandfold_requests_total{status="200"} 7
thousandfold_requests_total{status="503"} 2
# TYPE thousandfold_snapshot_created_seconds gauge
thousandfold_snapshot_created_seconds 1000.0
"""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[int]]]:
    rows = [100]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(TEXT % rows[0])

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics", rows
    server.shutdown()
    thread.join()
    server.server_close()


def look(url: str, at_s: float, before: live.Reading | None) -> live.Reading:
    samples, silent = live.scrape({"learner": url, "gone": "http://127.0.0.1:1/metrics"})
    return live.read(samples, silent, at_s, 1010.0, "click", ("search", "home"), before)


def test_the_table_shows_the_wanted_objective_per_scenario_in_the_configured_order(endpoint: tuple[str, list[int]]) -> None:
    reading = look(endpoint[0], 0.0, None)
    assert [s.name for s in reading.scenarios] == ["search", "home"]
    home = reading.scenarios[1]
    assert (home.rows, home.auc, home.auc_unadapted) == (100, 0.8, 0.75)
    assert math.isnan(home.auc_river)
    assert reading.model_age_s == 10.0


def test_rates_come_from_the_reading_before(endpoint: tuple[str, list[int]]) -> None:
    url, rows = endpoint
    first = look(url, 0.0, None)
    rows[0] = 300
    assert look(url, 4.0, first).scenarios[1].rows_per_s == 50.0


def test_a_counter_that_started_again_gives_no_negative_rate(endpoint: tuple[str, list[int]]) -> None:
    url, rows = endpoint
    first = look(url, 0.0, None)
    rows[0] = 3
    assert look(url, 4.0, first).scenarios[1].rows_per_s == 0.0


def test_a_process_that_does_not_answer_is_named_and_errors_are_every_status_but_200(endpoint: tuple[str, list[int]]) -> None:
    reading = look(endpoint[0], 0.0, None)
    assert reading.unreachable == ("gone",)
    assert (reading.requests, reading.errors) == (9, 2)
    shown = io.StringIO()
    Console(width=160, file=shown).print(live.render(reading, "title"))
    text = shown.getvalue()
    assert "not answering: gone" in text
    assert "+0.0500" in text


def test_the_mode_in_force_is_shown_and_of_an_automatic_scenario_whether_it_is_on() -> None:
    modes = [({"scenario": s, "mode": m}, 1.0) for s, m in (("*", "off"), ("home", "auto"), ("search", "auto"))]
    samples: live.Samples = {
        "thousandfold_meta_mode": modes,
        "thousandfold_meta_auto": [({"scenario": "home"}, 1.0), ({"scenario": "search"}, 0.0)],
        "thousandfold_rows_total": [({"scenario": s}, 1.0) for s in ("home", "search", "offers")],
    }
    reading = live.read(samples, (), 0.0, 0.0, "click", (), None)
    assert {s.name: s.meta for s in reading.scenarios} == {"home": "auto: on", "search": "auto: off", "offers": "off"}
    assert live.in_force({}) == {}


def test_a_source_that_no_row_of_any_worker_carried_is_named_once_there_are_enough() -> None:
    def samples(rows: float) -> live.Samples:
        carried = (("item.prise", "a", 0.0), ("item.price", "a", 0.0), ("item.price", "b", 5.0))
        return {
            "thousandfold_events_total": [({"stage": "enrich", "kind": "rows"}, rows), ({"stage": "join", "kind": "rows"}, 1e6)],
            "thousandfold_source_rows_total": [({"source": s, "instance": i}, n) for s, i, n in carried],
        }

    assert live.missing(samples(presence.LEAST_ROWS - 1)) == ()
    reading = live.read(samples(presence.LEAST_ROWS), (), 0.0, 0.0, "click", (), None)
    assert reading.missing == ("item.prise",)
    shown = io.StringIO()
    Console(width=160, file=shown).print(live.render(reading, "title"))
    assert "no event carries item.prise: misspelt in [features], or not sent?" in shown.getvalue()


def test_figures_by_inverse_propensities_have_columns_where_a_scenario_explores() -> None:
    every = {"objective": "click", "window": "cumulative"}
    samples: live.Samples = {"thousandfold_rows_total": [({"scenario": s}, 1.0) for s in ("home", "search")]}

    def shown() -> str:
        out = io.StringIO()
        Console(width=200, file=out).print(live.render(live.read(samples, (), 0.0, 0.0, "click", (), None), "title"))
        return out.getvalue()

    assert "IPS" not in shown()
    samples |= {
        "thousandfold_ips_auc": [(every | {"scenario": "home", "variant": "adapted"}, 0.71)],
        "thousandfold_ips_mean_label": [
            (every | {"scenario": "home"}, 0.2),
            (every | {"scenario": "home", "window": "recent"}, 0.9),
        ],
        "thousandfold_shown_mean_label": [(every | {"scenario": "home"}, 0.3)],
    }
    assert re.search(r"IPS AUC.*IPS label.*shown label", shown())
    assert re.search(r"home.*0\.7100.*0\.2000.*0\.3000", shown())

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner, Result

from state import control, kafka_settings, kafka_topics
from thousandfold import live, meta_cli

Make = Callable[..., Any]


def meta(*arguments: str, config: pathlib.Path) -> Result:
    return CliRunner().invoke(meta_cli.app, [*arguments, "--config", str(config)], env={"COLUMNS": "200"})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│ \n").split("│")]


def test_what_was_set_is_shown_newest_per_scenario_with_where_it_lies(deployed: Make) -> None:
    made = deployed()
    for arguments in (("off",), ("off", "--scenario", "home"), ("fine_tune_only", "--scenario", "home")):
        done = meta("set", *arguments, config=made.path)
        assert (done.exit_code, done.exception) == (0, None)
    assert "home: fine_tune_only (offset 2 of " in done.stdout
    shown = meta("show", config=made.path)
    assert shown.exit_code == 0
    rows = [cells(line) for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [(r[0], r[2], r[4]) for r in rows] == [("*", "off", "0"), ("home", "fine_tune_only", "2")]
    found = meta_cli.read(made.config)
    assert [(name, a.switch.mode, a.offset) for name, a in found.items()] == [("*", "off", 0), ("home", "fine_tune_only", 2)]


def test_the_modes_in_force_come_from_the_learner_itself(deployed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = deployed()
    asked_at: list[dict[str, str]] = []

    def scrape(endpoints: dict[str, str]) -> tuple[live.Samples, tuple[str, ...]]:
        asked_at.append(endpoints)
        return {
            "thousandfold_meta_mode": [({"scenario": "*", "mode": "on"}, 1.0), ({"scenario": "home", "mode": "off"}, 1.0)]
        }, ()

    monkeypatch.setattr(live, "scrape", scrape)
    meta("set", "off", "--scenario", "home", config=made.path)
    shown = meta("show", "--url", "http://learner:9102/metrics", config=made.path)
    rows = [cells(line) for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [r[:3] for r in rows] == [["*", "on", "-"], ["home", "off", "off"]]
    assert asked_at == [{"learner": "http://learner:9102/metrics"}]


def test_records_that_are_no_switches_and_decisions_of_learners_are_passed_over(deployed: Make) -> None:
    made = deployed()
    producer = Producer(kafka_settings.producer(made.config))
    producer.produce(made.config.topics.control, b"junk", key=b"home", partition=0)
    decision = control.Decision(scenario="home", on=True, first_step=1, sequence=0, wall_ms=1)
    key, value = control.encode_decision(decision)
    producer.produce(made.config.topics.control, value, key=key, partition=0)
    assert producer.flush(20) == 0
    assert meta_cli.read(made.config) == {}
    offset = meta_cli.write(made.config, control.Switch(scenario="home", mode="on", wall_ms=5))
    assert offset == 2
    assert meta_cli.read(made.config) == {"home": meta_cli.Asked(control.Switch(scenario="home", mode="on", wall_ms=5), offset)}


def test_an_unknown_mode_and_an_empty_scenario_are_refused_before_anything_is_written(make_config: Make) -> None:
    made = make_config(kafka={"bootstrap": "127.0.0.1:1"})
    wrong = meta("set", "sometimes", config=made.path)
    assert wrong.exit_code == 2
    assert "fine_tune_only" in wrong.stderr
    with pytest.raises(meta_cli.MetaFailed, match="--scenario is empty"):
        meta_cli.set_mode("off", "", made.path)


def test_topics_that_were_never_created_are_named_with_what_to_run(broker: Any, make_config: Make) -> None:
    made = make_config(kafka={"bootstrap": broker.bootstrap})
    with pytest.raises(kafka_topics.TopicsWrong, match=r"control.*thousandfold topics create"):
        meta_cli.set_mode("off", "home", made.path)
    with pytest.raises(kafka_topics.TopicsWrong, match="thousandfold topics create"):
        meta_cli.show(made.path)


def test_a_scenario_that_nobody_knows_is_switched_with_a_note(deployed: Make) -> None:
    made = deployed(scenarios={"known": ["home", "search"]})
    done = meta("set", "off", "--scenario", "hoem", config=made.path)
    assert done.exit_code == 0
    assert "hoem is none of scenarios.known (home, search)" in done.stderr
    assert meta("set", "off", "--scenario", "home", config=made.path).stderr == ""

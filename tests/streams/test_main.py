import pathlib

import pytest

from state import kafka_topics
from streams import __main__ as main


def test_stages_are_run_in_the_order_of_the_flow() -> None:
    assert main.arguments(["--stages", "join,enrich"]).stages == ("enrich", "join")
    assert main.arguments([]).stages == ("enrich", "join", "group")


def test_an_unknown_stage_is_refused_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.arguments(["--stages", "enrich,sort"])
    assert stopped.value.code == 2
    assert "'sort' is no stage; allowed: enrich, join, group" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "unknown = 1", 'kafka = { bootstrap = "127.0.0.1:1" }'])
def test_a_wrong_configuration_or_a_missing_broker_ends_with_2(
    text: str | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "t.toml"
    if text is not None:
        file.write_text(text)
    require = kafka_topics.require
    monkeypatch.setattr(kafka_topics, "require", lambda config: require(config, timeout_s=1.0))
    monkeypatch.setattr("sys.argv", ["streams", "--config", str(file)])
    assert main.main() == 2
    assert caplog.records[-1].levelname == "CRITICAL"

import pathlib
import re
import typing

import msgspec
import pytest
from typer.testing import CliRunner

from state import config as configuration
from thousandfold import configuration as pages

ROOT = pathlib.Path(configuration.__file__).parent.parent


def _settings(kind: type[msgspec.Struct]) -> set[tuple[str, str]]:
    """(struct, field) of every setting, found by the annotations alone."""
    found: set[tuple[str, str]] = set()
    for name, hint in typing.get_type_hints(kind).items():
        inner = [a for a in (hint, *typing.get_args(hint)) if isinstance(a, type) and issubclass(a, msgspec.Struct)]
        found |= _settings(inner[0]) if inner else {(kind.__name__, name)}
    return found


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == pages.page(), "run: make docs"


def test_the_page_names_every_setting_and_says_what_it_means() -> None:
    tables = pages.tables()
    assert sum(len(table.settings) for table in tables) == len(_settings(configuration.Config))
    undescribed = [(table.title, s.key) for table in tables for s in table.settings if not s.description]
    assert undescribed == []
    assert all(table.summary for table in tables)


def test_defaults_and_ranges_on_the_page_are_those_that_are_enforced() -> None:
    rows = {(table.title, s.key): s for table in pages.tables() for s in table.settings}
    assert rows["[kafka]", "partitions"] == pages.Setting(
        "partitions", "integer", "4", "≥ 1, ≤ 4,096", "partitions of every data topic (co-partitioned)"
    )
    assert rows["[[features.statistics]]", "kind"].default == ""
    assert "`true`" in rows["[model]", "use_epnet"].allowed


@pytest.mark.parametrize("file", [None, *sorted((ROOT / "examples").glob("*.toml"))], ids=lambda f: f.name if f else "defaults")
def test_what_show_prints_reads_back_as_the_same_configuration(file: pathlib.Path | None) -> None:
    config = configuration.load(file) if file else configuration.Config()
    assert configuration.parse(pages.to_toml(config)) == config


def test_texts_that_need_escaping_read_back(make_config: typing.Callable[..., typing.Any]) -> None:
    odd = 'a "quoted"\n\\ü\t'
    config = make_config(scenarios={"known": [odd]}, meta={"scenarios": {"on the left": "off"}}).config
    again = configuration.parse(pages.to_toml(config))
    assert again.scenarios.known == (odd,)
    assert again.meta.scenarios == {"on the left": "off"}


def test_check_says_what_a_file_comes_to(make_config: typing.Callable[..., typing.Any]) -> None:
    result = CliRunner().invoke(pages.app, ["check", str(make_config().path)])
    assert result.exit_code == 0
    assert "3 categories in 3 id columns, 2 numbers" in result.output


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ('[model]\ncommon_features = ["clor"]', r'model.common_features: "clor" is not a declared column; allowed: item, '),
        ('[model]\nname = "dupn"', "dupn reads categories of the user's last actions"),
        ('[model]\nname = "two_tower"', "two_tower needs a column of the item's side"),
        ('[embedding]\ncold = "meta"', 'embedding.cold = "meta" needs a category with source "item_id"'),
        ('[model]\nnative = true\nname = "star"\n[meta]\nalgorithm = "anil"', "model.native: true, but a native network"),
        ('[model]\nname = "nobody"', 'model.name: "nobody" is unknown'),
    ],
)  # fmt: skip
def test_check_finds_what_would_stop_the_learner_at_its_start(tmp_path: pathlib.Path, own: str, message: str) -> None:
    of_item = "" if "two_tower" in own else '{ name = "item", source = "item_id" }, '
    personal = "" if of_item else '\npersonal_features = ["user"]'
    declared = f'{of_item}{{ name = "user", source = "user_id" }}, {{ name = "scenario", source = "scenario" }}'
    file = tmp_path / "own.toml"
    file.write_text(f"{own}{personal}\n[features]\ncategories = [{declared}]\n")
    found = CliRunner().invoke(pages.app, ["check", str(file)]).exception
    assert isinstance(found, configuration.ConfigError)
    assert re.search(message, str(found))
    assert str(file) in str(found)


def test_document_writes_the_page(tmp_path: pathlib.Path) -> None:
    result = CliRunner().invoke(pages.app, ["document", "--out", str(tmp_path / "page.md")])
    assert result.exit_code == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == pages.page()

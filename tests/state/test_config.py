import pathlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import config as configuration
from state.config import Config, ConfigError

ROOT = pathlib.Path(configuration.__file__).parent.parent


def test_an_empty_file_is_all_defaults() -> None:
    assert configuration.parse("") == Config()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.name)
def test_every_example_that_is_a_configuration_is_valid(file: pathlib.Path) -> None:
    assert configuration.load(file).features.categories


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[kafka]\npartition = 4", ("kafka.partition: unknown key", "allowed: bootstrap", "partitions")),
        ("[kafkaa]", ("kafkaa: unknown key", "allowed: actions", "kafka")),
        (
            "[[objectives]]\nname = 'a'\naction = 'b'\ncolour = 1",
            ("colour: unknown key", "allowed: action, classes, kind, layers, loss, loss_weight, min_value, name"),
        ),
        ("[kafka]\npartitions = 'four'", ("kafka.partitions", "Expected `int`", "'four'")),
        ("[kafka]\npartitions = 0", ("kafka.partitions", ">= 1", "got 0")),
        ("[join]\nmode = 'both'", ("join.mode", "'both'")),
        ("[[objectives]]\naction = 'b'", ("objectives[0]", "name")),
        ("[[objectives]]\nname='a'\naction='x'\nkind='multi'", ("objectives[0].kind", "'multi'")),
        ("[[objectives]]\nname='a'\naction='x'\nkind='multiclass'", ("objectives[0].classes", "2 or more, got 0")),
        ("[[objectives]]\nname='a'\naction='x'\nclasses=3", ("objectives[0].classes", 'only kind = "multiclass"')),
        ("[[objectives]]\nname='a'\naction='x'\ntransform='log1p'", ("objectives[0].transform", 'only kind = "regression"')),
        ("[[objectives]]\nname='a'\naction='x'\nweights={y=2.0}", ("objectives[0].weights", 'only kind = "ranking"')),
        ("[[objectives]]\nname='a'\naction='x'\nscenarios=['hom']", ("objectives[0].scenarios", '"hom" is not in', "none is")),
        (
            "[scenarios]\nknown=['home','shop']\n[[objectives]]\nname='a'\naction='x'\nscenarios=['home']",
            ("objectives:", '"shop" of scenarios.known has no objective'),
        ),
        ("[task]\nkey = []", ("task.key", "length >= 1")),
        ("[task]\nkey = ['page']", ("task.key", '"page" is neither "user"')),
        ("[[objectives]]\nname='a'\naction='x'\n[[objectives]]\nname='a'\naction='y'", ("objectives: names must differ",)),
        ("[join]\nwindow_s = 700000.0", ("join.window_s", "must not exceed retention_s")),
        ("[scenarios]\nnegative_sampling = { home = 0.0 }", ("scenarios.negative_sampling", "> 0.0")),
        (
            "[scenarios]\nknown = ['home']\nnegative_sampling = { shop = 0.1 }",
            ("scenarios.negative_sampling", '"shop" is not in scenarios.known (home)'),
        ),
        (
            "[join]\nmode = 'eager'\n[scenarios]\nnegative_sampling = { '*' = 0.1 }",
            ("scenarios.negative_sampling", 'needs join.mode = "window"'),
        ),
        ("[support]\nmax_age_s = 1.0", ("support.max_age_s", "at least join.window_s")),
        ("kafka = 3", ("kafka", "object", "got 3")),
        ("[kafka", ("not valid TOML",)),
    ],
)
def test_an_error_names_the_file_the_key_the_value_and_what_is_allowed(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.parse(text, "mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml: ")
    for word in words:
        assert word in message


def test_a_gate_that_reads_an_undeclared_column_is_a_contradiction() -> None:
    text = (
        "[model]\nscenario_features = ['scenario', 'weather']\n"
        "[features]\ncategories = [{ name = 'user', source = 'user_id' }, { name = 'item', source = 'item_id' }, "
        "{ name = 'scenario', source = 'scenario' }]"
    )
    with pytest.raises(
        ConfigError, match=r'model\.scenario_features: "weather" is not a declared column; allowed: item, scenario, user'
    ):
        configuration.parse(text)


SOFTMAX = """
[model]
name = "two_tower"
personal_features = ["item"]
[retrieval]
loss = "softmax"
[[objectives]]
name = "like"
action = "like"
kind = "ranking"
[features]
categories = [{ name = "user", source = "user_id" }, { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" }, { name = "genre", source = "item.genre" }]
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "two_tower"', 'name = "pepnet"', 'softmax wants model.name = "two_tower"'),
        ('kind = "ranking"', 'kind = "binary"', 'know one objective, kind = "ranking"; declared: binary'),
        (
            '{ name = "user", source = "user_id" }',
            '{ name = "who", source = "user.name" }',
            'categories with source = "user_id"',
        ),
        ("[model]", '[meta]\nalgorithm = "maml"\n[model]', 'know meta.algorithm = "fomaml" only'),
        ("[model]", '[support]\nmode = "meta_inputs"\n[model]', 'want support.mode = "features"'),
        ("[model]", '[embedding]\ncold = "meta"\n[model]', 'set embedding.cold = "off"'),
        ("[model]", '[learner]\ndevice = "cuda"\n[model]', 'set learner.device = "cpu"'),
    ],
)
def test_what_a_sampled_softmax_lacks_is_a_contradiction(old: str, new: str, problem: str) -> None:
    assert configuration.parse(SOFTMAX).names_items
    with pytest.raises(ConfigError) as caught:
        configuration.parse(SOFTMAX.replace(old, new))
    assert problem in str(caught.value)


def test_a_task_may_be_a_declared_category() -> None:
    text = (
        "[task]\nkey = ['advertiser', 'user']\n[features]\ncategories = [{ name = 'user', source = 'user_id' }, "
        "{ name = 'item', source = 'item_id' }, { name = 'scenario', source = 'scenario' }, "
        "{ name = 'advertiser', source = 'item.advertiser' }]"
    )
    assert configuration.parse(text).task.key == ("advertiser", "user")


def test_a_missing_file_says_how_to_name_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere\.toml: cannot be read \(No such file or directory\); name a file with --config"
    ):
        configuration.load(tmp_path / "nowhere.toml")


RANKED = """
[task]
key = {key}
[[objectives]]
name = "order"
action = "click"
kind = "{kind}"
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "scenario", source = "scenario" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "film", source = "item_id" }},
  {{ name = "genre", source = "item.genre", max_values = 3 }},
  {{ name = "place", source = "position" }},
  {{ name = "country", source = "user.country" }},
  {{ name = "query", source = "context.query" }},
]
"""


@pytest.mark.parametrize("key", [["item"], ["film"], ["genre"], ["place"], ["user", "genre"]])
def test_a_ranking_is_refused_where_tasks_would_cut_its_lists(key: list[str]) -> None:
    with pytest.raises(configuration.ConfigError, match=r'task.key: "\w+" differs within .*ranking \("order"\) has nothing to'):
        configuration.parse(RANKED.format(key=key, kind="ranking"))
    assert configuration.parse(RANKED.format(key=key, kind="binary")).task.key == tuple(key)


def test_a_ranking_goes_with_tasks_that_keep_lists_whole() -> None:
    key = ["user", "country", "query"]
    assert configuration.parse(RANKED.format(key=key, kind="ranking")).task.key == tuple(key)


def test_kinds_of_action_are_those_of_the_objectives_first_and_each_once() -> None:
    text = (
        "[actions]\nother = ['view', 'click']\n[[objectives]]\nname='a'\naction='click'\n[[objectives]]\nname='b'\naction='click'"
    )
    assert configuration.parse(text).action_kinds == ("click", "view")


def test_a_configuration_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(AttributeError):
        Config().kafka.partitions = 5  # type: ignore[misc]


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.lists(st.integers()), min_size=1))
def test_any_table_of_nonsense_is_refused_or_read_and_never_a_crash(raw: dict[str, object]) -> None:
    text = "".join(f'"{_escape(key)}" = {_literal(value)}\n' for key, value in raw.items())
    tomllib.loads(text)
    with pytest.raises(ConfigError):
        configuration.parse(f"[serving]\n{text}")


def _escape(text: str) -> str:
    return "".join(f"\\U{ord(c):08X}" if ord(c) < 0x20 or c in '"\\\x7f' else c for c in text)


def _literal(value: object) -> str:
    return f'"{_escape(value)}"' if isinstance(value, str) else repr(value)


def test_a_layer_cannot_lose_more_at_least_than_at_most() -> None:
    with pytest.raises(ConfigError, match=r"model\.prune_least: must not exceed prune_most, which is 0\.25"):
        configuration.parse("[model]\nprune_least = 0.5\n")


def test_kinds_of_action_are_those_of_all_objectives_with_what_a_ranking_weighs() -> None:
    made = configuration.parse(
        "[scenarios]\nknown=['home','shop']\n[[objectives]]\nname='a'\naction='click'\nscenarios=['home']\n"
        "[[objectives]]\nname='b'\naction='click'\nkind='ranking'\nweights={buy=5.0}\n"
        "[[objectives]]\nname='c'\naction='buy'\nkind='multiclass'\nclasses=7\n[actions]\nother=['view']"
    )
    assert made.action_kinds == ("click", "buy", "view")
    assert [o.outputs for o in made.objectives] == [1, 1, 7]
    assert [o.exists("shop") for o in made.objectives] == [False, True, True]


def test_auto_without_a_binary_objective_is_refused() -> None:
    text = '[meta]\nscenarios = { home = "auto" }\n[[objectives]]\nname = "price"\naction = "buy"\nkind = "regression"\n'
    with pytest.raises(ConfigError, match=r"meta\.mode.*binary"):
        configuration.parse(text)

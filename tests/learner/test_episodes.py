"""Episodes: what the bytes must be, and minibatches of whole lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner import episodes, rehearsal
from learner.episodes import Refused
from learner.loop import layout_of
from state import columns, config, ids, plan

SETTINGS = config.parse(
    """
objectives = [{ name = "click", action = "click" }, { name = "like", action = "like" }]
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
numbers = [{ name = "price", source = "item.price" }]
"""
)
LAYOUT = layout_of(SETTINGS)


def changed(name: str, value: object) -> bytes:
    """A good message with one column replaced (or dropped, with None)."""
    head, packed = columns.unpack(rehearsal.message(SETTINGS, 0, seed=1).value)
    if value is None:
        del packed[name]
    else:
        packed[name] = value(packed[name].copy()) if callable(value) else np.asarray(value)
    return columns.pack(packed, spec=head["spec"], scenarios=head["scenarios"])


def test_messages_become_one_set_of_columns_in_their_order() -> None:
    values = [rehearsal.message(SETTINGS, offset, seed=offset, lists=offset + 1).value for offset in range(3)]
    lists = episodes.merge([episodes.decode(value, LAYOUT) for value in values], LAYOUT)
    assert lists.size == 6
    assert lists.source.tolist() == [0, 1, 1, 2, 2, 2]
    assert lists.place.tolist() == [0, 0, 1, 0, 1, 2]
    assert lists.scenarios == {ids.of("even"): "even", ids.of("odd"): "odd"}
    separate = [columns.unpack(value)[1] for value in values]
    for name in ("request", "ids", "s_x", "weight"):
        np.testing.assert_array_equal(lists.columns[name], np.concatenate([c[name] for c in separate]))


def test_a_fetch_without_a_usable_message_has_no_lists() -> None:
    lists = episodes.merge([], LAYOUT)
    assert (lists.size, lists.rows) == (0, 0)
    assert list(episodes.minibatches(lists, 50)) == []


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("user", None, "`user` is missing"),
        ("x", lambda a: a[:-1], "`x` is"),
        ("x", lambda a: a.astype(np.float64), "`x` is <f8"),
        ("n_items", lambda a: -a, "negative"),
        ("n_support", lambda a: a + 1, "`s_ids` is"),
        ("label", lambda a: a + 1, r"outside \[0, 1\]"),
        ("label", lambda a: a * np.float32("nan"), r"outside \[0, 1\]"),
        ("s_label", lambda a: a - 1, r"outside \[0, 1\]"),
        ("weight", lambda a: -a, "negative or not finite"),
        ("x", lambda a: np.full_like(a, np.inf), "infinite"),
        ("version", lambda a: a[:, None], "`version` is"),
    ],
)
def test_a_column_that_could_fail_later_is_refused_with_its_name(name: str, value: object, problem: str) -> None:
    with pytest.raises(Refused, match=problem) as refused:
        episodes.decode(changed(name, value), LAYOUT)
    assert refused.value.reason == plan.MALFORMED


@pytest.mark.parametrize(("said", "problem"), [([0.0], "not above 0"), ([1.5], "not above 0"), ([0.5, 0.5], "`propensity` is")])
def test_a_propensity_that_is_none_is_refused_and_an_unknown_one_is_not(said: list[float], problem: str) -> None:
    head, packed = columns.unpack(rehearsal.message(SETTINGS, 0, seed=1).value)
    unknown = np.full(len(packed["ids"]), np.nan, np.float32)
    kept, _ = episodes.decode(columns.pack({**packed, "propensity": unknown}, spec=head["spec"]), LAYOUT)
    assert np.isnan(kept["propensity"]).all()
    bad = np.concatenate([np.array(said, np.float32), unknown[1:]])
    with pytest.raises(Refused, match=problem):
        episodes.decode(columns.pack({**packed, "propensity": bad}, spec=head["spec"]), LAYOUT)


def test_an_absent_number_is_no_defect() -> None:
    packed, _ = episodes.decode(changed("x", lambda a: np.full_like(a, np.nan)), LAYOUT)
    assert np.isnan(packed["x"]).all()


def test_a_message_of_another_feature_spec_is_refused_as_such() -> None:
    with pytest.raises(Refused, match="replay the raw topics") as refused:
        episodes.decode(rehearsal.message(SETTINGS, 0, seed=1).value, LAYOUT._replace(spec="else"))
    assert refused.value.reason == plan.SCHEMA


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(junk: bytes) -> None:
    with pytest.raises(Refused):
        episodes.decode(junk, LAYOUT)


@given(st.data())
def test_a_truncated_message_is_refused(data: st.DataObject) -> None:
    value = rehearsal.message(SETTINGS, 0, seed=1).value
    with pytest.raises(Refused):
        episodes.decode(value[: data.draw(st.integers(0, len(value) - 9))], LAYOUT)


def test_names_that_are_no_map_are_refused() -> None:
    head, packed = columns.unpack(rehearsal.message(SETTINGS, 0, seed=1).value)
    for names in ([1], {"x": "y"}, 3):
        with pytest.raises(Refused, match="scenarios"):
            episodes.decode(columns.pack(packed, spec=head["spec"], scenarios=names), LAYOUT)


@given(st.lists(st.integers(0, 120), max_size=40), st.integers(1, 100))
def test_minibatches_hold_whole_lists_within_the_budget(n_items: list[int], budget: int) -> None:
    bounds = episodes.cut(np.array(n_items, np.int32), budget)
    assert [i for first, last in bounds for i in range(first, last)] == list(range(len(n_items)))
    for k, (first, last) in enumerate(bounds):
        assert last == first + 1 or sum(n_items[first:last]) <= budget
        if k + 1 < len(bounds):
            assert sum(n_items[first : last + 1]) > budget, "a list that fitted was left out"


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(1, 12))
def test_dropping_lists_and_cutting_keeps_every_row_with_its_list(wanted: list[bool], budget: int) -> None:
    lists = episodes.merge([episodes.decode(rehearsal.message(SETTINGS, 0, seed=3, lists=12).value, LAYOUT)], LAYOUT)
    kept = episodes.keep(lists, np.array(wanted))
    cuts = list(episodes.minibatches(kept, budget))
    assert sum(m.stop - m.start for m in cuts) == kept.rows
    row = np.concatenate([[0], np.cumsum(lists.columns["n_items"])])
    support = np.concatenate([[0], np.cumsum(lists.columns["n_support"])])
    expected = [i for i in range(12) if wanted[i]]
    assert kept.place.tolist() == expected
    for m in cuts:
        mine = expected[m.first : m.last]
        np.testing.assert_array_equal(m.batch.x, np.concatenate([lists.columns["x"][row[i] : row[i + 1]] for i in mine]))
        wanted_support = [lists.columns["s_ids"][support[i] : support[i + 1]] for i in mine]
        np.testing.assert_array_equal(m.batch.s_ids, np.concatenate(wanted_support))
        assert m.now_ms == max(lists.columns["ts"][i] for i in mine)


KINDS = config.parse(
    """
[scenarios]
known = ["even", "odd"]
[[objectives]]
name = "click"
action = "click"
scenarios = ["even"]
[[objectives]]
name = "power"
action = "buy"
kind = "multiclass"
classes = 2
[[objectives]]
name = "time"
action = "watch"
kind = "regression"
transform = "log1p"
[[objectives]]
name = "order"
action = "click"
kind = "ranking"
[features]
categories = [{ name = "user", source = "user_id" }, { name = "item", source = "item_id" }]
[model]
scenario_features = []
personal_features = ["user", "item"]
"""
)


@pytest.mark.parametrize(
    ("objective", "label", "problem"),
    [
        (0, np.nan, ""), (0, 2, r'"click" holds a value outside \[0, 1\]'), (1, np.nan, ""), (1, 2, "no class, 0 to 1"),
        (1, 0.5, "no class"), (1, -1, "no class"), (2, 1e6, ""), (2, -1, "negative"), (2, np.inf, "infinite"), (2, np.nan, ""),
        (3, 5, ""), (3, -1, "negative"), (3, np.nan, "NaN, and it exists in every scenario"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["label", "s_label"])
def test_a_label_must_be_one_of_its_objective(name: str, objective: int, label: float, problem: str) -> None:
    head, packed = columns.unpack(rehearsal.message(KINDS, 0, seed=1).value)
    packed = {column: array.copy() for column, array in packed.items()}
    packed[name][0, objective] = label
    packed["weight"][np.isnan(packed["label"])] = 0
    value = columns.pack(packed, spec=head["spec"], scenarios=head["scenarios"])
    if not problem:
        found, _ = episodes.decode(value, layout_of(KINDS))
        np.testing.assert_array_equal(found[name], packed[name])
        return
    with pytest.raises(Refused, match=problem) as refused:
        episodes.decode(value, layout_of(KINDS))
    assert refused.value.reason == plan.MALFORMED


def test_a_weight_without_a_label_is_refused() -> None:
    head, packed = columns.unpack(rehearsal.message(KINDS, 0, seed=1).value)
    packed["label"] = np.full_like(packed["label"], np.nan)
    packed["label"][:, 3] = 0
    with pytest.raises(Refused, match="above 0 where there is no label"):
        episodes.decode(columns.pack(packed, spec=head["spec"], scenarios=head["scenarios"]), layout_of(KINDS))

"""`bench retrieval`: searched before learned, nothing from the future, and ranks as one would count them."""

import numpy as np
import pytest

from models import retriever
from state import config
from thousandfold.bench import protocol, quality, retrieval, retrieval_command, retrieval_stream

TEXT = """
[model]
name = "two_tower"
embedding_width = 4
hidden = [8, 8]
[embedding]
capacity = 8192
init_scale = 0.3
[meta]
inner_rate = 5.0
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "category", source = "item.category" },
  { name = "last_items", source = "recent.item", max_values = 5, share = "item" },
]
"""
DECLARED = config.parse(TEXT)


def test_a_rank_counts_what_is_above_and_half_of_the_equals_and_leaves_out_what_was_shown() -> None:
    score = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, -np.inf], [1.0, 2.0, 3.0, -np.inf]])
    ranks = retrieval.rank(score, np.array([2, 1, 3]), [[0], [], []])
    assert ranks.tolist() == [1, 1, retrieval.NEVER]


def test_figures_are_those_of_the_ranks() -> None:
    found = retrieval_command.of_each(np.array([0, 9, 10, 49, 50, retrieval.NEVER]))
    assert [found[f].mean() for f in retrieval_command.FIGURES] == pytest.approx([2 / 6, 4 / 6, (1 + 1 / np.log2(11)) / 6])


def test_an_error_is_that_of_users_whose_actions_hang_together() -> None:
    values, user = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1, 2, 2])
    value, error = retrieval_command.mean(values, user)
    assert value == 0.5
    # Sums over users are 1, -1 and 0 off the mean; three users, six actions.
    assert error == pytest.approx(np.sqrt(2 * 3 / 2) / 6)
    assert np.isnan(retrieval_command.mean(values[:0], user[:0])[0])


@pytest.fixture(scope="module")
def log() -> retrieval.Log:
    events = quality.open_log(DECLARED, "simulate", None, 3000)
    return retrieval.log_of(protocol.prepare(DECLARED, events, protocol.Lag()))


def test_a_history_is_what_the_user_did_strictly_before(log: retrieval.Log) -> None:
    known, lengths = retrieval.Catalogue(log), []
    for row in log.acted.tolist():
        known.read(row)
        before = known.before(row)
        same = (log.user[log.acted] == log.user[row]) & (log.ts[log.acted] < log.ts[row])
        assert before.tolist() == log.acted[same].tolist()
        lengths.append(len(before))
    assert max(lengths) > 1
    assert known.count.sum() == known.recent.sum() == len(log.acted) - 1


def test_every_action_is_searched_by_every_method_and_the_same_seed_finds_the_same(log: retrieval.Log) -> None:
    first, second = (retrieval.measure(DECLARED, log, retrieval.Options()) for _ in range(2))
    assert set(first.of) == {"popular", "recently popular", "unadapted", "adapted"}
    for name, ranks in first.of.items():
        assert len(ranks) == len(log.acted) == len(first.history)
        assert ranks.tolist() == second.of[name].tolist()
    assert (first.of["adapted"] != first.of["unadapted"]).any()


SOFTMAX = config.parse(
    TEXT.replace("[embedding]", '[retrieval]\nloss = "softmax"\ncandidates = 32\nqueue = 256\nmax_idle_s = 1e9\n[embedding]', 1)
    + '[[objectives]]\nname = "click"\naction = "click"\nkind = "ranking"\n'
)


@pytest.fixture(scope="module")
def searched(log: retrieval.Log) -> retrieval.Ranks:
    return retrieval_stream.measure(SOFTMAX, log)


def test_the_learner_is_searched_for_every_action_and_finds_nothing_before_it_has_learned(
    log: retrieval.Log, searched: retrieval.Ranks
) -> None:
    assert set(searched.of) == {*retrieval_stream.POPULAR, *retrieval_stream.MODES}
    assert searched.row.tolist() == log.acted.tolist()
    first = searched.row < SOFTMAX.quality.block_rows // 2
    assert first.any()
    for ranks in searched.of.values():
        assert (ranks[first] == retrieval.NEVER).all()
    adapted, unadapted = (searched.of[name] for name in ("adapted", "unadapted"))
    assert (adapted != unadapted).any()
    assert (adapted[~first] < 10).any()


def test_an_item_is_found_where_the_published_scores_put_it(log: retrieval.Log) -> None:
    search = retrieval_stream.Search(SOFTMAX, log, 1)
    learner = retrieval_stream.Searched(SOFTMAX, search)
    protocol.run(SOFTMAX, log.inputs, trainer=learner)
    published = learner.published()
    assert published is not None
    row = int(log.acted[-1])
    asked = retriever.Asked(log.inputs.ids[row : row + 1], log.inputs.x[row : row + 1], 0, None)
    whole = [int(name) for name in published.retrieve(asked, len(published.index.names)).items]
    assert sorted(whole) == np.unique(log.item).tolist()
    hidden, wanted = whole[0], whole[1]
    best = published.retrieve(asked, 1, {int(search.key[hidden])}).items
    assert best == [str(wanted)]


def test_of_every_nth_list_the_ranks_are_those_of_all_lists(log: retrieval.Log, searched: retrieval.Ranks) -> None:
    some = retrieval_stream.measure(SOFTMAX, log, every=4)
    assert 0 < len(some.row) < len(searched.row) / 2
    place = np.searchsorted(searched.row, some.row)
    for name, ranks in some.of.items():
        assert ranks.tolist() == searched.of[name][place].tolist()
    assert some.history.tolist() == searched.history[place].tolist()


def test_the_table_tells_methods_by_scenario_and_what_adapting_gains(log: retrieval.Log, searched: retrieval.Ranks) -> None:
    shown = retrieval_command.shown(log, SOFTMAX, searched, len(log.acted) // 5)
    _, rows = retrieval_command.table({"learner": shown})
    found = {row.id: row.value or 0.0 for row in rows}
    assert found["retrieval/learner, adapted/recall@50"] > 0
    for figure in retrieval_command.FIGURES:
        gain = found[f"retrieval/learner, adapted/{figure}"] - found[f"retrieval/learner, unadapted/{figure}"]
        assert found[f"retrieval/learner, gain/{figure}"] == pytest.approx(gain)
    parts = {row.id.split("/")[3] for row in rows if row.id.count("/") == 3}
    assert parts == {name for name, _ in quality.scenarios_of(SOFTMAX, log.inputs)}


def test_towers_without_the_item_as_a_category_cannot_be_searched(log: retrieval.Log) -> None:
    text = TEXT.replace('  { name = "item", source = "item_id" },\n', "").replace(', share = "item"', "")
    without = config.parse(text.replace("hidden", 'personal_features = ["user"]\nhidden'))
    with pytest.raises(config.ConfigError, match="item_id"):
        retrieval_stream.measure(without, log)


def test_the_logistic_towers_keep_features_and_take_their_own_objective() -> None:
    plain = retrieval_stream.pointwise(SOFTMAX)
    assert plain.features == SOFTMAX.features
    assert [o.kind for o in plain.objectives] == ["binary"]
    assert plain.retrieval.loss == "objectives"

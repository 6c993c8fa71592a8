import re

import numpy as np
import pytest

from learner import step
from models import base, embedding, fused_rows, scorer
from state import consistency, ids
from tests import minibatches


def filled() -> tuple[embedding.Table, embedding.I32, embedding.F32]:
    settings = minibatches.settings(embedding={"init_scale": 0.5})
    batch = minibatches.minibatch(settings, lists=12)
    table = embedding.Table(settings)
    return table, table.admit(batch.ids, 0), batch.x


def gathered(table: embedding.Table, rows: embedding.I32, x: embedding.F32) -> embedding.F32:
    out = np.full((len(rows), table.row), np.nan, np.float32)
    table.gather(rows, x, np.zeros(len(rows), np.int64), out)
    return out


def test_a_multi_valued_category_is_the_mean_of_what_is_present_and_zero_if_nothing_is() -> None:
    table, rows, x = filled()
    rows[0, 3:] = [10, -1, 11]
    rows[1, 3:] = -1
    out = gathered(table, rows, x)
    assert out[0, 12:16] == pytest.approx((table.table[10, :4] + table.table[11, :4]) / 2)
    assert not out[1, 12:16].any()
    assert out[0, :4].tolist() == table.table[rows[0, 0], :4].tolist()


def test_numbers_are_standardised_clipped_and_absent_ones_are_the_mean() -> None:
    table, rows, x = filled()
    table.observe(x, np.zeros(len(x), np.int64), np.ones(len(x)))
    x[0], x[1, 0], x[1, 1] = table.mean + 1 / table.scale, 1e9, np.nan
    out = gathered(table, rows, x)
    assert out[0, 16:18] == pytest.approx([1, 1], rel=1e-5)
    assert out[1, 16:18].tolist() == [4, 0]


def test_with_moments_by_scenario_each_row_is_standardised_by_its_own_and_strangers_by_the_shared_ones() -> None:
    settings = minibatches.settings(model={"moments": "scenario"})
    table, generator = embedding.Table(settings), np.random.default_rng(0)
    x = generator.normal([[10, -3]], [[2, 1]], (8000, 2)).astype(np.float32)
    slot = np.repeat([1, 2], 4000)
    x[slot == 2] = x[slot == 2] * 50 + 7000
    table.observe(x, slot, np.ones(len(x)))
    out = np.empty((len(x), table.row), np.float32)
    rows = np.full((len(x), 6), -1, np.int32)
    table.gather(rows, x, slot, out)
    for s in (1, 2):
        assert out[slot == s, 16:18].mean(0) == pytest.approx([0, 0], abs=0.03)
        assert out[slot == s, 16:18].std(0) == pytest.approx([1, 1], abs=0.05)
    table.gather(rows, x, np.zeros(len(x), np.int64), out)
    shared = embedding.Table(minibatches.settings())
    shared.observe(x, slot, np.ones(len(x)))
    assert out[:, 16:18] == pytest.approx(gathered(shared, rows, x)[:, 16:18], abs=1e-5)
    assert out[slot == 1, 16:18].std(0).max() < 0.1


def stepped(table: embedding.Table, rows: embedding.I32, gradient: embedding.F32) -> tuple[embedding.F64, embedding.F64]:
    """What table and accumulators should be after a step, by a plain loop."""
    wanted, accumulator = table.table.astype(np.float64), table.accumulator.astype(np.float64)
    total, fields = np.zeros_like(wanted), len(table.columns.starts)
    for i, row in enumerate(rows):
        for c, (start, width) in enumerate(zip(table.columns.starts, table.columns.widths, strict=True)):
            present = [r for r in row[start : start + width] if r >= 0]
            for r in present:
                total[r, :4] += gradient[i, 4 * c : 4 * c + 4] / len(present)
                total[r, 4] += gradient[i, table.row - fields + c] / len(present)
    accumulator[:, 0] += (total[:, :4] ** 2).mean(1)
    accumulator[:, 1] += total[:, 4] ** 2
    touched = np.unique(rows[rows >= 0])
    wanted[touched, :4] -= 0.05 * total[touched, :4] / (np.sqrt(accumulator[touched, :1]) + 1e-8)
    wanted[touched, 4] -= 0.05 * total[touched, 4] / (np.sqrt(accumulator[touched, 1]) + 1e-8)
    return wanted, accumulator


@pytest.mark.parametrize("single", [False, True])
def test_adagrad_sums_duplicates_first_and_matches_a_plain_loop(single: bool) -> None:
    declared = minibatches.settings()
    categories = tuple(c for c in declared.features.categories if c.max_values == 1 or not single)
    table = embedding.Table(minibatches.settings(features={"categories": categories}))
    columns, generator = len(table.columns.category), np.random.default_rng(0)
    for now in range(4):
        found = generator.integers(0, 12, (30, columns)).astype(np.uint64)
        found[generator.random(found.shape) < 0.3] = ids.PAD
        rows = table.admit(found, now)
        assert (rows < 0).any()
        assert np.unique(rows[rows >= 0], return_counts=True)[1].max() > 3
        gradient = generator.standard_normal((30, table.row)).astype(np.float32)
        wanted, accumulator = stepped(table, rows, gradient)
        if now % 2:
            table.gather(rows, np.zeros((30, 2), np.float32), np.zeros(30, np.int64), np.empty_like(gradient), learn=True)
        table.descend(rows, gradient)
        assert table.table == pytest.approx(wanted, abs=1e-5)
        assert table.accumulator == pytest.approx(accumulator, rel=1e-4)


def test_duplicates_found_while_gathering_are_those_found_afterwards() -> None:
    (table, rows, x), (other, same, _) = filled(), filled()
    gradient = np.random.default_rng(1).standard_normal((len(rows), table.row)).astype(np.float32)
    slot, out = np.zeros(len(rows), np.int64), np.empty((len(rows), table.row), np.float32)
    for _ in range(3):
        table.gather(rows, x, slot, out, learn=True)
        assert out.tobytes() == gathered(table, rows, x).tobytes()
        table.descend(rows, gradient)
        other.descend(same, gradient)
    assert {n: a.tobytes() for n, a in table.arrays().items()} == {n: a.tobytes() for n, a in other.arrays().items()}


def test_where_every_category_has_one_id_reading_to_learn_finds_the_same_rows_and_duplicates() -> None:
    declared = minibatches.settings()
    single = tuple(c for c in declared.features.categories if c.max_values == 1)
    settings = minibatches.settings(features={"categories": single})
    (table, other), generator = (embedding.Table(settings) for _ in range(2)), np.random.default_rng(0)
    for now in range(3):
        found = generator.integers(0, 20, (30, len(single))).astype(np.uint64)
        found[generator.random(found.shape) < 0.2] = ids.PAD
        rows, same = table.admit(found, now), other.admit(found, now)
        assert (rows < 0).any()
        x, gradient = np.ones((30, 2), np.float32), generator.standard_normal((30, table.row)).astype(np.float32)
        out = np.full((30, table.row), np.nan, np.float32)
        table.gather(rows, x, np.zeros(30, np.int64), out, learn=True)
        assert out.tobytes() == gathered(other, same, x).tobytes()
        table.descend(rows, gradient)
        other.descend(same, gradient)
    assert {n: a.tobytes() for n, a in table.arrays().items()} == {n: a.tobytes() for n, a in other.arrays().items()}


def test_a_gathering_that_was_not_learned_from_leaves_no_trace() -> None:
    (table, rows, x), (other, same, _) = filled(), filled()
    gradient = np.ones((len(rows), table.row), np.float32)
    out = np.empty((len(rows), table.row), np.float32)
    table.gather(rows, x, np.zeros(len(rows), np.int64), out, learn=True)
    table.descend(rows[::2].copy(), gradient[::2].copy())
    other.descend(same[::2].copy(), gradient[::2].copy())
    assert table.table.tobytes() == other.table.tobytes()


def test_rows_that_were_marked_twice_are_changed_as_if_once() -> None:
    (one, rows, x), (other, _, _) = filled(), filled()
    gradient = np.random.default_rng(0).standard_normal((len(rows), one.row)).astype(np.float32)
    one.descend(rows, gradient)
    learning = other.learning(rows)
    fused_rows.mark(other._marks, rows, other._before, other._stamp)
    embedding.descend(learning, rows, gradient)
    assert len(np.unique(rows)) < (rows >= 0).sum()
    assert other.table.tobytes() == one.table.tobytes()
    assert gathered(other, rows, x).tobytes() == gathered(one, rows, x).tobytes()


def test_marks_that_have_run_out_begin_again_and_change_nothing() -> None:
    (table, rows, _), (other, same, _) = filled(), filled()
    gradient = np.ones((len(rows), table.row), np.float32)
    table.descend(rows, gradient)
    other.descend(same, gradient)
    table._stamp = np.iinfo(np.int32).max - rows.size
    for _ in range(2):
        table.descend(rows, gradient)
        other.descend(same, gradient)
    assert table._stamp < 3 * rows.size
    assert table.table.tobytes() == other.table.tobytes()


def test_first_values_depend_on_seed_and_key_only() -> None:
    settings = minibatches.settings()
    ids_ = minibatches.minibatch(settings, lists=4).ids
    one, other = embedding.Table(settings), embedding.Table(settings)
    a = one.admit(ids_, 0)
    b = other.admit(ids_[::-1].copy(), 5)[::-1]
    assert one.table[a].tolist() == other.table[b].tolist()
    third = embedding.Table(minibatches.settings(learner={"seed": 1}))
    assert one.table[a].tolist() != third.table[third.admit(ids_, 0)].tolist()


def test_first_values_have_the_configured_deviation() -> None:
    settings = minibatches.settings(embedding={"init_scale": 0.2})
    table = embedding.Table(settings)
    wide = np.full((3000, 6), ids.PAD, np.uint64)
    wide[:, 1] = np.arange(3000)
    rows = table.admit(wide, 0)[:, 1]
    values = table.table[rows, :4]
    assert values.std() == pytest.approx(0.2, rel=0.03)
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert not table.table[rows, 4].any()


def test_an_evicted_row_is_reset_for_its_next_owner() -> None:
    settings = minibatches.settings(embedding={"capacity": 1024, "max_idle_s": 1.0})
    table = embedding.Table(settings)
    first = np.full((1, 6), ids.PAD, np.uint64)
    first[0, 0] = 1
    rows = table.admit(first, 0)
    untrained = table.table[rows[0, 0]].copy()
    table.descend(rows, np.ones((1, table.row), np.float32))
    assert (table.table[rows[0, 0]] != untrained).any()
    second = first.copy()
    second[0, 0] = 2
    assert table.admit(second, 5000)[0, 0] == rows[0, 0]
    assert table.accumulator[rows[0, 0]].tolist() == pytest.approx([1e-6, 1e-6])
    first_again = table.admit(first, 5001)
    assert table.table[first_again[0, 0]].tolist() == untrained.tolist()


def test_a_category_of_fewer_numbers_learns_as_in_a_table_of_that_width_and_touches_nothing_beyond() -> None:
    widths = dict.fromkeys(("user", "item", "scenario", "genres"), 2)
    whole = minibatches.settings(embedding={"init_scale": 0.5}, model={"embedding_widths": widths})
    narrow = minibatches.settings(embedding={"init_scale": 0.5}, model={"embedding_width": 2})
    batch, generator = minibatches.minibatch(whole, lists=12), np.random.default_rng(0)
    tables = [embedding.Table(s) for s in (whole, narrow)]
    rows = [table.admit(batch.ids, 0) for table in tables]
    for _ in range(5):
        gradient = generator.normal(0, 1, (len(batch.ids), tables[0].row)).astype(np.float32)
        first = np.concatenate([np.arange(4 * c, 4 * c + 2) for c in range(4)] + [np.arange(16, tables[0].row)])
        tables[0].descend(rows[0], gradient)
        tables[1].descend(rows[1], np.ascontiguousarray(gradient[:, first]))
    (found, own), (expected, same) = ([t.arrays()[name] for name in ("table", "accumulator")] for t in tables)
    assert found[:, [0, 1, 4]].tobytes() == expected.tobytes()
    assert own.tobytes() == same.tobytes()
    assert not found[:, 2:4].any()


NARROW = {"user": 3, "genres": 1}


@pytest.mark.parametrize("name", ["pepnet", "shared_bottom", "mmoe", "trs", "fm", "dupn", "two_tower", "star", "hamur"])
def test_every_model_learns_and_serves_with_categories_of_fewer_numbers(name: str) -> None:
    settings = minibatches.settings(model={"name": name, "embedding_widths": NARROW})
    trainer = step.Trainer(settings)
    first, beyond = None, {0: 3, 3: 1}
    for i in range(6):
        batch = minibatches.minibatch(settings, i, support=4)
        assert not trainer.step(batch, 1000 * i).skipped
        first = batch if first is None else first
    assert first is not None
    fields = trainer.table.columns.field_of
    rows = trainer.find(first.ids)
    for field in range(4):
        mine = rows[:, fields == field]
        values = trainer.table.table[mine[mine >= 0]]
        used = beyond.get(field, 4)
        assert not values[:, used:4].any()
        assert (values[:, used - 1] != 0).any()
    arrays = {name: array.copy() for name, array in trainer.arrays().items()}
    served = scorer.Scorer(settings, {n: arrays[n] for n in trainer.serving_names})
    one = minibatches.minibatch(settings, 1, lists=1, support=4)
    support = (one.s_ids, one.s_x, one.s_label)
    scored = served.score(one.ids, one.x, int(one.scenario[0]), base.Support(*support))
    assert scored.adapted == pytest.approx(trainer.score(one).adapted, abs=2e-5)


@pytest.mark.parametrize("native", [True, False])
def test_native_and_torch_agree_on_categories_of_fewer_numbers(native: bool) -> None:
    settings = minibatches.settings(model={"embedding_widths": NARROW})
    reference, other = step.Trainer(settings, native=False, compiled=False), step.Trainer(settings, native=native)
    for i in range(4):
        said = [t.step(minibatches.minibatch(settings, i), 1000 * i).adapted for t in (reference, other)]
        assert said[0] == pytest.approx(said[1], abs=2e-5)


def test_a_snapshot_of_other_widths_is_refused_and_one_of_the_same_goes_on() -> None:
    settings = minibatches.settings(model={"embedding_widths": NARROW})
    trainer = step.Trainer(settings)
    trainer.step(minibatches.minibatch(settings, 0), 0)
    arrays = {name: array.copy() for name, array in trainer.arrays().items()}
    again = step.Trainer(settings)
    again.load(arrays)
    assert again.arrays()["table"].tobytes() == arrays["table"].tobytes()
    other = step.Trainer(minibatches.settings(model={"embedding_widths": {"user": 2}}))
    with pytest.raises(ValueError, match=r"model\.embedding_widths: the snapshot's categories use \[3, 4, 4, 1\]"):
        other.load(arrays)
    with pytest.raises(ValueError, match=re.escape('"table.used": found nothing')):
        other.load({name: array for name, array in arrays.items() if name != "table.used"})


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"embedding_widths": {"nobody": 2}}, '"nobody" is no category with embeddings of its own; allowed: user, '),
        ({"embedding_widths": {"user": 5}}, "user = 5 is more than model.embedding_width, 4"),
        ({"name": "lr", "embedding_widths": {"user": 2}}, "lr has weights in the place of embeddings"),
    ],
)
def test_widths_that_cannot_be_are_refused(model: dict[str, object], problem: str) -> None:
    wanted = minibatches.settings(model=model)
    assert problem in dict(consistency.contradictions(wanted))["model.embedding_widths"]

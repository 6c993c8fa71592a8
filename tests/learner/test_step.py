import hashlib

import msgspec
import numpy as np
import pytest
import torch

from learner import optimizers, step
from models import base, starts
from state import config
from tests import minibatches

KEPT = ("dense", "dense.trained", "table", "accumulator", "moments", "adam.mean", "adam.square", "adam.step")


def digest(trainer: step.Trainer) -> str:
    out = hashlib.sha256()
    for name, array in sorted(trainer.arrays().items()):
        out.update(name.encode() + str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
    return out.hexdigest()


def run(trainer: step.Trainer, first: int, last: int) -> step.Trainer:
    for i in range(first, last):
        trainer.step(minibatches.minibatch(trainer.settings, i % 37), 1000 * i)
    return trainer


def test_300_steps_hash_the_same_twice_and_resumed_in_the_middle() -> None:
    settings = minibatches.settings(embedding={"capacity": 1024, "max_idle_s": 20.0}, meta={"scenarios": {"young": "off"}})
    whole = digest(run(step.Trainer(settings), 0, 300))
    assert digest(run(step.Trainer(settings), 0, 300)) == whole
    first = run(step.Trainer(settings), 0, 150)
    second = step.Trainer(settings)
    second.load({name: array.copy() for name, array in first.arrays().items()})
    assert digest(second) == digest(first)
    assert digest(run(second, 150, 300)) == whole


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("poison", ["label", "weight"])
def test_a_step_that_is_not_finite_is_skipped_and_changes_no_parameter(poison: str, native: bool) -> None:
    settings = minibatches.settings()
    trainer = run(step.Trainer(settings, native=native), 0, 3)
    batch = minibatches.minibatch(settings, 1, support=4)
    trainer.step(batch, 3000)
    before = {name: trainer.arrays()[name].tobytes() for name in KEPT}
    bad = getattr(batch, poison).copy()
    bad[2, 0] = np.inf if poison == "weight" else np.nan
    said = trainer.step(batch._replace(**{poison: bad}), 3001)
    assert "not finite" in said.skipped
    assert {name: trainer.arrays()[name].tobytes() for name in KEPT} == before
    assert not trainer.step(batch, 3002).skipped


@pytest.mark.parametrize("native", [True, False])
def test_importance_multiplies_the_loss_of_rows_and_not_what_they_count_in_the_moments(native: bool) -> None:
    settings = minibatches.settings(objectives=2)
    batch = minibatches.minibatch(settings, 1)
    factors = np.random.default_rng(0).uniform(0.5, 4.0, len(batch.ids)).astype(np.float32)
    asked, weighted = (step.Trainer(settings, native=native) for _ in range(2))
    asked.step(batch._replace(importance=factors), 0)
    weighted.step(batch._replace(weight=batch.weight * factors[:, None]), 0)
    for name, array in asked.arrays().items():
        assert (array.tobytes() == weighted.arrays()[name].tobytes()) == (name != "moments.observed"), name
    alike = step.Trainer(settings, native=native)
    alike.step(batch, 0)
    assert alike.arrays()["moments.observed"].tobytes() == asked.arrays()["moments.observed"].tobytes()


def test_an_exploding_gradient_is_scaled_down_to_the_configured_norm() -> None:
    settings = minibatches.settings(optimizer={"max_gradient_norm": 0.5}).optimizer
    calm, wild = optimizers.Dense(3, settings), optimizers.Dense(3, settings)
    a, b = np.zeros(3, np.float32), np.zeros(3, np.float32)
    gradient = np.array([3, 0, 4], np.float32)
    wild.descend(a, gradient * 100, optimizers.norm(gradient * 100))
    calm.descend(b, gradient * np.float32(0.1), optimizers.norm(gradient * np.float32(0.1)))
    assert wild.mean == pytest.approx(calm.mean)
    assert np.linalg.norm(wild.mean) == pytest.approx(0.5 * 0.1, rel=1e-5)
    assert a == pytest.approx(b)


def test_adam_is_the_published_algorithm() -> None:
    settings = minibatches.settings(optimizer={"weight_decay": 0.1}).optimizer
    adam, values = optimizers.Dense(4, settings), np.array([1, -2, 3, 0.5], np.float32)
    wanted, mean, square = values.astype(np.float64), np.zeros(4), np.zeros(4)
    generator = np.random.default_rng(0)
    for t in range(1, 6):
        g = generator.standard_normal(4).astype(np.float32)
        adam.descend(values, g, optimizers.norm(g))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        wanted = wanted * (1 - 0.001 * 0.1) - 0.001 * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    assert values == pytest.approx(wanted, abs=1e-6)


def test_what_a_factorisation_machine_learns_of_numbers_follows_adagrad_and_the_rest_adam() -> None:
    chosen = {"wide_rate": 0.3, "embedding_accumulator": 0.25, "max_gradient_norm": 1e9}
    settings = minibatches.settings(optimizer=chosen).optimizer
    shapes = {"a": (2,), "wide.first": (1,), "wide.numbers": (1, 2), "output.bias": (1,)}
    found = optimizers.spans(shapes)
    assert found == [(2, 5)]
    both, adam = optimizers.Dense(6, settings, found), optimizers.Dense(6, settings)
    values, others = np.arange(6, dtype=np.float32), np.arange(6, dtype=np.float32)
    wanted, square = np.arange(2.0, 5.0), np.full(3, 0.25)
    generator = np.random.default_rng(0)
    for _ in range(4):
        g = generator.standard_normal(6).astype(np.float32)
        both.descend(values, g, optimizers.norm(g))
        adam.descend(others, g, optimizers.norm(g))
        square += g[2:5] ** 2
        wanted -= 0.3 * g[2:5] / np.sqrt(square)
    assert values[2:5] == pytest.approx(wanted, abs=1e-5)
    assert np.array_equal(values[[0, 1, 5]], others[[0, 1, 5]])


def test_scales_of_the_wide_part_follow_adagrad_at_a_rate_of_their_own() -> None:
    chosen = {"wide_rate": 0.3, "scale_rate": 0.7, "embedding_accumulator": 0.25, "max_gradient_norm": 1e9}
    settings = minibatches.settings(optimizer=chosen).optimizer
    shapes: base.Shapes = {"a": (1,), "wide.scale": (2,), "wide.first": (1,)}
    wide, scales = optimizers.spans(shapes), optimizers.spans(shapes, optimizers.SCALES)
    rule, values = optimizers.Dense(4, settings, wide, scales=scales), np.zeros(4, np.float32)
    g = np.array([2, 1, -3, 1], np.float32)
    rule.descend(values, g, optimizers.norm(g))
    rates = np.array([0.7, 0.7, 0.3])
    assert values[1:] == pytest.approx(-rates * g[1:] / np.sqrt(0.25 + g[1:] ** 2), abs=1e-6)
    assert values[0] == pytest.approx(-0.001, abs=1e-6)


def test_without_a_rate_of_their_own_scales_follow_the_rule_of_the_others() -> None:
    given = [minibatches.settings(objectives=n, optimizer={"scale_rate": rate}) for n, rate in ((2, 0.1), (2, 0.0), (1, 0.1))]
    own, without, one = map(step.Trainer, given)
    kinds = [{rule for *_, rule in trainer.adam.state.spans.tolist()} for trainer in (own, without, one)]
    assert kinds == [{optimizers.ADAM, optimizers.SCALE}, {optimizers.ADAM}, {optimizers.ADAM}]


@pytest.mark.parametrize("native", [True, False])
def test_outputs_begin_at_the_log_odds_of_their_labels_without_being_told_of_them_before_they_score(native: bool) -> None:
    settings = minibatches.settings(objectives=2)
    batch = minibatches.minibatch(settings, 3)
    batch.label[:, 1] = 0
    first, other = step.Trainer(settings, native=native), step.Trainer(settings, native=native)
    assert (first.step(batch, 0).adapted == other.step(batch._replace(label=1 - batch.label), 0).adapted).all()
    rows = len(batch.label)
    bias = base.views(torch.from_numpy(first.dense), first.shapes)["output.bias"]
    assert bias[1].item() == pytest.approx(-np.log(2 * rows + 1), abs=0.01)
    assert first.score(batch).unadapted[:, 1].mean() < 0.1
    without = step.Trainer(minibatches.settings(objectives=2, optimizer={"start_rows": 0}), native=native)
    without.step(batch, 0)
    assert without.score(batch).unadapted[:, 1].mean() > 0.3


def test_a_first_step_that_is_skipped_leaves_the_outputs_where_they_were() -> None:
    settings = minibatches.settings(objectives=2)
    trainer, batch = step.Trainer(settings), minibatches.minibatch(settings, 1)
    before = {name: trainer.arrays()[name].tobytes() for name in ("dense", "dense.trained", starts.SEEN)}
    assert trainer.step(batch._replace(weight=np.full_like(batch.weight, np.inf)), 0).skipped
    assert {name: trainer.arrays()[name].tobytes() for name in before} == before
    assert not trainer.step(batch, 0).skipped


def test_a_snapshot_from_before_labels_were_counted_keeps_its_outputs() -> None:
    settings = minibatches.settings(objectives=2)
    trainer, later = run(step.Trainer(settings), 0, 1), step.Trainer(settings)
    old = {name: array.copy() for name, array in trainer.arrays().items() if name != starts.SEEN}
    later.load(old)
    assert later.starts.seen.min(0).tolist() == [starts.ENOUGH, 0, 0]
    batch = minibatches.minibatch(settings, 5)
    assert not later.starts.begins(batch.label)
    assert later.step(batch, 1000).adapted.tolist() == trainer.step(batch, 1000).adapted.tolist()


def test_dense_parameters_may_follow_adagrad_too_with_weight_decay() -> None:
    chosen = {"dense": "adagrad", "dense_rate": 0.1, "wide_rate": 0.3, "weight_decay": 0.5, "max_gradient_norm": 1e9}
    settings = minibatches.settings(optimizer=chosen).optimizer
    rule, values = optimizers.Dense(3, settings, [(1, 2)]), np.array([1, -2, 3], np.float32)
    wanted, square, rates = values.astype(np.float64), np.full(3, 1e-6), np.array([0.1, 0.3, 0.1])
    generator = np.random.default_rng(0)
    for _ in range(4):
        g = generator.standard_normal(3).astype(np.float32)
        rule.descend(values, g, optimizers.norm(g))
        square += g.astype(np.float64) ** 2
        wanted = wanted * [1 - 0.1 * 0.5, 1, 1 - 0.1 * 0.5] - rates * g / np.sqrt(square)
    assert values == pytest.approx(wanted, abs=1e-5)


def test_what_is_published_and_scored_is_an_average_of_the_last_steps() -> None:
    settings = minibatches.settings(optimizer={"average": 0.75})
    trainer = step.Trainer(settings)
    wanted = trainer.dense.copy()
    for i in range(60):
        trainer.step(minibatches.minibatch(settings, i), i)
        share = max(0.25, 9 / (9 + i + 1))
        wanted += np.float32(share) * (trainer.dense - wanted)
    arrays = {name: array.copy() for name, array in trainer.arrays().items()}
    assert arrays["dense"] == pytest.approx(wanted, abs=1e-6)
    assert not np.array_equal(arrays["dense"], arrays["dense.trained"])
    batch, newest = minibatches.minibatch(settings, 70), step.Trainer(settings)
    newest.load({**arrays, "dense.trained": arrays["dense"]})
    assert trainer.score(batch).unadapted.tolist() == newest.score(batch).unadapted.tolist()
    newest.load({**arrays, "dense": arrays["dense.trained"]})
    assert trainer.score(batch).unadapted.tolist() != newest.score(batch).unadapted.tolist()


def test_without_averaging_the_newest_parameters_are_published() -> None:
    trainer = run(step.Trainer(minibatches.settings(optimizer={"average": 0.0})), 0, 5)
    assert np.array_equal(trainer.arrays()["dense"], trainer.arrays()["dense.trained"])


def test_a_row_is_scored_before_it_is_learned() -> None:
    settings = minibatches.settings()
    one, other = run(step.Trainer(settings), 0, 5), run(step.Trainer(settings), 0, 5)
    batch = minibatches.minibatch(settings, 9)
    flipped = batch._replace(label=1 - batch.label)
    a, b = one.step(batch, 10_000), other.step(flipped, 10_000)
    assert a.unadapted.tolist() == b.unadapted.tolist()
    assert a.adapted.tolist() == b.adapted.tolist()
    assert digest(one) != digest(other)


def test_a_weight_of_zero_teaches_nothing() -> None:
    settings = minibatches.settings()
    trainer, batch = run(step.Trainer(settings), 0, 2), minibatches.minibatch(settings, 4)
    trainer.step(batch._replace(weight=batch.weight * 0), 9000)
    assert not trainer.gradient.flat.any()


@pytest.mark.parametrize("native", ["auto", False])
def test_the_loss_weight_of_an_objective_counts_its_rows_more_and_nothing_else(native: bool) -> None:
    plain = minibatches.settings(2, model={"native": native}, scenarios={"negative_sampling": {"*": 0.5}})
    first, second = plain.objectives
    weighted = msgspec.structs.replace(plain, objectives=(first, msgspec.structs.replace(second, loss_weight=3.0)))
    one, other, unweighted = (step.Trainer(s) for s in (plain, weighted, plain))
    batch = minibatches.minibatch(plain, 4)
    a = one.step(batch._replace(weight=batch.weight * np.array([1, 3], np.float32)), 0)
    b = other.step(batch, 0)
    unweighted.step(batch, 0)
    assert b.loss == pytest.approx(a.loss)
    assert other.gradient.numbers == pytest.approx(one.gradient.numbers, abs=1e-7)
    assert not np.allclose(other.gradient.numbers, unweighted.gradient.numbers, atol=1e-4)
    assert (other.table.observed == unweighted.table.observed).all()
    assert (one.table.observed != unweighted.table.observed).any()


def test_absent_numbers_and_empty_support_are_fine() -> None:
    settings = minibatches.settings()
    trainer, batch = step.Trainer(settings), minibatches.minibatch(settings, 4, support=0)
    x = batch.x.copy()
    x[::2] = np.nan
    said = trainer.step(batch._replace(x=x), 0)
    assert not said.skipped
    assert said.adapted.tolist() == said.unadapted.tolist()


def test_read_only_columns_of_a_message_are_accepted() -> None:
    settings = minibatches.settings()
    batch = minibatches.minibatch(settings, 4)
    for part in batch:
        part.flags.writeable = False
    assert not step.Trainer(settings).step(batch, 0).skipped


def test_a_snapshot_of_another_shape_is_refused_with_the_name_of_the_array() -> None:
    trainer = run(step.Trainer(minibatches.settings()), 0, 2)
    arrays = trainer.arrays()
    with pytest.raises(ValueError, match='"dense"'):
        step.Trainer(minibatches.settings(model={"hidden": (6, 4)})).load(arrays)
    with pytest.raises(ValueError, match=r'"map\.keys": found nothing'):
        step.Trainer(minibatches.settings()).load({n: a for n, a in arrays.items() if n != "map.keys"})


def test_an_unknown_model_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(config.ConfigError, match=r"is unknown; allowed: .*pepnet"):
        step.Trainer(minibatches.settings(model={"name": "nothing"}))


def test_a_minibatch_without_rows_changes_nothing() -> None:
    settings = minibatches.settings()
    trainer = run(step.Trainer(settings), 0, 2)
    before = digest(trainer)
    said = trainer.step(minibatches.alone(minibatches.minibatch(settings), []), 10_000)
    assert said.unadapted.shape == (0, 1)
    assert said.skipped == "no rows"
    assert digest(trainer) == before


@pytest.mark.parametrize("native", ["auto", False])
def test_l2_is_part_of_the_gradient_and_decay_is_not(native: bool) -> None:
    gradients, ends = [], []
    for optimizer in ({}, {"l2": 0.25}, {"weight_decay": 0.25}):
        trainer = step.Trainer(minibatches.settings(model={"native": native}, optimizer=optimizer))
        start = trainer.dense.copy()
        trainer.step(minibatches.minibatch(trainer.settings), 0)
        gradients.append(trainer.gradient.numbers.copy())
        ends.append(trainer.dense)
    assert gradients[1] == pytest.approx(gradients[0] + 0.25 * start, abs=1e-6)
    assert gradients[2] == pytest.approx(gradients[0], abs=1e-6)
    assert not np.allclose(ends[1], ends[0])

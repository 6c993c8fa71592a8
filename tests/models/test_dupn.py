from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from learner import step
from models import base, dupn, registry
from state import config, ids, spec
from tests import minibatches

SEQUENCES = ("last_items", "last_kinds", "last_ages")


def settings(length: int = 4, **sections: dict[str, Any]) -> config.Config:
    """The small configuration for DUPN, with sequences of `length`; new ids start from values that count."""
    found = minibatches.settings(2, model={"name": "dupn"}, embedding={"init_scale": 0.5}, **sections)
    longer = tuple(msgspec.structs.replace(c, max_values=length) if spec.behaviour(c) else c for c in found.features.categories)
    return msgspec.structs.replace(found, features=msgspec.structs.replace(found.features, categories=longer))


def place(declared: config.Config, sequence: str, newest: int) -> int:
    """The id column of one of the last actions."""
    return {c.name: c.start for c in spec.id_columns(declared.features)}[sequence] + newest


def with_tags() -> config.Config:
    """The same, and the second and third genre of every item that was acted on."""
    found = settings()
    tags = tuple(
        spec.Category(name=f"last_tags_{nth}", source="recent.genres", max_values=4, share="genres", nth=nth) for nth in (2, 3)
    )
    return msgspec.structs.replace(
        found, features=msgspec.structs.replace(found.features, categories=(*found.features.categories, *tags))
    )


class Case:
    """A model of random parameters and one gathered batch of its own."""

    def __init__(self, declared: config.Config, seed: int = 0) -> None:
        self.settings, self.trainer = declared, step.Trainer(declared)
        model = registry.build(declared)
        assert isinstance(model, dupn.DUPN)
        self.model = model
        self.parameters = base.views(self.model.initial(seed), self.model.shapes)
        self.batch = minibatches.minibatch(declared, seed)
        self.trainer.table.admit(self.batch.ids, 0)

    def inputs(self, hashes: base.U64) -> base.Inputs:
        table = self.trainer.table
        x = np.empty((len(hashes), table.row), np.float32)
        table.gather(table.admit(hashes, 0), self.batch.x[: len(hashes)], np.zeros(len(hashes), np.int64), x)
        return base.Inputs(torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x)))

    def logits(self, hashes: base.U64) -> torch.Tensor:
        return self.model.tower(self.parameters, self.model.trunk(self.parameters, self.inputs(hashes)))

    def attention(self, hashes: base.U64) -> torch.Tensor:
        return self.model.inspect(self.parameters, self.inputs(hashes))["attention"]

    def columns(self, newest: int) -> list[int]:
        """The id columns of all that is known of one of the last actions."""
        return [place(self.settings, name, newest) for name in SEQUENCES]


def whole(case: Case) -> base.U64:
    """The batch with every place taken."""
    first = place(case.settings, "last_items", 0)
    hashes = case.batch.ids.copy()
    hashes[:, first:] = np.random.default_rng(5).integers(0, 60, hashes[:, first:].shape)
    return hashes


def test_attention_sums_to_one_over_the_actions_there_are_and_to_nothing_without_any() -> None:
    case = Case(settings())
    hashes = whole(case)
    hashes[0, case.columns(2) + case.columns(3)] = ids.PAD
    hashes[1, place(case.settings, "last_items", 0) :] = ids.PAD
    found = case.attention(hashes)
    assert found.shape == (len(hashes), 4)
    assert found[0].sum().item() == pytest.approx(1, abs=1e-6)
    assert found[0, 2:].tolist() == [0, 0]
    assert found[1].tolist() == [0, 0, 0, 0]
    assert (found[2:] > 0).all()
    assert found[2:].sum(1).numpy() == pytest.approx(1, abs=1e-6)


def test_padding_changes_nothing() -> None:
    short, long = Case(settings(4)), Case(settings(9))
    long.batch = short.batch
    hashes = whole(short)
    first = place(short.settings, "last_items", 0)
    padded = np.full((len(hashes), first + 27), ids.PAD, np.uint64)
    padded[:, :first] = hashes[:, :first]
    for i in range(3):
        padded[:, first + 9 * i : first + 9 * i + 4] = hashes[:, first + 4 * i : first + 4 * i + 4]
    torch.testing.assert_close(long.logits(padded), short.logits(hashes), rtol=0, atol=1e-6)
    alone = padded.copy()
    alone[1:, first:] = np.random.default_rng(6).integers(0, 60, alone[1:, first:].shape)
    torch.testing.assert_close(long.logits(alone)[0], short.logits(hashes)[0], rtol=0, atol=1e-6)


def test_nobody_did_anything_is_scored_too() -> None:
    case = Case(settings())
    hashes = whole(case)
    hashes[:, place(case.settings, "last_items", 0) :] = ids.PAD
    assert torch.isfinite(case.logits(hashes)).all()
    assert not case.attention(hashes).any()


def test_the_lstm_is_torchs_where_properties_say_nothing() -> None:
    case = Case(settings())
    hashes, h, e = whole(case), case.model.width, case.settings.model.embedding_width
    p = case.parameters
    p["lstm.gates.weight"][e:] = 0
    x = case.inputs(hashes).x
    found, present = case.model._states(p, x)
    assert present.all()
    entry = dict(zip("fiog", [*p["lstm.gates.weight"][:e].chunk(3, 1), p["lstm.candidate.weight"]], strict=True))
    state = dict(zip("fiog", p["lstm.state.weight"].chunk(4, 1), strict=True))
    bias = dict(zip("fiog", [*p["lstm.gates.bias"].chunk(3), p["lstm.candidate.bias"]], strict=True))
    reference = torch.nn.LSTM(e, h, batch_first=True)
    kept = [torch.cat([part[k].t() for k in "ifgo"]) for part in (entry, state, bias)]
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    reference.load_state_dict(dict(zip(names, kept, strict=True)) | {"bias_hh_l0": torch.zeros(4 * h)})
    with torch.no_grad():
        dense = case.model.geometry.dense
        items = x[:, dense : dense + 4 * e].view(len(x), 4, e)
        expected, _ = reference(items.flip(1))
    torch.testing.assert_close(found, expected.flip(1), rtol=1e-5, atol=1e-6)


def test_gates_see_properties_and_the_input_does_not() -> None:
    case = Case(settings())
    hashes = whole(case)
    other = hashes.copy()
    other[:, place(case.settings, "last_kinds", 1)] += np.uint64(100)
    assert not torch.allclose(case.logits(hashes), case.logits(other), atol=1e-5)
    e = case.settings.model.embedding_width
    case.parameters["lstm.gates.weight"][e : 2 * e] = 0
    torch.testing.assert_close(case.logits(hashes), case.logits(other), rtol=0, atol=1e-6)


def test_the_order_of_actions_matters() -> None:
    case = Case(settings())
    hashes = whole(case)
    turned = hashes.copy()
    turned[:, [c for k in range(4) for c in case.columns(k)]] = hashes[:, [c for k in (3, 2, 1, 0) for c in case.columns(k)]]
    assert not torch.allclose(case.logits(hashes), case.logits(turned), atol=1e-5)


def test_attention_depends_on_the_candidate_and_on_the_user() -> None:
    case = Case(settings())
    hashes = whole(case)
    for column in (0, 1):
        other = hashes.copy()
        other[:, column] += np.uint64(100)
        assert not torch.allclose(case.attention(hashes), case.attention(other), atol=1e-5)


def of_one_user(case: Case, n: int) -> base.U64:
    """Candidates of one user at one moment, then one row of another."""
    hashes = np.repeat(whole(case)[:1], n + 1, 0)
    hashes[:, 1] = np.arange(n + 1)
    hashes[-1] = whole(case)[1]
    return hashes


def test_the_users_side_is_computed_once_with_equal_scores_and_gradients_for_less() -> None:
    case = Case(settings())
    inputs = case.inputs(of_one_user(case, 12))
    found: list[Any] = []
    for trunk in (case.model.trunk, case.model.unsplit):
        x = inputs.x.clone().requires_grad_()
        parameters = {name: view.clone().requires_grad_() for name, view in case.parameters.items()}
        with FlopCounterMode(display=False) as counter:
            logits = case.model.tower(parameters, trunk(parameters, inputs._replace(x=x)))
        torch.autograd.backward(logits.square().sum())
        found.append((logits, {n: p.grad for n, p in parameters.items()}, x.grad, counter.get_total_flops()))
    (split, dense, x, less), (unsplit, dense_each, x_each, more) = found
    torch.testing.assert_close(split, unsplit, rtol=0, atol=1e-6)
    for name in dense:
        torch.testing.assert_close(dense[name], dense_each[name], rtol=1e-4, atol=1e-5)
    assert less < 0.5 * more
    sums = [part[:12].sum(0) for part in (x, x_each)]
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x[12], x_each[12], rtol=1e-4, atol=1e-5)


def test_where_new_ids_start_alike_every_row_is_computed_by_itself() -> None:
    case = Case(settings())
    model = registry.build(msgspec.structs.replace(case.settings, embedding=config.Embedding(init_scale=0.0)))
    assert isinstance(model, dupn.DUPN)
    inputs = case.inputs(of_one_user(case, 3))
    assert case.model._users(inputs.x)[1].tolist() == [0, 0, 0, 1]
    assert model._users(inputs.x)[1].tolist() == [0, 1, 2, 3]


def test_an_item_has_one_row_whether_shown_or_acted_on() -> None:
    case = Case(settings())
    table, hashes = case.trainer.table, whole(case)
    item, first = 1, place(case.settings, "last_items", 0)
    hashes[0, first], hashes[0, first + 4] = hashes[0, item], hashes[0, item]
    rows = table.admit(hashes, 0)
    assert rows[0, first] == rows[0, item]
    assert rows[0, first + 4] != rows[0, item], "a kind is no item"


def test_a_step_learns_embeddings_through_places_and_pools_with_duplicates_summed() -> None:
    case = Case(settings())
    table, e, c = case.trainer.table, 4, 7
    rows = table.admit(case.batch.ids, 0)
    gradient = np.random.default_rng(1).standard_normal((len(rows), table.row)).astype(np.float32)
    total = np.zeros((len(table.table), e + 1))
    at = table.row - c - 12 * (e + 1)
    for i, row in enumerate(rows):
        for k, (start, width) in enumerate(zip(table.columns.starts, table.columns.widths, strict=True)):
            present = [r for r in row[start : start + width] if r >= 0]
            for r in present:
                total[r, :e] += gradient[i, e * k : e * k + e] / len(present)
                total[r, e] += gradient[i, table.row - c + k] / len(present)
        for k, column in enumerate(table.columns.each):
            if row[column] >= 0:
                total[row[column], :e] += gradient[i, at + e * k : at + e * k + e]
    before, old = table.table.copy(), table.accumulator.copy()
    table.descend(rows, gradient)
    touched = np.unique(rows[rows >= 0])
    square = old[touched, 0] + (total[touched, :e] ** 2).mean(1)
    rate = case.settings.optimizer.embedding_rate
    wanted = before[touched, :e] - rate * total[touched, :e] / (np.sqrt(square)[:, None] + 1e-8)
    np.testing.assert_allclose(table.table[touched, :e], wanted, rtol=1e-4, atol=1e-5)
    rest = np.setdiff1d(np.arange(len(before)), touched)
    assert (table.table[rest] == before[rest]).all()


def test_other_models_read_the_same_categories_pooled() -> None:
    declared = settings()
    pooled = msgspec.structs.replace(declared, model=msgspec.structs.replace(declared.model, name="shared_bottom"))
    assert base.geometry(pooled).places == 0
    assert base.geometry(declared).row - base.geometry(pooled).row == 12 * 5
    trainer = step.Trainer(pooled)
    assert not trainer.step(minibatches.minibatch(pooled), 0).skipped


@pytest.mark.parametrize(
    ("keep", "length", "words"),
    [
        ((), 4, "declared: none"),
        (("last_kinds", "last_ages"), 4, "dupn needs what was acted on"),
        (("last_items", "last_kinds"), 3, "declared: last_items 3, last_kinds 4"),
    ],
)
def test_a_spec_without_usable_sequences_is_refused_with_what_is_missing(keep: tuple[str, ...], length: int, words: str) -> None:
    declared = settings()
    categories = tuple(c for c in declared.features.categories if not spec.behaviour(c) or c.name in keep)
    changed = tuple(msgspec.structs.replace(c, max_values=length) if c.name == "last_items" else c for c in categories)
    features = msgspec.structs.replace(declared.features, categories=changed)
    with pytest.raises(config.ConfigError, match=words):
        registry.build(msgspec.structs.replace(declared, features=features))


def test_several_values_of_an_action_enter_as_their_mean_in_any_order() -> None:
    case = Case(with_tags())
    second, third = (place(case.settings, f"last_tags_{nth}", 0) for nth in (2, 3))
    both = whole(case)[:8]
    for at in (second, third):
        both[:, at : at + 4] = ids.PAD
    both[:, second], both[:, third] = 7, 8
    one, twice, turned = both.copy(), both.copy(), both.copy()
    one[:, third] = ids.PAD
    twice[:, third] = 7
    turned[:, second], turned[:, third] = 8, 7
    assert torch.equal(case.logits(turned), case.logits(both))
    assert torch.equal(case.logits(twice), case.logits(one))
    assert not torch.allclose(case.logits(both), case.logits(one), atol=1e-4)

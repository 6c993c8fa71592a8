"""Where an adaptation counts as diverged, for every kind of objective, and what it is held to."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import limits, losses
from state import config

KINDS: dict[str, dict[str, Any]] = {
    "binary": {"scenarios": ("home",)},
    "ranking": {"kind": "ranking"},
    "multiclass": {"kind": "multiclass", "classes": 4},
    "regression": {"kind": "regression", "scale": 5.0},
    "log1p": {"kind": "regression", "transform": "log1p", "scale": 0.5},
}


def plan(*kinds: str) -> losses.Plan:
    return losses.plan([config.Objective(name=kind, action=f"{kind}ed", **KINDS[kind]) for kind in kinds])


def said(found: losses.Plan, logits: "np.ndarray[Any, Any]") -> limits.F32:
    return losses.predictions(found, torch.from_numpy(logits.astype(np.float32))).numpy()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ranking"])
@pytest.mark.parametrize("by", [-1.0, 1.0])
def test_a_move_of_more_than_the_limit_is_found_and_held_at_it_in_its_direction(kind: str, by: float) -> None:
    found = plan(kind)
    start = np.zeros((3, found.outputs)) + np.linspace(0.2, 0.4, found.outputs)
    end = start.copy()
    end[:, 0] += by * np.array([limits.MOST_MOVED - 0.2, limits.MOST_MOVED + 0.2, 0])
    plain, adapted = said(found, start), said(found, end)
    assert limits.far(found, plain, adapted).tolist() == [False, True, False]
    held = limits.hold(found, plain, adapted)
    assert held[[0, 2]].tobytes() == adapted[[0, 2]].tobytes()
    wanted = start.copy()
    wanted[1, 0] += by * limits.MOST_MOVED
    assert held[1] == pytest.approx(said(found, wanted)[1], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_what_is_no_number_is_too_far(kind: str, nothing: float) -> None:
    found = plan(kind)
    plain = said(found, np.zeros((2, found.outputs)))
    adapted = plain.copy()
    adapted[1, -1] = nothing
    assert limits.far(found, plain, adapted).tolist() == [False, True]


def test_a_ranking_keeps_its_order_however_far_it_was_moved() -> None:
    found = plan("ranking")
    plain, adapted = said(found, np.array([[1.0], [0.0]])), said(found, np.array([[-12.0], [-10.0]]))
    assert not limits.far(found, plain, adapted).any()
    assert limits.hold(found, plain, adapted).tobytes() == adapted.tobytes()


def test_each_objective_of_a_row_is_held_by_its_own_rule_and_the_others_keep_their_bytes() -> None:
    found = plan("multiclass", "regression", "ranking")
    start = np.zeros((1, found.outputs))
    end = start + np.array([[1.0, 0.0, 0.0, -1.0, 30.0, 2.0]])
    plain, adapted = said(found, start), said(found, end)
    held = limits.hold(found, plain, adapted)
    assert limits.far(found, plain, adapted).all()
    assert held[0, [0, 1, 2, 3, 5]].tolist() == adapted[0, [0, 1, 2, 3, 5]].tolist()
    assert held[0, 4] == pytest.approx(limits.MOST_MOVED * 5.0)


def test_classes_that_were_held_are_probabilities_in_the_order_that_adaptation_gave_them() -> None:
    found = plan("multiclass")
    plain, adapted = said(found, np.array([[0.0, 0.0, 0.0, 0.0]])), said(found, np.array([[12.0, 6.0, 0.0, -3.0]]))
    held = limits.hold(found, plain, adapted)[0]
    assert held.sum() == pytest.approx(1.0)
    assert (np.argsort(held) == np.argsort(adapted[0])).all()
    assert np.log(held.max() / held.min()) == pytest.approx(limits.MOST_MOVED, rel=1e-5)


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=20))
def test_the_native_rule_of_plain_objectives_is_that_of_binary_ones(rows: list[tuple[float, float]]) -> None:
    logits = np.array(rows, np.float32)
    plain, adapted = (torch.sigmoid(torch.from_numpy(logits[:, [k]])).numpy() for k in range(2))
    ends = [np.log(c) - np.log1p(-c) for c in (np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7) for p in (plain, adapted))]
    near = np.abs(np.abs(ends[1] - ends[0]) - limits.MOST_MOVED).ravel() < 1e-6
    by_hand, native = limits.far(plan("binary"), plain, adapted), limits.far(losses.BINARY, plain, adapted)
    assert (by_hand == native)[~near].all()
    assert limits.hold(losses.BINARY, plain, adapted).tobytes() == limits.hold(plan("binary"), plain, adapted).tobytes()


@pytest.mark.parametrize("found", [losses.BINARY, plan("binary")], ids=["plain", "other"])
def test_a_list_diverges_with_any_of_its_rows_if_it_was_adapted(found: losses.Plan) -> None:
    plain = np.full((6, 1), 0.5, np.float32)
    adapted = plain.copy()
    adapted[[1, 3, 5], 0] = 0.9999
    n_items, taken = np.array([2, 0, 1, 1, 2]), np.array([4, 1, 4, 0, 1])
    assert limits.lists(found, plain, adapted, n_items, taken).tolist() == [True, False, False, False, True]

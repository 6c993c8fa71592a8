"""Figures by inverse propensities, worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from learner import episodes, explored, publishing, rehearsal
from learner.loop import Clock, Loop
from learner.prequential import ALL, VARIANTS
from models import losses
from state import columns
from tests import minibatches

NAN = float("nan")
SETTINGS = minibatches.settings(
    learner={"rows_per_step": 12, "fetch_messages": 2, "dedup_rows": 2048, "window_rows": 50, "baseline": "off"},
    embedding={"capacity": 1024},
)


def told(figures: explored.Figures, scenarios: list[str], items: list[int], rows: list[tuple[float, float, float]]) -> None:
    """Rows of (score, label, propensity); river scores 1 - score."""
    score, label, propensity = (np.array(part, np.float32) for part in zip(*rows, strict=True))
    scores = np.stack([score, score, 1 - score])[:, :, None]
    figures.update(scenarios, np.array(items), scores, label[:, None], np.ones((len(rows), 1), np.float32), propensity)


def of(figures: explored.Figures, scenario: str, window: str = "cumulative", variant: str = "adapted") -> explored.Explored:
    (found,) = [e for e in figures.report() if (e.scenario, e.window, e.variant) == (scenario, window, variant)]
    return found


def test_rows_weigh_by_their_clipped_inverse_propensity_and_figures_are_normalised_by_these() -> None:
    figures = explored.Figures(("click",), window_rows=100, clip=4.0)
    # Weights 2, 4 (clipped from 10), 1; the last row counts nowhere.
    told(figures, ["home"], [4], [(0.9, 1, 0.5), (0.4, 0, 0.1), (0.2, 1, 1.0), (0.3, 1, NAN)])
    found = of(figures, "home")
    assert found.rows == 3
    assert found.effective == pytest.approx(49 / 21)
    assert found.mean_label == pytest.approx(3 / 7)
    assert found.shown == pytest.approx(2 / 3)
    # Of the pairs (.9 above .4, weight 8) and (.2 below .4, weight 4), the first is right.
    assert found.auc == pytest.approx(8 / 12)
    assert of(figures, "home", variant="river").auc == pytest.approx(4 / 12)
    assert of(figures, ALL) == found._replace(scenario=ALL)


@pytest.mark.parametrize("clip", [1.0, 5.0, 200.0])
def test_no_row_weighs_more_than_the_clip(clip: float) -> None:
    figures = explored.Figures(("click",), window_rows=100, clip=clip)
    told(figures, ["home"], [2], [(0.9, 1, 1e-4), (0.4, 0, 1.0)])
    assert of(figures, "home").mean_label == pytest.approx(clip / (clip + 1))


def test_scenarios_without_a_propensity_below_one_have_no_figures_and_cost_no_state() -> None:
    figures = explored.Figures(("click",), window_rows=100, clip=20.0)
    told(figures, ["home", "search"], [1, 1], [(0.9, 1, 1.0), (0.4, 0, NAN)])
    assert (figures.report(), figures.arrays()) == ([], {})
    told(figures, ["search", "home"], [2, 1], [(0.9, 1, 0.5), (0.1, 0, 1.0), (0.4, 0, 1.0)])
    assert {e.scenario for e in figures.report()} == {"search", ALL}
    assert of(figures, "search").rows == of(figures, ALL).rows == 2
    told(figures, ["home"], [2], [(0.5, 1, 0.25), (0.5, 0, 1.0)])
    assert of(figures, "home").auc == 0.5
    assert of(figures, "home").mean_label == pytest.approx(0.8)
    assert (of(figures, "search").rows, of(figures, ALL).rows) == (2, 4)


def test_the_recent_window_holds_the_last_rows_and_the_state_survives() -> None:
    figures, again = (explored.Figures(("click",), window_rows=3, clip=20.0) for _ in range(2))
    told(figures, ["home"], [2], [(0.9, 0, 0.5), (0.8, 0, 0.5)])
    told(figures, ["home"], [2], [(0.2, 1, 1.0), (0.7, 1, 0.25)])
    again.load({name: array.copy() for name, array in figures.arrays().items()})
    for one in (figures, again):
        told(one, ["home"], [1], [(0.1, 0, 1.0)])
        assert of(one, "home").mean_label == pytest.approx(5 / 10)
        recent = of(one, "home", "recent")
        assert (recent.rows, recent.auc) == (3, 1.0)
        assert recent.mean_label == pytest.approx(5 / 6)
    assert {n: a.tobytes() for n, a in figures.arrays().items()} == {n: a.tobytes() for n, a in again.arrays().items()}


def test_what_is_shown_by_chance_is_corrected_to_what_could_have_been_shown() -> None:
    generator, figures = np.random.default_rng(3), explored.Figures(("click",), window_rows=10, clip=20.0)
    good = generator.random(20_000) < 0.9
    clicks = generator.random(len(good)) < np.where(good, 0.8, 0.1)
    rows = zip(np.where(good, 0.7, 0.3).tolist(), clicks.tolist(), np.where(good, 0.9, 0.1).tolist(), strict=True)
    told(figures, ["home"], [len(good)], list(rows))
    found = of(figures, "home")
    assert found.mean_label == pytest.approx(0.45, abs=0.02)
    assert found.shown == pytest.approx(0.73, abs=0.01)
    assert 7_000 < found.effective < 7_400


def test_other_kinds_have_the_figures_that_mean_something_for_them() -> None:
    parts = [losses.Part("regression", 0, 1, False, 1.0), losses.Part("multiclass", 1, 3, False, 1.0)]
    figures = explored.Figures(("stars", "kind"), window_rows=10, clip=9.0, parts=parts)
    scores = np.full((len(VARIANTS), 2, 4), 0.25, np.float32)
    label, propensity = np.array([[4, 1], [1, 2]], np.float32), np.array([0.5, 1.0], np.float32)
    figures.update(["home"], np.array([2]), scores, label, np.ones((2, 2), np.float32), propensity)
    stars, kind = (e for e in figures.report() if (e.scenario, e.window, e.variant) == ("home", "cumulative", "adapted"))
    assert (stars.mean_label, stars.shown) == (3.0, 2.5)
    assert all(map(math.isnan, (stars.auc, kind.auc, kind.mean_label, kind.shown)))


def message(offset: int, propensity: float | None) -> episodes.Message:
    plain = rehearsal.message(SETTINGS, offset, seed=offset)
    head, packed = columns.unpack(plain.value)
    more: dict[str, Any] = {}
    if propensity is not None:
        more = {episodes.PROPENSITY: np.where(np.arange(len(packed["ids"])) % 2, 1.0, propensity).astype(np.float32)}
    return plain._replace(value=columns.pack(packed | more, **head))


def learned(propensity: float | None) -> tuple[Loop, rehearsal.MemoryWriter]:
    writer = rehearsal.MemoryWriter()
    publisher = publishing.Publisher(writer, lambda _: None, SETTINGS.snapshot)
    source = rehearsal.MemorySource([] if propensity == 0 else [message(i, propensity) for i in range(4)])
    out = Loop(SETTINGS, source, rehearsal.MemoryLog(), publisher, Clock(lambda: 5, lambda: 5.0))
    while out.once():
        pass
    out._report(0.0)
    return out, writer


def test_the_learner_reports_them_beside_the_plain_figures_and_keeps_them_in_snapshots() -> None:
    (said, writer), (silent, _), (certain, _) = learned(0.5), learned(None), learned(1.0)
    for quiet in (silent, certain):
        assert quiet.report.explored == ()
        assert not [name for part in quiet.parts().values() for name in part if name.startswith("explored/")]
    found = {(e.scenario, e.window): e for e in said.report.explored if e.variant == "adapted"}
    whole = found[ALL, "cumulative"]
    assert whole.rows == said.measures.figures.total == silent.measures.figures.total
    assert whole.effective < whole.rows
    assert 0 < whole.mean_label < 1
    assert found[ALL, "recent"].rows == min(whole.rows, 50)
    assert [repr(q) for q in said.measures.figures.report()] == [repr(q) for q in silent.measures.figures.report()]
    said.publish()
    manifest, parts = writer.snapshots[-1]
    (again, _) = learned(0)
    again.load(manifest, {name: array.copy() for part in parts.values() for name, array in part.items()})
    assert [repr(e) for e in again.measures.explored.report()] == [repr(e) for e in said.measures.explored.report()]

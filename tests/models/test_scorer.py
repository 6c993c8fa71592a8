import concurrent.futures

import numpy as np
import pytest

from learner import step
from models import base, scorer
from state import config, ids
from tests import minibatches


def published(settings: config.Config, native: bool = True) -> scorer.Scorer:
    trainer = step.Trainer(settings)
    for i in range(4):
        trainer.step(minibatches.minibatch(settings, i), i)
    return scorer.Scorer(settings, {name: trainer.arrays()[name] for name in trainer.serving_names}, native)


def last(support: base.Support, n: int) -> base.Support:
    return base.Support(support.ids[-n:], support.x[-n:], support.label[-n:])


def request(settings: config.Config, rows: int = 60, known: int = 9) -> tuple[base.U64, base.F32, base.Support]:
    generator = np.random.default_rng(7)
    found, x, _ = minibatches.rows(settings, generator, rows, 3, 1)
    return found, x, base.Support(*minibatches.rows(settings, generator, known, 3, 1))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("objectives", [1, 2])
def test_a_candidate_scores_the_same_alone_and_in_company(native: bool, objectives: int) -> None:
    settings = minibatches.settings(objectives)
    model, (found, x, support) = published(settings, native), request(settings)
    whole = model.score(found, x, 1, support)
    for i in range(0, 60, 7):
        alone = model.score(found[i : i + 1], x[i : i + 1], 1, support)
        assert alone.plain[0] == pytest.approx(whole.plain[i], abs=1e-6)
        assert alone.adapted[0] == pytest.approx(whole.adapted[i], abs=1e-6)
    assert np.abs(whole.adapted - whole.plain).max() > 1e-4


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("objectives", [1, 3])
def test_the_native_pass_equals_torch(steps: int, objectives: int) -> None:
    settings = minibatches.settings(objectives, meta={"inner_steps": steps, "inner_rate": 0.5})
    found, x, support = request(settings)
    one, other = (published(settings, native).score(found, x, 1, support) for native in (True, False))
    assert one.plain == pytest.approx(other.plain, abs=1e-6)
    assert one.adapted == pytest.approx(other.adapted, abs=1e-5)


def test_without_support_or_below_the_least_or_where_switched_off_the_plain_score_is_the_score() -> None:
    settings = minibatches.settings(meta={"min_support": 4})
    model, (found, x, support) = published(settings), request(settings)
    few, none = last(support, 3), base.Support(support.ids[:0], support.x[:0], support.label[:0])
    assert model.score(found, x, 1, support).adapted_on == 9
    for scored in (model.score(found, x, 1, None), model.score(found, x, 1, few), model.score(found, x, 1, none)):
        assert scored.adapted_on == 0
        assert scored.adapted.tolist() == scored.plain.tolist()
    model.modes.set(1, "off")
    assert model.score(found, x, 1, support).adapted_on == 0
    assert model.score(found, x, 2, support).adapted_on == 9


def test_only_the_newest_support_rows_count() -> None:
    settings = minibatches.settings(meta={"support_rows": 4})
    model, (found, x, support) = published(settings), request(settings)
    newest = last(support, 4)
    scored = model.score(found, x, 1, support)
    assert scored.adapted_on == 4
    assert scored.adapted.tolist() == model.score(found, x, 1, newest).adapted.tolist()


def test_threads_get_what_one_thread_gets() -> None:
    settings = minibatches.settings()
    model, (found, x, support) = published(settings), request(settings)
    cuts = [slice(i, i + 20) for i in range(0, 40, 2)]
    wanted = [model.score(found[c], x[c], 1, support).adapted.tolist() for c in cuts]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda c: model.score(found[c], x[c], 1, support).adapted.tolist(), cuts * 5))
    assert said == wanted * 5


def test_later_training_does_not_reach_a_published_model() -> None:
    settings = minibatches.settings()
    trainer = step.Trainer(settings)
    trainer.step(minibatches.minibatch(settings), 0)
    model = scorer.Scorer(settings, trainer.arrays())
    found, x, support = request(settings)
    before = model.score(found, x, 1, support).adapted.tolist()
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    assert model.score(found, x, 1, support).adapted.tolist() == before


def test_an_id_of_all_ones_elsewhere_than_in_a_list_reads_as_absent() -> None:
    settings = minibatches.settings()
    model, (found, x, _) = published(settings), request(settings, rows=2)
    found[0], found[1] = ids.PAD, found[1]
    assert np.isfinite(model.score(found, x, 1, None).plain).all()


def test_no_candidates_give_no_scores() -> None:
    settings = minibatches.settings()
    model, (found, x, support) = published(settings), request(settings)
    for known in (support, None):
        scored = model.score(found[:0], x[:0], 1, known)
        assert scored.plain.shape == scored.adapted.shape == (0, 1)


@pytest.mark.parametrize("broken", ["dense", "table", "moments"])
def test_a_snapshot_that_does_not_fit_is_refused_by_name(broken: str) -> None:
    settings = minibatches.settings()
    arrays = step.Trainer(settings).arrays()
    with pytest.raises(ValueError, match=f"lacks {broken}"):
        scorer.Scorer(settings, {name: array for name, array in arrays.items() if name != broken})
    wrong = {**arrays, broken: arrays[broken][:, :1] if arrays[broken].ndim > 1 else arrays[broken][1:]}
    with pytest.raises(ValueError, match=f'"{broken}"'):
        scorer.Scorer(settings, wrong)

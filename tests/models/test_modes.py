"""Which lists meta-learn."""

import msgspec
import numpy as np
import pytest

from learner import step
from models import modes
from state import config, ids
from tests import minibatches

CODES, TAKEN = np.array([modes.ON, modes.ON, modes.OFF, modes.FINE_TUNE_ONLY]), np.array([0, 3, 0, 0])
NONE_ON_TRIAL = np.zeros(20_000, np.bool_)


def learning(codes: modes.I64, taken: modes.I64, first: modes.U64, **settings: object) -> modes.I64:
    return modes.learning(
        msgspec.structs.replace(config.MetaLearning(), **settings), codes, taken, first, NONE_ON_TRIAL[: len(codes)]
    )


def test_a_list_without_support_meta_learns_unless_it_is_left_to_the_original_loss() -> None:
    first = np.zeros((4, 2), np.uint64)
    assert (learning(CODES, TAKEN, first) == CODES).all()
    left = learning(CODES, TAKEN, first, unadapted="original")
    assert left.tolist() == [modes.FINE_TUNE_ONLY, modes.ON, modes.OFF, modes.FINE_TUNE_ONLY]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_the_lists_meta_learns_and_it_is_the_same_lists_every_time(share: float) -> None:
    first = np.random.default_rng(0).integers(0, 2**63, (20_000, 3)).astype(np.uint64)
    codes, taken = np.full(len(first), modes.ON), np.ones(len(first), np.int64)
    found = learning(codes, taken, first, task_share=share)
    assert (found == modes.ON).mean() == pytest.approx(share, abs=0.015)
    assert (learning(codes[:500], taken[:500], first[:500], task_share=share) == found[:500]).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_of_scenarios_on_trial_a_share_of_the_lists_that_can_be_adapted_meta_learns(share: float) -> None:
    first = np.random.default_rng(0).integers(0, 2**63, (20_000, 3)).astype(np.uint64)
    codes, taken = np.full(len(first), modes.FINE_TUNE_ONLY), np.arange(len(first)) % 2
    on_trial = np.arange(len(first)) % 4 < 2
    meta = config.MetaLearning(mode="auto", auto_trial_share=share)
    found = modes.learning(meta, codes, taken, first, on_trial)
    assert set(found[~on_trial | (taken == 0)].tolist()) == {modes.FINE_TUNE_ONLY}
    assert (found[on_trial & (taken > 0)] == modes.ON).mean() == pytest.approx(share, abs=0.015)


def test_what_is_auto_is_on_trial_until_it_is_granted() -> None:
    found = modes.Modes(config.MetaLearning(mode="auto", scenarios={"off": "off"}))
    scenarios = np.array([1, 2, ids.of("off")], np.uint64)
    found.grant(2, True)
    assert found.on_trial(scenarios).tolist() == [True, False, False]
    assert [found.code(s) for s in (1, 2)] == [modes.OFF, modes.ON], "serving adapts what was granted alone"


@pytest.mark.parametrize("native", [True, False])
def test_a_list_that_is_left_out_is_scored_adapted_and_teaches_nothing_by_it(native: bool) -> None:
    settings = [minibatches.settings(meta=m) for m in ({"task_share": 1e-9}, {"mode": "fine_tune_only"})]
    sampled, tuned = (step.Trainer(s, native=native) for s in settings)
    for i in range(4):
        said = [t.step(minibatches.minibatch(t.settings, i, support=4), 1000 * i) for t in (sampled, tuned)]
        assert (said[0].adapted == said[1].adapted).all()
    assert (sampled.dense == tuned.dense).all()

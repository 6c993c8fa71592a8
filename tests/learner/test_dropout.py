from typing import Any

import numpy as np
import pytest

from learner import dropout, passes, step
from models import engines, scorer
from state import config, ids
from tests import minibatches


def declared(**model: Any) -> config.Config:
    return minibatches.settings(2, model={"dropout": 0.4} | model)


def trained(settings: config.Config, steps: int, resume_at: int = -1) -> step.Trainer:
    trainer = step.Trainer(settings)
    for i in range(steps):
        if i == resume_at:
            arrays = {name: np.array(array) for name, array in trainer.arrays().items()}
            trainer = step.Trainer(settings)
            trainer.load(arrays)
        assert not trainer.step(minibatches.minibatch(settings, i), i).skipped
    return trainer


def test_the_share_that_is_left_out_is_as_asked_and_what_remains_makes_up_for_it() -> None:
    found = dropout.mask(500, 40, 0.3, 7, 3)
    assert set(np.unique(found).tolist()) == {0.0, float(np.float32(1 / 0.7))}
    assert (found == 0).mean() == pytest.approx(0.3, abs=0.015)
    assert np.abs(found.mean((0, 1)) - 1).max() < 0.25
    assert np.abs(found.mean((1, 2)) - 1).max() < 0.6
    assert (dropout.mask(3, 5, 0.0, 7, 3) == 1).all()


def test_masks_differ_by_step_and_seed_and_by_nothing_else() -> None:
    one = dropout.mask(50, 8, 0.5, 0, 1)
    assert (one == dropout.mask(50, 8, 0.5, 0, 1)).all()
    for other in (dropout.mask(50, 8, 0.5, 0, 2), dropout.mask(50, 8, 0.5, 1, 1)):
        assert (one == other).mean() == pytest.approx(0.5, abs=0.15)
    assert (one[1:] == one[:-1]).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("name", ["pepnet", "mmoe"])
def test_a_run_that_is_repeated_or_resumed_gives_the_same_bytes(name: str) -> None:
    settings = declared(name=name)
    whole, again, resumed = trained(settings, 4), trained(settings, 4), trained(settings, 4, resume_at=2)
    assert whole.dense.tobytes() == again.dense.tobytes() == resumed.dense.tobytes()
    assert whole.table.table.tobytes() == resumed.table.table.tobytes()
    assert not np.array_equal(whole.dense, trained(declared(name=name, dropout=0.0, native=False), 4).dense)


def test_what_a_step_says_is_of_the_whole_network() -> None:
    batch = minibatches.minibatch(declared())
    dropped, plain = step.Trainer(declared()), step.Trainer(declared(dropout=0.0), native=False, compiled=False)
    said, now = plain.step(batch, 0), dropped.step(batch, 0)
    assert now.unadapted == pytest.approx(said.unadapted, abs=1e-7)
    assert now.adapted == pytest.approx(said.adapted, abs=1e-7)
    assert now.loss != pytest.approx(said.loss, abs=1e-6)
    assert not np.array_equal(dropped.dense, plain.dense)


def test_steps_are_of_autograd_and_serving_stays_native() -> None:
    trainer = trained(declared(), 1)
    assert isinstance(trainer.engine, passes.Autograd)
    assert trainer.choice == engines.Choice("autograd", "model.dropout")
    served = scorer.Scorer(trainer.settings, trainer.arrays())
    assert served.choice.engine == "native"
    batch = minibatches.minibatch(trainer.settings, 5, scenario=ids.of("search"))
    plain = served.score(batch.ids, batch.x, ids.of("search"), None).plain
    assert plain == pytest.approx(trainer.score(batch).unadapted, abs=1e-5)


def test_a_native_step_with_dropout_is_refused() -> None:
    text = minibatches.TEXT.replace("[model]", "[model]\nnative = true\ndropout = 0.2")
    with pytest.raises(config.ConfigError, match=r"model\.dropout: no native step leaves anything out"):
        config.parse(text)

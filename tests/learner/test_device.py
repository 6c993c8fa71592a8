"""Passes on another device: the same numbers as on the CPU."""

import numpy as np
import pytest
import torch

from learner import passes, step
from learner.meta import registry as meta_learners
from models import base, registry
from state import config
from tests import minibatches

GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine")
)


def trained(settings: config.Config, device: str | None) -> tuple[list[step.Scores], step.Trainer]:
    """Scores of five steps with support, by autograd: here, or with the passes on `device`."""
    trainer = step.Trainer(settings, native=False, compiled=False)
    if device:
        outer = meta_learners.META_LEARNERS[settings.meta.algorithm].outer(settings.meta)
        trainer.engine = passes.OnDevice(settings, outer, torch.from_numpy(trainer.dense), trainer.gradient, device)
    return [trainer.step(minibatches.minibatch(settings, i, support=6), 1000 * i) for i in range(5)], trainer


def both_agree(settings: config.Config, device: str, tolerance: float) -> None:
    (here, first), (there, second) = trained(settings, None), trained(settings, device)
    for a, b in zip(here, there, strict=True):
        assert not a.skipped
        assert not b.skipped
        np.testing.assert_allclose(a.adapted, b.adapted, atol=tolerance)
        np.testing.assert_allclose(a.unadapted, b.unadapted, atol=tolerance)
    np.testing.assert_allclose(first.dense, second.dense, atol=10 * tolerance)
    np.testing.assert_allclose(first.table.table, second.table.table, atol=10 * tolerance)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_every_model_learns_the_same_where_its_passes_run_elsewhere(name: str, device: str) -> None:
    both_agree(minibatches.settings(2, model={"name": name}), device, 0.0 if device == "cpu" else 1e-4)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("algorithm", sorted(meta_learners.META_LEARNERS))
def test_every_algorithm_learns_the_same_where_its_passes_run_elsewhere(algorithm: str, device: str) -> None:
    both_agree(minibatches.settings(meta={"algorithm": algorithm}), device, 0.0 if device == "cpu" else 1e-4)


@pytest.mark.parametrize("name", ["pepnet", "m2m", "adasparse", "fm", "lr"])
def test_a_network_makes_no_tensor_away_from_its_device(name: str) -> None:
    """The device `meta` has no numbers, and refuses to be mixed with the CPU; models that sort rows by scenario need numbers."""
    with torch.device("meta"):
        settings = minibatches.settings(model={"name": name})
        model, row = registry.build(settings), base.geometry(settings).row
        inputs = base.Inputs(torch.zeros(6, row), torch.zeros(6, dtype=torch.int64), torch.zeros(6))
        parameters = base.views(torch.zeros(base.size(model.shapes)), model.shapes)
        assert model.tower(parameters, model.trunk(parameters, inputs)).device.type == "meta"


def test_auto_takes_a_gpu_where_there_is_one_and_cuda_without_one_is_refused_with_the_reason() -> None:
    auto, cuda = (minibatches.settings(learner={"device": d}) for d in ("auto", "cuda"))
    assert passes.device(minibatches.settings()) == "cpu"
    if torch.cuda.is_available():
        assert passes.device(auto) == passes.device(cuda) == "cuda"
    else:
        assert passes.device(auto) == "cpu"
        with pytest.raises(config.ConfigError, match=r"learner\.device: \"cuda\", but torch .* finds no CUDA device"):
            step.Trainer(cuda)

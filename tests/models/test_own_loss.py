"""A loss of one's own, written as the kind's is, does what the kind's does: in steps, inner steps and serving."""

from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional

from learner import step
from models import base, losses, scorer
from state import config
from tests import minibatches

HERE = "tests.models.test_own_loss"


def cross_entropy(label: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    """The binary kind's."""
    return functional.binary_cross_entropy_with_logits(logit[:, 0], label, reduction="none")


def squared(label: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    """The regression kind's."""
    return 0.5 * (logit[:, 0] - label).square()


def averaged(label: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return cross_entropy(label, logit).mean()


def infinite(label: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return cross_entropy(label, logit) / label


def detached(label: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return cross_entropy(label, logit.detach())


def declared(loss: str, algorithm: str = "fomaml") -> config.Config:
    out = minibatches.settings(
        1, model={"name": "shared_bottom"}, meta={"algorithm": algorithm, "inner_steps": 2, "inner_rate": 0.3}
    )
    return msgspec.structs.replace(out, objectives=(config.Objective(name="click", action="click", loss=loss),))


@pytest.mark.parametrize("algorithm", ["fomaml", "maml", "reptile"])
def test_the_kinds_own_formula_gives_the_kinds_own_steps_and_scores(algorithm: str) -> None:
    usual, own = (step.Trainer(declared(loss, algorithm), compiled=False) for loss in ("", f"{HERE}:cross_entropy"))
    for i in range(3):
        batch = minibatches.minibatch(usual.settings, i, support=5)
        wanted, said = usual.step(batch, i), own.step(batch, i)
        assert said.adapted == pytest.approx(wanted.adapted, abs=1e-5)
        assert own.gradient.flat.numpy() == pytest.approx(usual.gradient.flat.numpy(), abs=1e-5)
    one = minibatches.minibatch(usual.settings, 9, lists=1, support=5)
    support = base.Support(one.s_ids, one.s_x, one.s_label)
    scores: list[Any] = [
        scorer.Scorer(t.settings, t.arrays()).score(one.ids, one.x, int(one.scenario[0]), support) for t in (usual, own)
    ]
    assert scores[1].adapted == pytest.approx(scores[0].adapted, abs=1e-5)
    assert scores[1].adapted_on == 5


def test_a_regression_hands_over_what_its_logit_is_to_say() -> None:
    kinds = [
        config.Objective(name="time", action="watch", kind="regression", transform="log1p", scale=2.0, loss=loss)
        for loss in ("", f"{HERE}:squared")
    ]
    label, logit = torch.tensor([[3.0], [float("nan")], [0.5]]), torch.tensor([[0.2], [1.0], [-0.3]])
    found = []
    for kind in kinds:
        plan = losses.plan([kind])
        wanted = losses.targets(plan, label, torch.ones(3, 1), torch.tensor([3]))
        found.append((losses.loss(plan, wanted, logit), losses.slope(plan, wanted, logit)))
    assert found[1][0].item() == pytest.approx(found[0][0].item())
    assert found[1][1].numpy() == pytest.approx(found[0][1].numpy())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("averaged", "must give a number for each, neither summed nor averaged"),
        ("infinite", "not finite"),
        ("detached", "cannot be asked about 3 rows"),
        ("HERE", "cannot be asked about 3 rows"),
        ("absent", 'has no "absent"'),
    ],
)
def test_a_loss_that_breaks_the_contract_is_refused_with_the_cause(name: str, said: str) -> None:
    with pytest.raises(config.ConfigError, match=rf"objectives\[0\].loss: .*{said}"):
        losses.plan(declared(f"{HERE}:{name}").objectives)


def test_a_ranking_cannot_have_one() -> None:
    text = minibatches.TEXT + '[[objectives]]\nname = "o"\naction = "a"\nkind = "ranking"\nloss = "a:b"\n'
    with pytest.raises(config.ConfigError, match=r"objectives\[0\].loss: .* compares rows"):
        config.parse(text)

"""A pass over a minibatch for two towers that learn to find a user's next item (T11): sampled softmax with logQ.

The outer loss of a row that was acted on is a softmax over the minibatch's own items that were acted on and those of a queue,
each logit less the log of how often that item is met (logQ: Bengio and Senecal 2008; Yi et al. 2019, section 3), so that frequent
items are not pushed down for being frequent. Loss = plain + `meta.weight` x adapted, first order, the mean over rows acted on.
The inner steps take the loss of the objective, a ranking: it asks of a logit only that it is above those of the negatives, where
a softmax leaves the level of logits open and the logistic loss would adapt to the level.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from learner import passes
from models import adaptation, base, losses, modes, supports, two_tower
from models.meta import adapters, fomaml
from state import config

I64 = npt.NDArray[np.int64]
HIDDEN = -1e9
"""Logit of a candidate that is no negative: the positive itself a second time, or something else that the same user acted on."""


def loss(user: torch.Tensor, vector: torch.Tensor, base_logit: torch.Tensor, clash: torch.Tensor) -> torch.Tensor:
    """The loss (B,) of users' vectors (B, H) whose wanted items are the first B of (B + M, H); `base_logit` (B + M,) holds the
    items' biases less log shares, `clash` (B, B + M) what is no negative.
    """
    logit = (user @ vector.T + base_logit).masked_fill(clash, HIDDEN)
    return functional.cross_entropy(logit, torch.arange(len(user)), reduction="none")


class SampledSoftmax:
    """An engine (`learner.passes.Engine`) for one ranking objective."""

    def __init__(
        self, model: two_tower.TwoTower, settings: config.Config, flat: torch.Tensor, gradient: base.Gradient
    ) -> None:  # fmt: skip
        """`flat` holds all parameters and `gradient` takes theirs."""
        self.model, self.gradient, self.meta = model, gradient, settings.meta
        self.plan = losses.plan(settings.objectives)
        self.adapter = fomaml.adapter(adapters.Given(settings.meta, adapters.tower_of(model), self.plan))
        self.parameters = passes.leaves(flat, model.shapes, gradient.flat)
        self.fast = {name: self.parameters[name] for name in base.FAST}

    def run(self, work: passes.Work, train: bool) -> base.Pass:
        """See `Engine`; without rivals there is no loss."""
        rows, every = len(work.label), passes.entering(work)
        inputs = every.x[:rows].requires_grad_(train)
        with torch.set_grad_enabled(train):
            meta = self.model.trunk(self.parameters, base.Inputs(inputs, every.slot[:rows], every.earned[:rows]))
            hidden, vector, bias = meta.hidden[:, 0], meta.gate[:, 0], meta.offset[:, 0]
            plain = two_tower.vectors(self.fast, hidden)
            adapted, level = self._adapted(work, base.Inputs(*(part[rows:] for part in every)), meta, plain)
            total = self._loss(work, plain, adapted, vector, bias)
        own = bias + self.fast["output.bias"]
        logits = ((plain * vector).sum(1) + own, (adapted * vector).sum(1) + own + level)
        said = [losses.predictions(self.plan, logit.detach().unsqueeze(1)).numpy() for logit in logits]
        if not train:
            return base.Pass(said[0], said[1], total.item(), None)
        self.gradient.flat.zero_()
        if total.requires_grad:
            torch.autograd.backward(total)
        slope = np.zeros_like(work.inputs[:rows]) if inputs.grad is None else inputs.grad.numpy()
        return base.Pass(said[0], said[1], total.item(), slope)

    def _loss(
        self, work: passes.Work, plain: torch.Tensor, adapted: torch.Tensor, vector: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        rivals = work.rivals
        if rivals is None or not len(rivals.acted):
            return plain.new_zeros(())
        acted = torch.from_numpy(rivals.acted)
        items = torch.cat([acted, torch.from_numpy(rivals.drawn)])
        base_logit, clash = bias[items] - torch.from_numpy(rivals.log_share), torch.from_numpy(rivals.clash)
        weight = torch.from_numpy(work.weight[rivals.acted, 0] / np.float32(len(rivals.acted)))
        total = (loss(plain[acted], vector[items], base_logit, clash) * weight).sum()
        learns = np.repeat(work.codes == modes.ON, work.n_items)[rivals.acted]
        if self.meta.weight > 0 and learns.any():
            weight = weight * torch.from_numpy(learns)
            total = total + self.meta.weight * (loss(adapted[acted], vector[items], base_logit, clash) * weight).sum()
        return total

    def _adapted(
        self, work: passes.Work, support: base.Inputs, meta: base.MetaInput, plain: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Users' vectors (R, H2), those of adapted lists under their towers, and how much adapting shifts their logits (R,)."""
        found, level = work.found, plain.new_zeros(len(plain))
        if not found.taken.any():
            return plain, level
        padded = supports.pad(found, work.n_items, self.meta.prior_rows)
        with torch.no_grad():
            known = base.MetaInput(*(part.detach() for part in meta))
            if len(support.x):
                more = self.model.trunk(self.parameters, support)
                known = base.MetaInput(*(torch.cat(pair) for pair in zip(known, more, strict=True)))
            label = torch.from_numpy(work.s_label)[padded.support]
            tasks = adapters.Tasks(
                adaptation.pick(known, torch.from_numpy(found.at)[padded.support]), label, padded.weight
            )  # fmt: skip
            change = self.adapter.adapt(self.fast, tasks)
        lists = np.flatnonzero(found.taken)
        task = torch.from_numpy(np.repeat(np.arange(len(lists)), np.asarray(work.n_items, np.int64)[lists]))
        of_rows = adaptation.Adapted(*(part[task] for part in change))
        vectors = two_tower.adapted_vectors(self.fast, of_rows, meta.hidden[padded.rows, 0])
        return plain.index_copy(0, padded.rows, vectors), level.index_copy(0, padded.rows, change.bias[task, 0])

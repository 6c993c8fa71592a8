"""One forward and backward pass over a minibatch: by autograd for any model, natively where the model offers it.

Both compute the same: predictions of both towers, the joint loss and its gradients, with respect to the dense parameters and
to the gathered inputs.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from learner import dropout, tower
from learner.meta import outer
from models import adaptation, base, losses, modes, supports, towers
from models import registry as models
from models.meta import adapters, registry
from state import config

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Rivals(NamedTuple):
    """What competes with the B rows of a minibatch that were acted on, where two towers learn by softmax: they and M others."""

    acted: I64
    """(B,) rows of the minibatch."""
    drawn: I64
    """(M,) rows of it that hold items of the queue."""
    clash: npt.NDArray[np.bool_]
    """(B, B + M): is no negative of the row, but its own item a second time, or what the same user acted on."""
    log_share: F32
    """(B + M,) logarithm of the share of all actions that were on the item."""


class Work(NamedTuple):
    """A minibatch as the network sees it: R query rows, then the V support rows that are none of them (`supports.Distinct`)."""

    inputs: F32
    """(R + V, row) as the rows' scenarios read them (`models.own_gains`)."""
    shared: F32
    """(R + V, row) as gathered."""
    slot: I64
    """(R + V,)"""
    earned: F32
    """(R + V,)"""
    label: F32
    weight: F32
    n_items: I64
    codes: I64
    """(L,) modes of the lists."""
    found: supports.Distinct
    s_label: F32
    """(U, O)"""
    drop: int = -1
    """Number of the step that leaves hidden numbers out (`learner.dropout`); -1: all are there."""
    rivals: Rivals | None = None


class Engine(Protocol):
    """Something that computes passes over one flat parameter vector."""

    def run(self, work: Work, train: bool) -> base.Pass:
        """Score; when training, also fill the dense gradient that the engine was built with."""


class Autograd:
    """The reference: torch's autograd over the model's own trunk and an adaptation in closed form."""

    def __init__(
        self, model: base.Model, adapter: adapters.Adapter, meta: outer.Loss, settings: config.Config, flat: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:  # fmt: skip
        """`flat` holds all parameters and `gradient` takes theirs, on the device that the passes run on."""
        self.model, self.adapter, self.meta, self.gradient = model, adapter, meta, gradient
        self.weight, self.prior, self.plan = settings.meta.weight, settings.meta.prior_rows, losses.plan(settings.objectives)
        self.parameters = leaves(flat, registry.shapes(model, adapter), gradient)
        self.fast = registry.fast(self.parameters, model, adapter)
        self.rate, self.seed = settings.model.dropout, settings.learner.seed

    def run(self, work: Work, train: bool) -> base.Pass:
        """See `Engine`."""
        rows, every = len(work.label), base.Inputs(*(self._there(part) for part in (work.inputs, work.slot, work.earned)))
        inputs = every.x[:rows].requires_grad_(train)
        wanted = losses.targets(self.plan, *(self._there(part) for part in (work.label, work.weight, work.n_items)))
        with torch.set_grad_enabled(train):
            whole = self.model.trunk(self.parameters, base.Inputs(inputs, every.slot[:rows], every.earned[:rows]))
            meta = self._dropped(whole, work.drop)
            plain = self.model.tower(self.fast, meta)
            learns = self._there(np.repeat(work.codes == modes.ON, work.n_items).astype(np.float32))
            adapted, found = self._adapted(work, base.Inputs(*(part[rows:] for part in every)), whole, meta, plain, learns)
            loss = losses.loss(self.plan, wanted, plain)
            if self.weight > 0 and learns.any():
                learned = wanted._replace(weight=wanted.weight * learns.unsqueeze(1))
                loss = loss + self.weight * self.meta(outer.Outer(self.plan, self.fast, learned, adapted, found))
        unadapted, fitted = (losses.predictions(self.plan, logit.detach()).cpu().numpy() for logit in (plain, adapted))
        if not train:
            return base.Pass(unadapted, fitted, loss.item(), None)
        self.gradient.zero_()
        torch.autograd.backward(loss)
        slope = np.zeros_like(work.inputs[:rows]) if inputs.grad is None else inputs.grad.cpu().numpy()
        return base.Pass(unadapted, fitted, loss.item(), slope)

    def _dropped(self, meta: base.MetaInput, step: int) -> base.MetaInput:
        if step < 0:
            return meta
        rows, _, width = meta.hidden.shape
        return meta._replace(hidden=meta.hidden * self._there(dropout.mask(rows, width, self.rate, self.seed, step)))

    def _there(self, part: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(part).to(self.gradient.device)

    def _adapted(
        self, work: Work, support: base.Inputs, whole: base.MetaInput, meta: base.MetaInput, plain: torch.Tensor,
        learns: torch.Tensor,
    ) -> tuple[torch.Tensor, outer.Adapted | None]:  # fmt: skip
        """Logits (R, O) under each list's adapted tower, the plain ones where a list is not adapted; and the tasks, if any.

        Rows that are support of others are adapted on as they are (`whole`), as in serving; `meta` has the numbers left out.
        """
        if not work.found.taken.any():
            return plain, None
        padded = supports.Padded(*(p.to(plain.device) for p in supports.pad(work.found, work.n_items, self.prior)))
        with torch.no_grad():
            more = self.model.trunk(self.parameters, support) if len(support.x) else whole
            more = base.MetaInput(*(part[: len(support.x)] for part in more))
        known = base.MetaInput(*(torch.cat([asked.detach(), part]) for asked, part in zip(whole, more, strict=True)))
        label = self._there(work.s_label)[padded.support]
        places = self._there(work.found.at)[padded.support]
        tasks = adapters.Tasks(adaptation.pick(known, places), label, padded.weight)
        query = adaptation.pick(meta, padded.query)
        logit = self.adapter.logits(self.fast, self.adapter.adapt(self.fast, tasks), query).flatten(0, 1)[padded.back]
        asked = torch.zeros(padded.query.numel()).index_copy(0, padded.back, learns[padded.rows]).view_as(padded.query)
        found = outer.Adapted(tasks, query, self._there(work.label)[padded.query], asked)
        return plain.index_copy(0, padded.rows, logit), found


class OnDevice:
    """`Autograd` on another device. Parameters go there before a pass and gradients come back after it; the table stays here."""

    def __init__(
        self, settings: config.Config, meta: outer.Loss, flat: torch.Tensor, gradient: base.Gradient, device: str
    ) -> None:
        self._flat, self._gradient, self._device = flat, gradient, torch.device(device)
        # A model keeps tensors of indices of its own, and makes more as it runs.
        with self._device:
            model = models.build(settings)
            adapter = registry.build(settings, model)
        there, slope = flat.to(self._device, copy=True), torch.zeros_like(flat, device=self._device)
        self._there, self._slope = there, slope
        self._engine = Autograd(model, adapter, meta, settings, there, slope)

    def run(self, work: Work, train: bool) -> base.Pass:
        """See `Engine`."""
        self._there.copy_(self._flat)
        with self._device:
            done = self._engine.run(work, train)
        if train:
            self._gradient.flat.copy_(self._slope)
        return done


def device(settings: config.Config) -> str:
    """The device that `learner.device` names, "cuda" or "cpu".

    Raises:
        config.ConfigError: "cuda" is asked for and torch finds none.
    """
    asked, there = settings.learner.device, torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise config.ConfigError(
            f'learner.device: "cuda", but torch {torch.__version__} finds no CUDA device here; '
            'choose "cpu" or "auto", or install a torch with CUDA and a driver'
        )
    return "cuda" if asked != "cpu" and there else "cpu"


class Compiled:
    """The model's own trunk under autograd, with towers, adaptation and losses compiled (`learner.tower`)."""

    def __init__(self, model: base.Model, settings: config.Config, flat: torch.Tensor, gradient: base.Gradient) -> None:
        self.model, self.gradient = model, gradient
        self.parameters = leaves(flat, model.shapes, gradient.flat)
        self.end = tower.Compiled(settings.meta, self.parameters, gradient)

    def run(self, work: Work, train: bool) -> base.Pass:
        """See `Engine`."""
        rows, every = len(work.label), entering(work)
        inputs = every.x[:rows].requires_grad_(train)
        with torch.set_grad_enabled(train):
            query = self.model.trunk(self.parameters, base.Inputs(inputs, every.slot[:rows], every.earned[:rows]))
        with torch.no_grad():
            support = base.MetaInput(*(part[:0].detach() for part in query))
            if len(every.x) > rows:
                support = self.model.trunk(self.parameters, base.Inputs(*(part[rows:] for part in every)))
        if train:
            self.gradient.flat.zero_()
        done = self.end.run(lists(work), query, support, train)
        return done._replace(inputs=None if inputs.grad is None else inputs.grad.numpy())


class Written:
    """The same with a trunk whose gradient is written by hand: one pass for query and support rows, and no autograd."""

    def __init__(
        self, trunk: base.Written, settings: config.Config, parameters: base.Parameters, gradient: base.Gradient
    ) -> None:
        self.trunk, self.end = trunk, tower.Compiled(settings.meta, parameters, gradient)

    def run(self, work: Work, train: bool) -> base.Pass:
        """See `Engine`."""
        with torch.inference_mode():
            meta, saved = self.trunk.forward(entering(work))
            done, slopes = self.end.apart(lists(work), meta, train)
            return done if slopes is None else done._replace(inputs=self.trunk.backward(saved, slopes))


def compiled(model: base.Model, settings: config.Config, flat: torch.Tensor, gradient: base.Gradient) -> Engine:
    """`Written` for a model that has its trunk in that form, else `Compiled`."""
    parameters = base.views(flat, model.shapes)
    trunk = model.written(parameters, gradient.views)
    if trunk is None:
        return Compiled(model, settings, flat, gradient)
    return Written(trunk, settings, parameters, gradient)


class Native:
    """The model's hand-written network."""

    def __init__(self, network: base.NativeTrunk, gradient: base.Gradient) -> None:
        self.network, self.gradient = network, gradient

    def run(self, work: Work, train: bool) -> base.Pass:
        """See `Engine`."""
        return self.network.run(work.inputs, lists(work), self.gradient if train else None)


def leaves(flat: torch.Tensor, shapes: base.Shapes, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parameters as leaves of autograd, which adds to the places of `gradient`."""
    found, slopes = base.views(flat.detach(), shapes), base.views(gradient, shapes)
    for name, view in found.items():
        view.requires_grad_().grad = slopes[name]
    return found


def entering(work: Work) -> base.Inputs:
    """What a trunk reads: the query rows, then the support rows."""
    return base.Inputs(*(torch.from_numpy(part) for part in (work.inputs, work.slot, work.earned)))


def lists(work: Work) -> towers.Lists:
    """The minibatch as compiled towers see it."""
    found = work.found
    return towers.Lists(work.label, work.weight, work.n_items, work.codes, found.taken, found.place, work.s_label, found.at)

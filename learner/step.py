"""One step of the learner: score, then train on the same forward pass.

loss = original + weight x meta loss. The original loss is the weighted binary cross-entropy of every row under the plain tower;
the meta loss that of the same rows under the tower adapted to their list's support (each list is an adaptation task of its
own). Both are means over the minibatch's rows, summed over objectives.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from learner import optimizers
from models import adaptation, base, embedding, modes, registry, supports
from state import config

F32 = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


class Scores(NamedTuple):
    """What the model said before it learned: probabilities (R, O), the joint loss, and why no step was made, or ""."""

    unadapted: F32
    adapted: F32
    loss: float
    skipped: str


class Pass(NamedTuple):
    """A forward pass: probabilities, loss, and the gradients (None when only scoring)."""

    unadapted: F32
    adapted: F32
    loss: float
    gradient: F32 | None
    inputs: F32 | None


class Trainer:
    """The complete training state and the one step that changes it."""

    def __init__(self, settings: config.Config) -> None:
        """Build the model with `learner.seed`; sets the process's torch threads to `learner.threads`.

        Raises:
            config.ConfigError: the configuration names an unknown model or declares no category.
        """
        torch.set_num_threads(settings.learner.threads)
        self.settings = settings
        self.model = registry.build(settings)
        self.table = embedding.Table(settings)
        self.modes = modes.Modes(settings.meta)
        self._flat = self.model.initial(settings.learner.seed)
        self._gradient = torch.zeros_like(self._flat)
        self.dense, self.gradient = self._flat.numpy(), self._gradient.numpy()
        self.adam = optimizers.Adam(len(self.dense), settings.optimizer)
        self._parameters = base.views(self._flat, self.model.shapes)
        for view, gradient in zip(self._parameters.values(), base.views(self._gradient, self.model.shapes).values(), strict=True):
            view.requires_grad_().grad = gradient

    @property
    def serving_names(self) -> tuple[str, ...]:
        """Names of the arrays that serving needs."""
        return ("dense", *embedding.SERVING, *self.modes.arrays())

    def set_meta(self, scenario: str | int | None, mode: modes.Mode) -> None:
        """Switch meta-learning for one scenario (name or hash) or, with None, for those without a mode of their own."""
        self.modes.set(scenario, mode)

    def step(self, batch: base.Batch, now_ms: int) -> Scores:
        """Score whole lists and train on them; `now_ms` is their event time.

        A loss or gradient that is not finite skips the step: parameters, optimiser and moments keep their bytes (new ids
        have their rows, which is all that was done) and `skipped` says why.
        """
        ids, x = np.array(batch.ids), np.array(batch.x)
        rows = self.table.admit(ids, now_ms)
        done = self._forward(batch, rows, x, train=True)
        skipped = self._descend(done, rows, x)
        return Scores(done.unadapted, done.adapted, done.loss, skipped)

    def score(self, batch: base.Batch) -> Scores:
        """Score without any change of state; ids without a row of their own read their field's shared row."""
        rows = self.table.map.find(np.array(batch.ids))
        done = self._forward(batch, rows, np.array(batch.x), train=False)
        return Scores(done.unadapted, done.adapted, done.loss, "")

    def _descend(self, done: Pass, rows: npt.NDArray[np.int32], x: F32) -> str:
        if done.gradient is None or done.inputs is None:
            return ""
        if not math.isfinite(done.loss):
            return "loss is not finite"
        norm = optimizers.norm(done.gradient)
        if not math.isfinite(norm) or not math.isfinite(optimizers.norm(done.inputs.reshape(-1))):
            return "gradient is not finite"
        self.table.descend(rows, done.inputs)
        self.adam.descend(self.dense, done.gradient, norm)
        self.table.observe(x)
        return ""

    def _forward(self, batch: base.Batch, rows: npt.NDArray[np.int32], x: F32, train: bool) -> Pass:
        inputs = torch.from_numpy(self.table.gather(rows, x)).requires_grad_(train)
        codes = self.modes.codes(batch.scenario)
        label, weight = torch.from_numpy(np.array(batch.label)), torch.from_numpy(np.array(batch.weight))
        with torch.set_grad_enabled(train):
            meta = self.model.trunk(self._parameters, inputs)
            fast = {name: self._parameters[name] for name in self.model.fast_parameters()}
            plain = self.model.tower(fast, meta)
            adapted = self._adapted(batch, codes, fast, meta, plain)
            loss = _cross_entropy(plain, label, weight)
            learns = np.repeat(codes == modes.ON, batch.n_items)
            if self.settings.meta.weight > 0 and learns.any():
                mask = torch.from_numpy(learns.astype(np.float32)).unsqueeze(1)
                loss = loss + self.settings.meta.weight * _cross_entropy(adapted, label, weight * mask)
        unadapted, fitted = torch.sigmoid(plain.detach()).numpy(), torch.sigmoid(adapted.detach()).numpy()
        if not train:
            return Pass(unadapted, fitted, loss.item(), None, None)
        self._gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        assert inputs.grad is not None
        return Pass(unadapted, fitted, loss.item(), self.gradient, inputs.grad.numpy())

    def _adapted(
        self, batch: base.Batch, codes: npt.NDArray[np.int64], fast: base.Parameters, meta: base.MetaInput, plain: torch.Tensor
    ) -> torch.Tensor:
        """Logits (R, O) under each list's adapted tower; the plain ones where a list is not adapted."""
        settings = self.settings.meta
        found = supports.distinct(batch, codes, settings.min_support, settings.support_rows)
        if not len(found.rows):
            return plain
        padded = supports.pad(found, batch.n_items)
        with torch.no_grad():
            rows = self.table.map.find(batch.s_ids[found.rows])
            known = self.model.trunk(self._parameters, torch.from_numpy(self.table.gather(rows, batch.s_x[found.rows])))
            label = torch.from_numpy(batch.s_label[found.rows])
            change = adaptation.adapt(
                fast, adaptation.pick(known, padded.support), label[padded.support], padded.weight,
                settings.inner_rate, settings.inner_steps,
            )  # fmt: skip
        logit = adaptation.logits(fast, change, adaptation.pick(meta, padded.query)).flatten(0, 1)[padded.back]
        return plain.index_copy(0, padded.rows, logit)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The complete training state by name: views, to be copied before the next step."""
        return {"dense": self.dense, **self.adam.arrays(), **self.table.arrays(), **self.modes.arrays()}

    def load(self, arrays: Arrays) -> None:
        """Take over a state that `arrays` returned (copied); continuing is then bit-identical.

        Raises:
            ValueError: an array is missing or has another shape than this configuration needs.
        """
        for name, own in {"dense": self.dense, "moments": self.table.moments, **self.adam.arrays()}.items():
            if name not in arrays or arrays[name].shape != own.shape:
                found = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(f'snapshot array "{name}": found {found}, this configuration needs {own.shape}; use its own snapshots')
        self.dense[:] = arrays["dense"]
        for name, own in self.adam.arrays().items():
            own[:] = arrays[name]
        self.table.load(arrays)
        self.modes.load(arrays)


def _cross_entropy(logit: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted, the mean over rows, summed over objectives."""
    return functional.binary_cross_entropy_with_logits(logit, label, weight, reduction="sum") / max(len(logit), 1)

"""One step of the learner: score, then train on the same forward pass.

loss = original + weight x meta loss. The original loss is the weighted loss of every row under the plain tower, by kind of
objective (`models.losses`); the meta loss that of the same rows under the tower adapted to their list's support (each list is
an adaptation task of its own). Both are means over the minibatch's rows that have an objective, summed over objectives.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learner import catalogue, cold_items, descent, engines, optimizers, passes, widening
from models import (
    base,
    cold,
    embedding,
    intake,
    items,
    limits,
    losses,
    modes,
    moments,
    own_gains,
    own_rows,
    pages,
    registry,
    scenario_slots,
    starts,
)
from models.meta import registry as meta
from state import config
from state.kernels import plain

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
_AS_LABELLED: F64 = np.zeros(0, np.float64)


class Scores(NamedTuple):
    """What the model said before it learned: predictions (R, outputs), the joint loss, why no step was made, or "", and lists
    whose adaptation diverged, which have kept the shared tower (or, only scored, are what serving says).
    """

    unadapted: F32
    adapted: F32
    loss: float
    skipped: str
    diverged: int = 0


class Trainer:
    """The complete training state and the one step that changes it."""

    def __init__(self, settings: config.Config, native: bool = True, compiled: bool = True) -> None:
        """Build the model with `learner.seed`; sets the process's torch threads to `learner.threads`.

        `native` takes the native network that `model.native` asks for (`models.meta.registry.network`); False leaves it out
        whatever the configuration says. Otherwise torch runs the trunk, by its written gradient or by autograd; then `compiled`
        takes the compiled towers under the same conditions, and without them autograd does all of the same work, slower.

        Raises:
            config.ConfigError: the configuration names an unknown model, declares no category, asks for a native network
                where there is none, or for a device that is not there.
        """
        torch.set_num_threads(settings.learner.threads)
        self.settings = settings
        self.model, self.plan = registry.build(settings), losses.plan(settings.objectives)
        self.table = embedding.Table(settings)
        counts_as = np.array([o.loss_weight for o in settings.objectives], np.float32)
        self._counts_as = None if (counts_as == 1).all() else counts_as
        self.modes = modes.Modes(settings.meta)
        self.slots = scenario_slots.Slots(settings.scenarios)
        self.gains = own_gains.Gains(settings)
        self.own_rows = own_rows.plan(settings)
        asked = cold.layout(settings)
        self.cold = cold_items.Generator(settings, asked) if asked else None
        self.catalogue = catalogue.of(settings)
        self._searched = self.catalogue if settings.retrieval.loss == "softmax" else None
        self._scenario = self.table.columns.of(base.geometry(settings).scenario)
        self._adapter = adapter = meta.build(settings, self.model)
        self.shapes = meta.shapes(self.model, adapter)
        self.dense = pages.zeros(base.size(self.shapes))
        flat = torch.from_numpy(self.dense).copy_(meta.initial(self.model, adapter, settings.learner.seed))
        self.gradient = base.Gradient(self.shapes)
        self.adam = self._optimizer()
        self.adam.average[:] = self.dense
        self.starts = starts.Starts(settings, self.plan, *self._biases())
        self._held = descent.Held(self.dense, self.gradient.numbers, self.adam, self.table, self.gains, self.slots)
        self.engine, self.choice = engines.choose(settings, self.model, adapter, flat, self.gradient, native, compiled)

    @property
    def serving_names(self) -> tuple[str, ...]:
        """Names of the arrays that serving needs."""
        generated = (cold.WEIGHT,) if self.cold else ()
        found = items.SERVING if self.catalogue else ()
        always = ("dense", *embedding.SERVING, *scenario_slots.SERVING, *own_gains.SERVING)
        return (*always, *generated, *self.modes.arrays(), *found)

    def set_meta(self, scenario: str | int | None, mode: modes.Mode) -> None:
        """Switch meta-learning for one scenario (name or hash) or, with None, for those without a mode of their own."""
        self.modes.set(scenario, mode)

    def step(self, batch: base.Batch, now_ms: int) -> Scores:
        """Score whole lists and train on them; `now_ms` is their event time.

        A loss or gradient that is not finite skips the step: parameters, optimiser and moments keep their bytes (new ids
        have their rows, which is all that was done) and `skipped` says why.
        """
        if not len(batch.ids):
            return self.score(batch)
        shown, rivals, own = batch, None, len(batch.ids)
        if self.catalogue:
            self.catalogue.see(shown, now_ms)
        if self._searched:
            batch, rivals = self._searched.rivalled(shown)
        ids, x = plain(batch.ids), plain(batch.x)
        rows, slot = self.table.admit(self.own_rows.apply(ids), now_ms), self._slots(ids, admit=True)
        if self.cold:
            self.cold.start(self.table, rows, x, slot)
        work = self._work(batch, rows, x, slot, learn=True)
        work = work if rivals is None else work._replace(rivals=rivals)
        done, diverged, skipped = self._learn(work, batch, rows, x[:own])
        if self.cold and not skipped:
            self.cold.learn(self._network, cold_items.Rows(ids, x, work.label, work.weight, slot))
        if self.catalogue:
            self.catalogue.put(shown)
        return Scores(done.unadapted[:own], done.adapted[:own], done.loss, skipped, diverged)

    def _run(self, work: passes.Work) -> tuple[base.Pass, int]:
        """Train on a minibatch; if an adaptation diverged (`models.limits`), once more with its lists under the shared tower.

        And how many did.
        """
        done, taken = self.engine.run(work, train=True), work.found.taken
        if not len(work.found.rows):
            return done, 0
        broken = done.broken
        if broken is None:
            broken = limits.lists(self.plan, done.unadapted, done.adapted, work.n_items, taken)
        if not np.count_nonzero(broken):
            if math.isfinite(done.loss):
                return done, 0
            broken = taken > 0
        shared = work._replace(found=work.found._replace(taken=np.where(broken, 0, taken)))
        return self.engine.run(shared, train=True), int(broken.sum())

    def _learn(self, work: passes.Work, batch: base.Batch, rows: I32, x: F32) -> tuple[base.Pass, int, str]:
        """Train on a minibatch: what was said of it before, how many adaptations diverged, and why nothing was changed, or "".

        The first labels of an objective are counted before they are learned from, all later ones after it: the gradients of one
        minibatch at a bias of 0 would be in the table's accumulators for long.
        """
        drops, begins = self.settings.model.dropout > 0, self.starts.begins(batch.label)
        said = self._said(work) if drops or begins else None
        before = self.starts.copies() if begins else None
        seen = _loss_weight(batch, None)
        if begins:
            self.starts.count(batch.label, seen)
        done, diverged = self._run(work._replace(drop=int(self.adam.step[0])) if drops else work)
        skipped = self._descend(done, rows, x, work, batch)
        if skipped and before is not None:
            self.starts.restore(before)
        elif not (skipped or begins):
            self.starts.count(batch.label, seen)
        return (done if said is None else done._replace(unadapted=said[0], adapted=said[1])), diverged, skipped

    def _said(self, work: passes.Work) -> tuple[F32, F32]:
        """Predictions without training: unadapted, and adapted where the adaptation did not diverge."""
        said = self.engine.run(work, train=False)
        broken = limits.lists(self.plan, said.unadapted, said.adapted, work.n_items, work.found.taken)
        return said.unadapted, np.where(np.repeat(broken, work.n_items)[:, None], said.unadapted, said.adapted)

    def score(self, batch: base.Batch) -> Scores:
        """Score as published, with averaged dense parameters, without any change of state.

        Ids without a row of their own read their field's shared row. An adaptation that diverged is held or taken back as in
        serving.
        """
        if not len(batch.ids):
            nothing = np.zeros((0, self.model.objectives), np.float32)
            return Scores(nothing, nothing, 0.0, "no rows")
        ids = plain(batch.ids)
        work = self._work(batch, self.find(ids), plain(batch.x), self._slots(ids))
        trained = self.dense.copy()
        self.dense[:] = self.adam.average
        try:
            done = self.engine.run(work, train=False)
        finally:
            self.dense[:] = trained
        adapted, diverged = limits.served(self.plan, done.unadapted, done.adapted, work.n_items, work.found.taken)
        return Scores(done.unadapted, adapted, done.loss, "", diverged)

    def trunk(self, ids: base.U64, x: F32) -> base.MetaInput:
        """What the published trunk makes of rows of ids (n, F) and raw numbers (n, D), without any change of state."""
        slot = self._slots(ids)
        inputs = np.empty((len(ids), self.table.row), np.float32)
        rows = self.find(plain(ids))
        self.table.gather(rows, plain(x), slot, inputs)
        if self.cold:
            self.cold.fill(rows, inputs)
        known = base.Inputs(*(torch.from_numpy(p) for p in (self.gains.apply(inputs, slot), slot, self.slots.earned(slot))))
        with torch.no_grad():
            return self.model.trunk(base.views(torch.from_numpy(self.adam.average), self.shapes), known)

    def find(self, ids: base.U64) -> I32:
        """Rows of the table (n, F) for ids (n, F), without any change of state."""
        return self.table.map.find(self.own_rows.apply(ids))

    def _network(self) -> cold_items.Network:
        parameters = base.views(torch.from_numpy(self.dense), self.shapes)
        return cold_items.Network(self.model, parameters, self.table, self.gains, self.slots)

    def _slots(self, ids: base.U64, admit: bool = False) -> I64:
        if self._scenario < 0:
            return np.zeros(len(ids), np.int64)
        scenarios = ids[:, self._scenario]
        return self.slots.admit(scenarios) if admit else self.slots.find(scenarios)

    def _work(self, batch: base.Batch, rows: I32, x: F32, slot: I64, learn: bool = False) -> passes.Work:
        if self._searched:
            batch = self._searched.supported(batch)
        codes, ids = self.modes.codes(batch.scenario), batch.ids
        if self.own_rows.any:
            batch = batch._replace(ids=self.own_rows.apply(plain(batch.ids)), s_ids=self.own_rows.apply(plain(batch.s_ids)))
        query = intake.Query(plain(batch.ids), x, rows, slot)
        entered = intake.enter(batch, query, codes, self.settings.meta, self.table, self.slots, self._scenario, learn, self.gains)
        inputs, slot, wanted, read = entered.inputs, entered.slot, self.settings.meta, entered.read
        if learn and (wanted.unadapted == "original" or wanted.task_share < 1 or self.modes.some_automatic):
            first = np.cumsum(batch.n_items) - batch.n_items
            codes = modes.learning(wanted, codes, entered.found.taken, ids[first], self.modes.on_trial(batch.scenario))
        if self.cold:
            self.cold.fill(rows, inputs[: len(rows)])
            self.cold.fill(entered.extra_rows, inputs[len(rows) :])
            read = self.gains.apply(inputs, slot)
        return passes.Work(
            read, inputs, slot, entered.earned, plain(batch.label), _loss_weight(batch, self._counts_as),
            plain(np.asarray(batch.n_items, np.int64)), codes, entered.found, entered.s_label,
        )  # fmt: skip

    def _descend(self, done: base.Pass, rows: I32, x: F32, work: passes.Work, batch: base.Batch) -> str:
        """Apply the gradients, and count the rows that were shown, x; returns why not, if the gradients are not finite."""
        if not math.isfinite(done.loss) or done.inputs is None:
            return "loss is not finite"
        if self.settings.optimizer.l2:
            self.gradient.numbers += np.float32(self.settings.optimizer.l2) * self.dense
        n, sampling, weight = len(rows), self.settings.scenarios.negative_sampling, _AS_LABELLED
        label, label_weight = plain(batch.label), plain(batch.weight)
        if sampling:
            scenario = np.repeat(batch.scenario, batch.n_items)
            weight = moments.row_weights(label, label_weight, scenario, sampling)
        slope = plain(done.inputs)
        trained = descent.Rows(rows, x, work.slot[:n], work.shared[:n], slope, weight, label, label_weight)
        return "" if self._held.descend(trained) else "gradient is not finite"

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The complete training state by name: views, to be copied before the next step. `dense` is what serving reads."""
        return {
            "dense": self.adam.average, "dense.trained": self.dense, **self.adam.arrays(), **self.table.arrays(),
            **self.slots.arrays(), **self.gains.arrays(), **self.modes.arrays(), **(self.cold.arrays() if self.cold else {}),
            **(self.catalogue.arrays() if self.catalogue else {}), **self.starts.arrays(),
        }  # fmt: skip

    def load(self, arrays: Arrays) -> None:
        """Take over a state that `arrays` returned (copied); continuing is then bit-identical.

        A state with fewer scenario slots is taken over as well; the other slots are as at the start.

        Raises:
            ValueError: an array is missing or has another shape than this configuration needs, or it has more slots.
        """
        arrays = starts.complete(self.adam.complete(arrays), self.plan.outputs)
        arrays = widening.widened(arrays, self._fresh(), self.shapes, self.settings.scenarios.slots)
        optimisers = (*self.adam.arrays(), *self.gains.arrays(), *(self.cold.arrays() if self.cold else ()))
        for name, own in self.arrays().items():
            fits = name in arrays and arrays[name].shape[1:] == own.shape[1:]
            fixed = name in {"dense", "dense.trained", "moments", *optimisers, *scenario_slots.SERVING}
            if not fits or (fixed and arrays[name].shape != own.shape) or len(arrays["table"]) > len(self.table.table):
                found = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(
                    f'snapshot array "{name}": found {found}, this configuration has {own.shape}; load its own snapshots'
                )
        self.dense[:], self.adam.average[:] = arrays["dense.trained"], arrays["dense"]
        for name, own in self.adam.arrays().items():
            own[:] = arrays[name]
        self.table.load(arrays)
        self.slots.load(arrays)
        self.gains.load(arrays)
        if self.cold:
            self.cold.load(arrays)
        if self.catalogue:
            self.catalogue.load(arrays)
        self.modes.load(arrays)
        self.starts.load(arrays)

    def _biases(self) -> list[F32]:
        """Views (outputs,) of the outputs' biases, trained and published; none where a model has none, or learns by softmax."""
        if self.shapes.get("output.bias") != (self.plan.outputs,) or self._searched:
            return []
        flats = (torch.from_numpy(flat) for flat in (self.dense, self.adam.average))
        return [base.views(flat, self.shapes)["output.bias"].numpy() for flat in flats]

    def _optimizer(self) -> optimizers.Dense:
        slots = self.settings.scenarios.slots
        owned = optimizers.Owned(scenario_slots.owned(self.shapes, slots), slots + 1)
        several = len(self.settings.objectives) > 1 and self.settings.optimizer.scale_rate > 0
        scales = optimizers.spans(self.shapes, optimizers.SCALES) if several else []
        wide = optimizers.spans(self.shapes)
        return optimizers.Dense(base.size(self.shapes), self.settings.optimizer, wide, owned, scales)

    def _fresh(self) -> Arrays:
        """What is kept by scenario slot, and the flat vectors, as a learner starts with them."""
        s = self.settings
        flat = meta.initial(self.model, self._adapter, s.learner.seed).numpy()
        return {
            "dense": flat, "dense.trained": flat, "moments.observed": np.zeros_like(self.table.observed),
            **self._optimizer().arrays(), **scenario_slots.Slots(s.scenarios).arrays(), **own_gains.Gains(s).arrays(),
        }  # fmt: skip

    @property
    def room(self) -> scenario_slots.Room:
        """Slots of scenarios, and how they are used; none are where rows do not say their scenario."""
        return self.slots.room if self._scenario >= 0 else self.slots.room._replace(rows_without=0)

    def without_slot(self, scenarios: base.U64) -> base.U64:
        """Those of these scenarios (hashes) that found all slots taken."""
        full = self._scenario >= 0 and self.slots.room.used == self.slots.room.slots
        return scenarios[~np.isin(scenarios, self.slots.keys)] if full else scenarios[:0]


def _loss_weight(batch: base.Batch, objectives: F32 | None) -> F32:
    """(R, O) weights of the rows' losses, by objective (O,), None if all are 1; rows beyond `importance`, which retrieval adds,
    have their own.
    """
    if not len(batch.importance) and objectives is None:
        return plain(batch.weight)
    out = np.array(batch.weight, np.float32) * (1 if objectives is None else objectives)
    out[: len(batch.importance)] *= batch.importance[:, None]
    return out

"""Inference from a snapshot's arrays: immutable, free of side effects, safe to share between threads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import (
    adaptation,
    base,
    cold,
    embedding,
    engines,
    kernels,
    limits,
    losses,
    modes,
    moments,
    native_tower,
    own_gains,
    own_rows,
    registry,
    scenario_slots,
    supports,
    towers,
)
from models.meta import adapters
from models.meta import registry as meta
from state import config, meta_supports

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


MERGED_SUPPORT = 1024
"""Support rows of one pass; the products of their hidden inputs take the square of it in memory."""


class Scored(NamedTuple):
    """Predictions (n, outputs) of the plain and of the adapted tower, and how many support rows were adapted on.

    `diverged`: the adaptation gave what is no number, and the plain tower answers, or moved a prediction further than it may
    (`models.limits`), and was held there.
    """

    plain: F32
    adapted: F32
    adapted_on: int
    diverged: bool = False


class Task(NamedTuple):
    """One task's part of a merged call: candidates ids (n, F) and raw numbers (n, D) in one scenario, and the task's support."""

    ids: U64
    x: F32
    scenario: int
    support: base.Support | base.Known | None


class Scorer:
    """A published model. A row's score does not depend on the rows beside it."""

    def __init__(self, settings: config.Config, arrays: Arrays, native: bool = True) -> None:
        """Copy the arrays that `Trainer.serving_names` names. They say how many scenario slots there are.

        `native` takes the native network that `model.native` asks for (`models.meta.registry.network`), or else compiled towers;
        False leaves both out whatever the configuration says, and torch does the same work, slower.

        Raises:
            ValueError: an array is missing or does not fit the configuration.
            config.ConfigError: the configuration names an unknown model, or asks for a native network where there is none.
        """
        self._cold = cold.layout(settings)
        generated = (cold.WEIGHT,) if self._cold else ()
        needed = ("dense", *embedding.SERVING, *scenario_slots.SERVING, *own_gains.SERVING, *generated)
        missing = [n for n in needed if n not in arrays]
        if missing:
            raise ValueError(f"snapshot lacks {', '.join(missing)}; it was written by another version or is not whole")
        settings = scenario_slots.as_trained(settings, arrays)
        self.settings, self.model, self._geometry = settings, registry.build(settings), base.geometry(settings)
        self._adapter = meta.build(settings, self.model)
        shapes = meta.shapes(self.model, self._adapter)
        numbers, width = len(self._geometry.numbers), self._geometry.width
        slots = settings.scenarios.slots
        wanted = {
            "dense": (base.size(shapes),), "moments": (3, numbers), "table": (len(arrays["table"]), width + 1),
            "slots.keys": (slots,), "slots.rows": (slots + 1,), "moments.observed": (slots + 1, moments.KEPT, numbers),
            "gains.value": (slots + 1, self._geometry.embedded + len(self._geometry.categories)),
        }  # fmt: skip
        if self._cold:
            wanted[cold.WEIGHT] = self._cold.shape
        for name, shape in wanted.items():
            if arrays[name].shape != shape:
                raise ValueError(
                    f'snapshot array "{name}" is {arrays[name].shape}, the configuration needs {shape}; '
                    "use the configuration that the snapshot was trained with"
                )
        self._columns, self._own_rows = embedding.columns(settings), own_rows.plan(settings)
        self._salts = kernels.salts(len(self._columns.starts))[self._columns.field_of]
        self._table, self._keys, self._values = (np.array(arrays[n]) for n in ("table", "map.keys", "map.values"))
        self._observed = np.array(arrays["moments.observed"], np.float64)
        self._mean, self._scale, self._own = embedding.standard(settings, np.array(arrays["moments"]), self._observed)
        flat = torch.from_numpy(np.array(arrays["dense"], np.float32))
        self._parameters, self._plan = base.views(flat, shapes), losses.plan(settings.objectives)
        self._fast = meta.fast(self._parameters, self.model, self._adapter)
        self._native = meta.network(settings, self.model, flat) if native else None
        compiled = native and "tower.weight" in self._fast and not engines.obstacle(settings)
        self._tower = native_tower.NativeTower(settings.meta, self._fast) if compiled else None
        self.choice = self._choice(native)
        self._slots, self._scenario = scenario_slots.Slots(settings.scenarios), self._columns.of(self._geometry.scenario)
        self._slots.load(arrays)
        self._gains = np.array(arrays["gains.value"], np.float32)
        self.trunk, self.shape = trunk_of(arrays), self._shape()
        self._generator = np.array(arrays[cold.WEIGHT], np.float32) if self._cold else np.zeros((0, 0), np.float32)
        self.modes = modes.Modes(settings.meta)
        if "meta.configured" in arrays:
            self.modes.load(arrays)

    def _choice(self, native: bool) -> engines.Choice:
        if self._native is not None:
            return engines.Choice("native", "")
        if not native:
            return engines.Choice("torch", "a scorer without native code")
        if self._tower is not None:
            return engines.Choice("compiled", engines.unnative(self.settings))
        return engines.Choice("torch", engines.obstacle(self.settings) or engines.towerless(self.settings))

    def score(self, ids: U64, x: F32, scenario: int, support: base.Support | base.Known | None) -> Scored:
        """Score candidates: ids (n, F), raw numbers (n, D) of one user in one scenario, adapted to `support` if given.

        Adaptation is left out where the scenario's mode is off or the support has fewer than `meta.min_support` rows.
        """
        [scored] = self.merged([Task(ids, x, scenario, support)])
        return scored

    def merged(self, tasks: Sequence[Task]) -> list[Scored]:
        """Score several tasks, of one request or of several, in one pass; each gets what `score` gives it alone.

        The inner gradient of a task is divided by the number of its own support rows, never by that of all (T8, `num`). The trunk
        and the plain tower run once over the rows of all tasks, so their products are cut into other blocks than alone: a
        prediction may differ by rounding, at most 1e-6 (`tests/models/test_merged.py`). Supports are all of one kind.
        """
        used = [self._used(task) for task in tasks]
        if len(tasks) > 1 and sum(used) > MERGED_SUPPORT:
            half = len(tasks) // 2
            return self.merged(tasks[:half]) + self.merged(tasks[half:])
        own = [task.support for task, n in zip(tasks, used, strict=True) if n and task.support is not None]
        kept = [n for n in used if n]
        n_items = np.array([len(task.ids) for task in tasks], np.int64)
        rows = int(n_items.sum())
        if not rows:
            nothing = np.zeros((0, self._geometry.objectives), np.float32)
            return [Scored(nothing, nothing, 0)] * len(tasks)
        raw = [(s.ids[-n:], s.x[-n:]) for s, n in zip(own, kept, strict=True) if isinstance(s, base.Support)]
        stored = [(s, n) for s, n in zip(own, kept, strict=True) if isinstance(s, base.Known)]
        ids = _joined([*(task.ids for task in tasks), *(found for found, _ in raw)])
        x = _joined([*(task.x for task in tasks), *(found for _, found in raw)])
        inputs = np.empty((len(ids), self._geometry.row), np.float32)
        self._gather(ids, x, inputs)
        known, objectives = self._inputs(inputs, ids), len(self.settings.objectives)
        label = np.zeros((0, objectives), np.float32)
        if own:
            label = np.array(_joined([s.label[-n:] for s, n in zip(own, kept, strict=True)]), np.float32)
        taken = np.array(used, np.int64)
        if self._native is not None and not stored:
            plain, adapted = self._natively(self._native, known.x.numpy(), label, n_items, taken)
        elif self._tower is not None:
            plain, adapted = self._compiled(self._tower, known, _meta_inputs(stored), label, n_items, taken)
        else:
            weights = [supports.row_weights(self.settings.meta, n, s.ts[-n:]) for s, n in zip(own, kept, strict=True)]
            plain, adapted = self._by_torch(known, _meta_inputs(stored), label, weights, n_items, taken)
        if len(tasks) > 1 and not np.isfinite(adapted).all():
            # Compiled towers adapt neighbours in the same products, where what is no number in one task reaches the others.
            return [self.score(*task) for task in tasks]
        ends = np.cumsum(n_items).tolist()
        cut = zip(n_items.tolist(), ends, used, strict=True)
        return [self._scored(plain[end - n : end], adapted[end - n : end], k) for n, end, k in cut]

    def _scored(self, plain: F32, adapted: F32, used: int) -> Scored:
        """One task's predictions, with an adaptation that diverged taken back."""
        if not used or not limits.far(self._plan, plain, adapted).any():
            return Scored(plain, adapted, used)
        if not np.isfinite(adapted).all():
            return Scored(plain, plain, 0, diverged=True)
        return Scored(plain, limits.hold(self._plan, plain, adapted), used, diverged=True)

    def _used(self, task: Task) -> int:
        """How many support rows a task is adapted on."""
        limits, support = self.settings.meta, task.support
        if support is None or not len(task.ids) or self.modes.code(task.scenario) == modes.OFF:
            return 0
        return min(len(support.label), limits.support_rows) if len(support.label) >= limits.min_support else 0

    def _shape(self) -> meta_supports.Shape:
        """Sizes of a row's meta inputs."""
        row = base.Inputs(torch.zeros(1, self._geometry.row), torch.zeros(1, dtype=torch.int64), torch.zeros(1))
        with torch.inference_mode():
            found = self.model.trunk(self._parameters, row)
        return meta_supports.Shape(found.hidden.shape[1], found.hidden.shape[2], found.gate.shape[2], found.shift.shape[2])

    def observed(self, scenario: int) -> tuple[int, F64]:
        """A scenario's slot, 0 for none, and the moments (KEPT, D) of its numbers as trained (`models.moments.observe`)."""
        slot = int(self._slots.find(np.array([scenario], np.uint64))[0])
        return slot, self._observed[slot]

    def inspect(self, ids: U64, x: F32) -> dict[str, F32]:
        """What the model says of its gates for rows of ids (n, F) and raw numbers (n, D), see `base.Model.inspect`."""
        inputs = np.empty((len(ids), self._geometry.row), np.float32)
        self._gather(ids, x, inputs)
        with torch.inference_mode():
            said = self.model.inspect(self._parameters, self._inputs(inputs, ids))
        return {name: part.numpy() for name, part in said.items()}

    def _gather(self, ids: U64, x: F32, out: F32) -> None:
        rows, columns = np.empty(ids.shape, np.int32), self._columns
        kernels.find(
            self._own_rows.apply(np.array(ids, np.uint64)), columns.field_of, self._salts, self._keys, self._values, rows
        )
        numbers = np.array(x, np.float32)
        if self._own is not None:
            numbers = self._own.apply(numbers, self._slots_of(ids))
        embedding.gather(self._table, rows, columns, numbers, self._mean, self._scale, out)
        if self._cold:
            cold.fill(self._cold, self._generator, rows, out)

    def _natively(self, network: base.NativeTrunk, inputs: F32, label: F32, n_items: I64, taken: I64) -> tuple[F32, F32]:
        """Probabilities of the rows before the last `len(label)`, which are the support rows of one task after the other."""
        unknown = np.zeros((len(inputs) - len(label), self._geometry.objectives), np.float32)
        codes = np.full(len(n_items), modes.FINE_TUNE_ONLY)
        at = np.arange(len(unknown), len(inputs))
        lists = towers.Lists(unknown, unknown, n_items, codes, taken, _places(taken), label, at)
        done = network.run(inputs, lists, None)
        return done.unadapted, done.adapted

    def _compiled(
        self, tower: native_tower.NativeTower, inputs: base.Inputs, stored: meta_supports.Parts | None, label: F32,
        n_items: I64, taken: I64,
    ) -> tuple[F32, F32]:  # fmt: skip
        """The same by the compiled tower, under the native trunk or that of torch; see `_by_torch` for `stored`."""
        rows = int(n_items.sum())
        held = tower.hold(rows + len(label))
        if self._native is not None:
            virtual = rows * self._geometry.objectives
            self._native.meta(inputs.x.numpy(), towers.Meta(*(part[:virtual] for part in held)))
        else:
            with torch.inference_mode():
                known = self.model.trunk(self._parameters, inputs)
            tower.enter(meta_supports.Parts(*(part.numpy() for part in known)), held, 0)
        if stored is not None:
            tower.enter(stored, held, rows)
        return tower.run(held, label, n_items, _places(taken), taken)

    def _slots_of(self, ids: U64) -> I64:
        return np.zeros(len(ids), np.int64) if self._scenario < 0 else self._slots.find(ids[:, self._scenario])

    def _inputs(self, gathered: F32, ids: U64) -> base.Inputs:
        slot = self._slots_of(ids)
        own = own_gains.apply(gathered, slot, self._gains, self._geometry.width)
        return base.Inputs(*(torch.from_numpy(part) for part in (own, slot, self._slots.earned(slot))))

    def _by_torch(
        self,
        inputs: base.Inputs,
        stored: meta_supports.Parts | None,
        label: F32,
        weights: Sequence[F32],
        n_items: I64,
        taken: I64,
    ) -> tuple[F32, F32]:
        """The same through the model's own trunk and tower, the support rows of every adapted task weighted.

        `stored` are the support rows' meta inputs where they are known; `inputs` then are the candidates alone.
        """
        rows = int(n_items.sum())
        with torch.inference_mode():
            known = self.model.trunk(self._parameters, inputs)
            query = base.MetaInput(*(part[:rows] for part in known))
            plain = losses.predictions(self._plan, self.model.tower(self._fast, query)).numpy()
            if not len(label):
                return plain, plain
            place = _places(taken)
            share = np.zeros(place.shape, np.float32)
            for task, weight in zip(np.flatnonzero(taken).tolist(), weights, strict=True):
                share[task, : len(weight)] = weight
            every = np.arange(len(label))
            found = supports.Distinct(every, place, taken, every, every + rows, share)
            padded = supports.pad(found, n_items)
            own = base.MetaInput(*(part[rows:] for part in known))
            if stored is not None:
                own = base.MetaInput(*(torch.from_numpy(np.array(part)) for part in stored))
            tasks = adapters.Tasks(
                adaptation.pick(own, padded.support), torch.from_numpy(label)[padded.support], padded.weight
            )  # fmt: skip
            change = self._adapter.adapt(self._fast, tasks)
            logit = self._adapter.logits(self._fast, change, adaptation.pick(query, padded.query))
            adapted = plain.copy()
            adapted[padded.rows] = losses.predictions(self._plan, logit.flatten(0, 1)[padded.back]).numpy()
            return plain, adapted


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Rows one after the other, without a copy where there is but one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def trunk_of(arrays: Arrays) -> meta_supports.Trunk | None:
    """Which trunk a snapshot has, None where its learner writes no meta inputs."""
    if "trunk.lineage" not in arrays:
        return None
    return meta_supports.Trunk(int(arrays["trunk.lineage"][0]), float(arrays["trunk.moved"][0]), int(arrays["trunk.step"][0]))


def _meta_inputs(stored: Sequence[tuple[base.Known, int]]) -> meta_supports.Parts | None:
    """The newest n rows of every task, one task after the other."""
    if not stored:
        return None
    parts = zip(*((s.hidden[-n:], s.gate[-n:], s.offset[-n:], s.shift[-n:]) for s, n in stored), strict=True)
    return meta_supports.Parts(*map(_joined, parts))


def _places(taken: I64) -> npt.NDArray[np.int32]:
    """(T, most) where the support rows of each task stand, if those of all tasks stand one after the other; 0 past its own."""
    first, k = np.cumsum(taken) - taken, np.arange(taken.max(initial=0))
    return np.where(k < taken[:, None], first[:, None] + k, 0).astype(np.int32)

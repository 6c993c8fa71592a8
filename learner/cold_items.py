"""What the generator of first values learns from, inside the stream (Meta-Embedding, Pan et al. 2019, section 3).

Now and then, rows of the minibatch are paired with the newest earlier rows of the same items. As if an item had never been seen,
its row is generated: l_a is the loss of the earlier row, l_b that of the later one after one step of the table's own rule on the
gradient of l_a. The generator descends `SHARE` l_a + (1 - `SHARE`) l_b, through the step; everything else is constant. A ranking
objective compares rows of a list and teaches it nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, cold, embedding, losses, own_gains, scenario_slots
from state import config, spec

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
KEPT = 2048
"""Newest rows that later ones are paired with."""
EVERY = 8
"""Minibatches from one step of the generator to the next: its graph costs more than a minibatch by hand."""
SHARE = 0.1
START = 1e-6
SMALL = 1e-12


class Rows(NamedTuple):
    """Rows of minibatches: ids (n, F), raw numbers (n, D), labels and weights (n, O), slots (n,)."""

    ids: U64
    x: F32
    label: F32
    weight: F32
    slot: I64

    def take(self, which: I64) -> "Rows":
        """The rows `which`."""
        return Rows(self.ids[which], self.x[which], self.label[which], self.weight[which], self.slot[which])

    def with_names(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by name."""
        return dict(zip(self._fields, (self.ids, self.x, self.label, self.weight, self.slot), strict=True))


class Network(NamedTuple):
    """The model as it stands, all of it constant: pure functions, their parameters, table, gains and what slots have earned."""

    model: base.Model
    parameters: base.Parameters
    table: embedding.Table
    gains: own_gains.Gains
    slots: scenario_slots.Slots


class Seen:
    """The newest `KEPT` rows of the stream, the oldest overwritten first."""

    def __init__(self, settings: config.Config) -> None:
        features, objectives = settings.features, len(settings.objectives)
        width, numbers = spec.id_width(features), len(spec.number_names(features))
        self.rows = Rows(
            np.zeros((KEPT, width), np.uint64), np.zeros((KEPT, numbers), np.float32), np.zeros((KEPT, objectives), np.float32),
            np.zeros((KEPT, objectives), np.float32), np.zeros(KEPT, np.int64),
        )  # fmt: skip
        self.count = np.zeros(1, np.int64)

    def add(self, new: Rows) -> None:
        """Keep these rows."""
        last = np.arange(max(0, len(new.ids) - KEPT), len(new.ids))
        parts = new.with_names()
        for name, own in self.rows.with_names().items():
            own[(int(self.count[0]) + last) % KEPT] = parts[name][last]
        self.count += len(new.ids)

    def newest(self, column: int, wanted: U64) -> I64:
        """(n,) where the newest kept row with each of these ids in the column is, -1 for none."""
        count = int(self.count[0])
        place = np.arange(max(0, count - KEPT), count) % KEPT
        held = self.rows.ids[place, column]
        order = np.argsort(held, kind="stable")
        at = np.searchsorted(held[order], wanted, side="right") - 1
        found = order[at] if len(order) else at
        return np.where((at >= 0) & (held[found] == wanted), place[found], -1) if len(order) else at


class Generator:
    """The generator's weight (A + 1, E + 1), its AdaGrad, and the rows that it learns from."""

    def __init__(self, settings: config.Config, layout: cold.Layout) -> None:
        self.layout, self._optimizer, self._rate = layout, settings.optimizer, settings.embedding.cold_rate
        self._plan = losses.plan(settings.objectives)
        self.weight, self.square = np.zeros(layout.shape, np.float32), np.full(layout.shape, START, np.float32)
        self.seen, self.steps = Seen(settings), np.zeros(1, np.int64)

    def start(self, table: embedding.Table, rows: I32, x: F32, slot: I64) -> None:
        """Give the items among rows (n, F) that `table` has just admitted their generated first values."""
        items, first = np.unique(rows[:, self.layout.column], return_index=True)
        first = first[np.isin(items, table.fresh)]
        if len(first):
            inputs = np.empty((len(first), table.row), np.float32)
            table.gather(rows[first], x[first], slot[first], inputs)
            table.place(rows[first, self.layout.column], cold.read(self.layout, inputs) @ self.weight)

    def fill(self, rows: I32, inputs: F32) -> None:
        """See `cold.fill`."""
        cold.fill(self.layout, self.weight, rows, inputs)

    def learn(self, network: Callable[[], Network], now: Rows) -> None:
        """Take a step where it is time for one, on the network as it then stands, and keep the minibatch's rows."""
        if int(self.steps[0]) % EVERY == 0:
            place = self.seen.newest(self.layout.column, now.ids[:, self.layout.column])
            later = np.flatnonzero(place >= 0)
            if len(later):
                self._descend(self._gradient(network(), self.seen.rows.take(place[later]), now.take(later)))
        self.steps += 1
        self.seen.add(now)

    def _gradient(self, network: Network, before: Rows, later: Rows) -> F32:
        """Of the two losses, with respect to the weight."""
        total, weight = self.loss(network, before, later)
        return torch.autograd.grad(total, weight)[0].numpy()

    def loss(self, network: Network, before: Rows, later: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Both losses of pairs of rows of the same items, and the weight as a leaf that they depend on."""
        n, table = len(later.ids), network.table
        parts = later.with_names()
        both = Rows(**{name: np.concatenate([part, parts[name]]) for name, part in before.with_names().items()})
        inputs = np.empty((2 * n, table.row), np.float32)
        table.gather(table.map.find(both.ids), both.x, both.slot, inputs)
        writes = torch.from_numpy(self.layout.writes)
        factor = torch.from_numpy(network.gains.apply(np.ones_like(inputs), both.slot))[:, writes]
        x, earned = torch.from_numpy(network.gains.apply(inputs, both.slot)), network.slots.earned(both.slot)
        weight = torch.from_numpy(self.weight.copy()).requires_grad_()
        made = torch.from_numpy(cold.read(self.layout, inputs)) @ weight

        def under(part: slice, rows: torch.Tensor) -> torch.Tensor:
            slot, counts, label, weights = (torch.from_numpy(p[part]) for p in (both.slot, earned, both.label, both.weight))
            read = base.Inputs(x[part].index_copy(1, writes, rows * factor[part]), slot, counts)
            wanted = losses.targets(self._plan, label, weights, torch.ones(n, dtype=torch.int64))
            meta = network.model.trunk(network.parameters, read)
            return losses.loss(self._plan, wanted, network.model.tower(network.parameters, meta))

        cold_rows = made[:n]
        first = under(slice(n), cold_rows)
        slope = torch.autograd.grad(first, cold_rows, create_graph=True)[0]
        then = under(slice(n, None), made[n:] - self._step(slope))
        return SHARE * first + (1 - SHARE) * then, weight

    def _step(self, slope: torch.Tensor) -> torch.Tensor:
        """What row-wise AdaGrad takes off new rows (n, E + 1): embedding and first-order weight, each with its accumulator."""
        start, rate = self._optimizer.embedding_accumulator + SMALL, self._optimizer.embedding_rate
        parts = torch.split(slope, [slope.shape[1] - 1, 1], 1)
        return torch.cat([rate * g / (start + g.square().mean(1, keepdim=True)).sqrt() for g in parts], 1)

    def _descend(self, gradient: F32) -> None:
        """AdaGrad for each number; a gradient that is not finite changes nothing."""
        if np.isfinite(gradient).all():
            self.square += gradient * gradient
            self.weight -= np.float32(self._rate) * gradient / np.sqrt(self.square)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state as views, for a snapshot."""
        return {
            cold.WEIGHT: self.weight, "cold.square": self.square, "cold.steps": self.steps, "cold.count": self.seen.count,
            **{f"cold.rows.{name}": part for name, part in self.seen.rows.with_names().items()},
        }  # fmt: skip

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned (copied)."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]

"""Items of a snapshot for a user, by exact search: what two towers say of every item is one product of matrices.

Vectors of the items are computed when the snapshot is loaded, for every scenario that reads embeddings or numbers in its own way
(`models.own_gains`, `model.moments`), and never move; the user's vector is adapted to the user's support set as for scoring.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import adaptation, base, items, limits, losses, scorer, supports, two_tower
from models.meta import adapters
from state import config, ids

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
BLOCK = 8192
"""Items that are put through their tower at once."""


class Asked(NamedTuple):
    """A user in a scenario at a moment: ids (1, F) and numbers (1, D) of a row, whose item's columns are not looked at."""

    ids: U64
    x: F32
    scenario: int
    support: base.Support | base.Known | None


class Found(NamedTuple):
    """The best items, best first, by their ids as they were sent; predictions (k,) of the first objective, as scoring gives them.

    `adapted_on` support rows were used. `diverged`: see `models.limits`.
    """

    items: list[str]
    scores: F32
    adapted_on: int
    diverged: bool


class Index(NamedTuple):
    """Items that can be found: names and hashes, and under every slot their vectors (N, H2) and biases (N,)."""

    names: list[str]
    place: dict[int, int]
    vectors: dict[int, F32]
    biases: dict[int, F32]


class Retriever(scorer.Scorer):
    """A scorer of two towers that finds items as well."""

    def __init__(self, settings: config.Config, arrays: Mapping[str, npt.NDArray[Any]], native: bool = True) -> None:
        """See `Scorer`; the arrays tell of the items too.

        Raises:
            ValueError: as `Scorer`.
        """
        super().__init__(settings, arrays, native)
        self._towers = two_tower.TwoTower(settings)
        self._side = items.side(settings)
        known = items.known(self._side, arrays) if self._side else None
        self._stock = known.stock if known and settings.retrieval.loss == "softmax" else None
        self.refusal = _refusal(self._side, self._plan)
        self._ranked = bool(self._plan.parts) and self._plan.parts[0].kind == "ranking"
        self.index = Index([], {}, {}, {})
        if self._side and known and not self.refusal:
            self.index = self._indexed(self._side, known)

    def merged(self, tasks: Sequence[scorer.Task]) -> list[scorer.Scored]:
        """As `Scorer.merged`; two towers learned by softmax are adapted to what was acted on, against the queue."""
        return super().merged([task._replace(support=self._against(task.support)) for task in tasks])

    def retrieve(self, asked: Asked, k: int, without: Collection[int] = ()) -> Found:
        """The `k` items with the greatest predictions, fewer if fewer are known, none whose hash is in `without`.

        Of equal ones the one that the catalogue holds first comes first.

        Raises:
            RuntimeError: nothing can be found at all; `refusal` says why.
        """
        if self.refusal:
            raise RuntimeError(self.refusal)
        task = scorer.Task(asked.ids, asked.x, asked.scenario, self._against(asked.support))
        used = self._used(task)
        (plain, base_level), (adapted, level) = self._users(task, used)
        slot, _ = self.observed(asked.scenario)
        at = slot if slot in self.index.vectors else 0
        vectors, biases = self.index.vectors[at], self.index.biases[at]
        start = vectors @ plain + biases + base_level
        logit = vectors @ adapted + biases + level if used else start
        diverged = not bool(np.isfinite(logit).all())
        if diverged:
            logit, used = start, 0
        elif used and not self._ranked and (np.abs(logit - start) > limits.MOST_MOVED).any():
            diverged, logit = True, start + np.clip(logit - start, -limits.MOST_MOVED, limits.MOST_MOVED)
        logit[[self.index.place[key] for key in without if key in self.index.place]] = -np.inf
        best = _best(logit, k)
        return Found([self.index.names[place] for place in best.tolist()], self._predictions(logit[best]), used, diverged)

    def _against(self, support: base.Support | base.Known | None) -> base.Support | base.Known | None:
        if self._stock is None or self._side is None or not isinstance(support, base.Support):
            return support
        return items.against_queue(self._side, self._stock, support, self.settings.retrieval.negatives)

    def _users(self, task: scorer.Task, used: int) -> tuple[tuple[F32, float], tuple[F32, float]]:
        """The user's vector (H2,) and the level of its logits, by the plain tower and by the adapted one.

        A logit is linear in the item's vector, whatever adapts: it is asked for a vector of zeros and for every unit vector.
        """
        support = task.support
        raw = support if used and isinstance(support, base.Support) else None
        ids_, x = (task.ids, task.x) if raw is None else (
            np.concatenate([task.ids, raw.ids[-used:]]), np.concatenate([task.x, raw.x[-used:]])
        )  # fmt: skip
        inputs = np.empty((len(ids_), self._geometry.row), np.float32)
        self._gather(ids_, x, inputs)
        with torch.inference_mode():
            meta = self.model.trunk(self._parameters, self._inputs(inputs, ids_))
            width = meta.gate.shape[2]
            units = torch.cat([torch.zeros(1, width), torch.eye(width)]).unsqueeze(1).expand(-1, self._geometry.objectives, -1)
            query = base.MetaInput(
                meta.hidden[:1].expand(width + 1, -1, -1), units, torch.zeros(width + 1, self._geometry.objectives),
                torch.zeros(width + 1, self._geometry.objectives, 1),
            )  # fmt: skip
            plain = _linear(self.model.tower(self._fast, query))
            if not used or support is None:
                return plain, plain
            own = base.MetaInput(*(part[1:] for part in meta))
            if isinstance(support, base.Known):
                known = (support.hidden, support.gate, support.offset, support.shift)
                own = base.MetaInput(*(torch.from_numpy(np.array(part[-used:])) for part in known))
            weight = torch.from_numpy(supports.row_weights(self.settings.meta, used, support.ts[-used:]))
            label = torch.from_numpy(np.array(support.label[-used:], np.float32))
            one = adaptation.pick(own, torch.arange(used).unsqueeze(0))
            change = self._adapter.adapt(self._fast, adapters.Tasks(one, label.unsqueeze(0), weight.unsqueeze(0)))
            asked = base.MetaInput(*(part.unsqueeze(0) for part in query))
            return plain, _linear(self._adapter.logits(self._fast, change, asked)[0])

    def _indexed(self, side: items.Side, known: items.Known) -> Index:
        """Items that have a name and were shown lately, with their vectors."""
        oldest = int(known.ts.max(initial=0)) - round(self.settings.retrieval.max_idle_s * 1000)
        kept = np.array([i for i, name in enumerate(known.text) if name and known.ts[i] >= oldest], np.int64)
        names, keys = [known.text[i] for i in kept.tolist()], known.key[kept].tolist()
        found = Index(names, {key: place for place, key in enumerate(keys)}, {}, {})
        rows = known.stock.ids[kept], known.stock.x[kept]
        for slot in range(int(self._slots.used[0]) + 1 if self._scenario >= 0 else 1):
            scenario = int(self._slots.keys[slot - 1]) if slot else ids.PAD
            if slot == 0 or self._differs(slot):
                found.vectors[slot], found.biases[slot] = self._vectors(side, rows, scenario)
        return found

    def _differs(self, slot: int) -> bool:
        """Whether a scenario reads what it shares with others in its own way."""
        return self._own is not None or not np.array_equal(self._gains[slot], self._gains[0])

    def _vectors(self, side: items.Side, rows: tuple[U64, F32], scenario: int) -> tuple[F32, F32]:
        """Vectors (N, H2) and biases (N,) of items as a scenario sees them."""
        geometry, n = self._geometry, len(rows[0])
        vectors, biases = np.empty((n, self._towers.width), np.float32), np.empty(n, np.float32)
        for at in range(0, n, BLOCK):
            block = slice(at, at + BLOCK)
            found, x = items.alone(side, (rows[0][block], rows[1][block]), (len(self._columns.field_of), len(geometry.numbers)))
            if self._scenario >= 0:
                found[:, self._scenario] = scenario
            inputs = np.empty((len(found), geometry.row), np.float32)
            self._gather(found, x, inputs)
            with torch.inference_mode():
                vector, bias = self._towers.item(self._parameters, self._inputs(inputs, found).x)
            vectors[block], biases[block] = vector.numpy(), bias[:, 0].numpy()
        return vectors, biases

    def _predictions(self, logit: F32) -> F32:
        every = torch.zeros(len(logit), self._geometry.objectives)
        every[:, 0] = torch.from_numpy(logit)
        return losses.predictions(self._plan, every)[:, 0].numpy()


def build(settings: config.Config, arrays: Mapping[str, npt.NDArray[Any]]) -> scorer.Scorer:
    """What a snapshot becomes: a `Retriever` of two towers, a `Scorer` of any other model. Raises as these do."""
    made = Retriever if settings.model.name == "two_tower" else scorer.Scorer
    return made(settings, arrays)


def _refusal(side: items.Side | None, plan: losses.Plan) -> str:
    """Why nothing can be found, or an empty string."""
    if side is None:
        return "no category of the features holds the item's id"
    if plan.parts and plan.parts[0].kind == "multiclass":
        return "the first objective is multiclass, by which items have no order"
    return ""


def _linear(logits: torch.Tensor) -> tuple[F32, float]:
    """Slopes (H2,) and level of logits (H2 + 1, O) of the first output, for zeros and for unit vectors."""
    level = logits[0, 0]
    return (logits[1:, 0] - level).numpy(), float(level)


def _best(logit: F32, k: int) -> I64:
    """Places of the `k` greatest, greatest first, of equal ones the first; those that are minus infinity are left out."""
    k = min(k, int(np.isfinite(logit).sum()))
    if k < 1:
        return np.zeros(0, np.int64)
    least = np.partition(logit, len(logit) - k)[len(logit) - k]
    near = np.flatnonzero(logit >= least)
    return near[np.argsort(-logit[near], kind="stable")][:k]

"""The continuous learner's own two towers, searched for what a user acts on next before they learn it, in order of time.

The learner's step trains on whole lists with the support that the streams would have kept. Every block of lists is searched in
what would have been published before it, by the class that answers `POST /v1/retrieve`.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import step
from models import base, items, retriever
from state import config as configuration
from state import ids
from thousandfold.bench import protocol, retrieval

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
DEEPEST = 50
"""As far down as figures look; what is below counts as not found."""
POPULAR = ("popular", "recently popular", "popular in the scenario")
MODES = ("unadapted", "adapted")
EMBEDDING_RATE, DENSE_RATE = 0.05, 0.001
INNER_RATE, PRIOR_ROWS, SUPPORT_ROWS = 2.0, 32.0, 32
"""Settings under the logistic loss; those of the ranking's are far too large for it."""


class Asked(NamedTuple):
    """A list that is searched for: its first row in the log, its number of items, and what serving is asked."""

    row: int
    items: int
    asked: retriever.Asked


class Search:
    """The ranks of what was acted on in the lists asked for so far, by method, and what is known of items and users meanwhile."""

    def __init__(self, config: configuration.Config, log: retrieval.Log, every: int) -> None:
        """Searches for the actions of one list in `every`, by the hash of its request.

        Raises:
            ConfigError: no category holds the item's id.
        """
        side = items.side(config)
        if side is None:
            raise configuration.ConfigError('features: what is searched for needs a category with source = "item_id"')
        self._log, self._known, self._list = log, retrieval.Catalogue(log), 0
        self._wanted = ids.mix(log.inputs.request, 0) % np.uint64(every) == 0
        n_items = np.diff(log.inputs.start)
        self.scenario = np.repeat(log.inputs.scenario, n_items)
        key, first = np.unique(log.inputs.ids[:, side.item], return_index=True)
        number = log.item[first]
        self.key = np.zeros(int(log.item.max(initial=0)) + 1, np.uint64)
        self.key[number] = key
        self.names = {k: str(n) for k, n in zip(key.tolist(), number.tolist(), strict=True)}
        self._acted_in: dict[int, F64] = {}
        self._counted = 0
        self.found: dict[str, list[int]] = {name: [] for name in (*POPULAR, *MODES)}
        self.rows: list[int] = []
        self.history: list[int] = []

    def block(self, batch: base.Batch, published: retriever.Retriever | None) -> None:
        """Search for the actions of the next block of lists in what was `published` before it, None before the first."""
        begin = int(self._log.inputs.start[self._list])
        self._count(begin)
        shelf, everywhere = self._known.row >= 0, (self._known.count.copy(), self._known.recent.copy())
        own = {code: count.copy() for code, count in self._acted_in.items()}
        for one in self._lists(batch, begin):
            user = int(self._log.user[one.row])
            self._known.read(one.row)
            shown = list(self._known.shown.get(user, ()))
            wanted = self._acted(one)
            earlier = len(self._known.before(one.row))
            there = own.get(one.asked.scenario, everywhere[0])
            for name, count in zip(POPULAR, (*everywhere, there), strict=True):
                score = np.tile(np.where(shelf, count, -np.inf), (len(wanted), 1))
                hidden = [[*shown, *self._before(one, row)] for row in wanted]
                self.found[name] += retrieval.rank(score, self._log.item[wanted], hidden).tolist()
            for name, support in zip(MODES, (None, one.asked.support), strict=True):
                asked = one.asked._replace(support=support)
                self.found[name] += self._searched(published, one, asked, wanted, shown)
            self.rows += wanted
            self.history += [earlier] * len(wanted)

    def _searched(
        self, published: retriever.Retriever | None, one: Asked, asked: retriever.Asked, wanted: list[int], shown: list[int]
    ) -> list[int]:
        """Ranks of the items of rows `wanted` of a list, what comes before them in the list left out, as for popularity."""
        if published is None or not published.index.names:
            return [retrieval.NEVER] * len(wanted)
        without = set(self.key[shown].tolist())
        place = {int(name): at for at, name in enumerate(published.retrieve(asked, DEEPEST + one.items, without).items)}
        found = []
        for row in wanted:
            own = place.get(int(self._log.item[row]), retrieval.NEVER)
            hidden = {place[item] for item in self._before(one, row) if item in place}
            found.append(own - sum(at < own for at in hidden) if own < retrieval.NEVER else own)
        return found

    def _lists(self, batch: base.Batch, begin: int) -> Iterator[Asked]:
        """Lists of a block that are asked for and were acted on."""
        row, support = 0, 0
        for n, k, scenario in zip(batch.n_items.tolist(), batch.n_support.tolist(), batch.scenario.tolist(), strict=True):
            if self._wanted[self._list] and (batch.label[row : row + n, 0] > 0).any():
                s = slice(support, support + k)
                known = base.Support(batch.s_ids[s], batch.s_x[s], batch.s_label[s], batch.s_ts[s]) if k else None
                asked = retriever.Asked(batch.ids[row : row + 1], batch.x[row : row + 1], scenario, known)
                yield Asked(begin + row, n, asked)
            row, support, self._list = row + n, support + k, self._list + 1

    def _acted(self, one: Asked) -> list[int]:
        every = self._log.acted
        rows: list[int] = every[np.searchsorted(every, one.row) : np.searchsorted(every, one.row + one.items)].tolist()
        return rows

    def _before(self, one: Asked, row: int) -> list[int]:
        before: list[int] = self._log.item[one.row : row].tolist()
        return before

    def _count(self, until: int) -> None:
        """Take note of the rows before `until`."""
        self._known.read(until)
        rows = self._log.acted[np.searchsorted(self._log.acted, self._counted) : np.searchsorted(self._log.acted, until)]
        for code in np.unique(self.scenario[rows]).tolist():
            count = self._acted_in.setdefault(code, np.zeros(len(self.key)))
            np.add.at(count, self._log.item[rows[self.scenario[rows] == code]], 1)
        self._counted = until


class Searched(step.Trainer):
    """A learner that is searched where others are scored: `protocol.run` asks before any list of a block is learned."""

    def __init__(self, config: configuration.Config, search: Search) -> None:
        """Raises ConfigError as `Trainer`."""
        super().__init__(config)
        self.search = search

    def score(self, batch: base.Batch) -> step.Scores:
        """Search for the actions of the next block of lists; nothing is scored."""
        self.search.block(batch, self.published())
        nothing = np.full((len(batch.ids), self.model.objectives), np.nan, np.float32)
        return step.Scores(nothing, nothing, 0.0, "")

    def published(self) -> retriever.Retriever | None:
        """What serving would make of a snapshot of now, None before anything was learned."""
        if self.catalogue is None or not self.catalogue.size:
            return None
        self.catalogue.name(self.search.names)
        arrays = self.arrays()
        return retriever.Retriever(self.settings, {name: arrays[name] for name in self.serving_names})


def measure(
    config: configuration.Config, log: retrieval.Log, every: int = 1, tell: protocol.Tell | None = None
) -> retrieval.Ranks:
    """One pass of the learner over the whole log, searched as it goes.

    Raises:
        ConfigError: the model cannot be built, or no category holds the item's id.
        FloatingPointError: as `protocol.run`.
    """
    search, began = Search(config, log, every), time.monotonic()
    protocol.run(config, log.inputs, tell, Searched(config, search))
    of = {name: np.array(ranks, np.int64) for name, ranks in search.found.items()}
    return retrieval.Ranks(of, np.array(search.history, np.int64), np.array(search.rows, np.int64), time.monotonic() - began)


def pointwise(config: configuration.Config) -> configuration.Config:
    """The same towers and features, learned by the logistic loss of every row shown, at rates that suit it."""
    objectives = tuple(msgspec.structs.replace(o, kind="binary") for o in config.objectives)
    return msgspec.structs.replace(
        config, objectives=objectives,
        retrieval=msgspec.structs.replace(config.retrieval, loss="objectives"),
        optimizer=msgspec.structs.replace(config.optimizer, embedding_rate=EMBEDDING_RATE, dense_rate=DENSE_RATE),
        meta=msgspec.structs.replace(config.meta, inner_rate=INNER_RATE, prior_rows=PRIOR_ROWS, support_rows=SUPPORT_ROWS),
    )  # fmt: skip

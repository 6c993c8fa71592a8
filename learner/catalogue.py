"""The items that the stream has shown and the queue of the newest actions: retrieval's part of the learner's state.

Of an item: its columns when it was last shown, when that was, how often it was acted on, and its id as it was sent. Beyond
`retrieval.max_items` the longest unseen are forgotten, a sixteenth at a time, and their places in the queue with them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learner import passes
from models import base, items
from state import config, ids, spec

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
FIRST = 1024
FREED = 16
GROWING = ("key", "ids", "x", "ts", "acted")


class Catalogue:
    """A function of the minibatches that it was shown."""

    def __init__(self, settings: config.Config, side: items.Side) -> None:
        self._settings, self._side = settings.retrieval, side
        self._widths = spec.id_width(settings.features), len(spec.number_names(settings.features))
        categories = spec.id_columns(settings.features)
        sources = [c.source for c in settings.features.categories]
        self._user, self._scenario = (
            categories[sources.index(source)].start if source in sources else -1 for source in ("user_id", "scenario")
        )
        self.key, self.ts, self.acted = (np.zeros(FIRST, dtype) for dtype in (np.uint64, np.int64, np.int64))
        self.ids = np.zeros((FIRST, len(side.ids)), np.uint64)
        self.x = np.zeros((FIRST, len(side.numbers)), np.float32)
        self._text: list[str] = []
        self._place: dict[int, int] = {}
        self.queue, self._users = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        self.actions = np.zeros(1, np.int64)

    @property
    def size(self) -> int:
        """Items known."""
        return len(self._place)

    @property
    def unnamed(self) -> int:
        """Items whose id as it was sent nobody told: they cannot be found."""
        return self._text.count("")

    @property
    def stock(self) -> items.Stock:
        """Views of what is known."""
        n = self.size
        return items.Stock(self.ids[:n], self.x[:n], self.queue)

    def see(self, batch: base.Batch, now_ms: int) -> None:
        """Take note of the items of a minibatch, at event time `now_ms`."""
        shown = batch.ids[:, self._side.item]
        keys, first = np.unique(shown[::-1], return_index=True)
        rows = len(shown) - 1 - first
        place = self._admitted(keys)
        self.ids[place], self.x[place] = batch.ids[rows][:, self._side.ids], batch.x[rows][:, self._side.numbers]
        self.ts[place] = now_ms

    def put(self, batch: base.Batch) -> None:
        """Add the rows of a minibatch that were acted on to the queue, after it was learned from."""
        rows = acted_on(batch)
        place = self._places(batch.ids[rows, self._side.item])
        np.add.at(self.acted, place, 1)
        self.actions += len(rows)
        user = batch.ids[rows, self._user] if self._user >= 0 else np.zeros(len(rows), np.uint64)
        self.queue = np.concatenate([self.queue, place])[-self._settings.queue :]
        self._users = np.concatenate([self._users, user])[-self._settings.queue :]

    def name(self, names: Mapping[int, str]) -> None:
        """Take note of ids as they were sent, by hash."""
        for key, text in names.items():
            place = self._place.get(key)
            if place is not None:
                self._text[place] = text

    def supported(self, batch: base.Batch) -> base.Batch:
        """See `items.supported`."""
        return items.supported(self._side, self.stock, batch, self._settings.negatives)

    def rivalled(self, batch: base.Batch) -> tuple[base.Batch, passes.Rivals]:
        """A minibatch of n rows with the items of M actions of the queue as one more list, which nobody was shown and which
        teaches nothing by itself, and how they compete with the rows that were acted on.

        They take the scenarios of these rows in turn, by which they are read (`models.own_gains`).
        """
        acted = acted_on(batch)
        drawn = self._drawn() if len(acted) else np.zeros(0, np.int64)
        place = self.queue[drawn]
        rows, x = items.alone(self._side, (self.ids[place], self.x[place]), self._widths)
        if self._scenario >= 0 and len(drawn):
            rows[:, self._scenario] = batch.ids[acted[np.arange(len(drawn)) % len(acted)], self._scenario]
        item = np.concatenate([batch.ids[acted, self._side.item], self.key[place]])
        user = np.concatenate([batch.ids[acted, self._user], self._users[drawn]])
        clash = (item[: len(acted), None] == item) | (user[: len(acted), None] == user)
        clash[np.arange(len(acted)), np.arange(len(acted))] = False
        count = np.maximum(self.acted[np.concatenate([self._places(item[: len(acted)]), place])], 1)
        share = np.log(count / max(int(self.actions[0]), 1)).astype(np.float32)
        rivals = passes.Rivals(acted, np.arange(len(batch.ids), len(batch.ids) + len(drawn)), clash, share)
        return _with_list(batch, rows, x), rivals

    def _drawn(self) -> I64:
        """Places in the queue of those that compete now, ascending; another choice after every action."""
        held = np.arange(len(self.queue), dtype=np.uint64)
        order = np.argsort(ids.mix(held, self.actions[0]), kind="stable")
        return np.sort(order[: self._settings.candidates])

    def _places(self, keys: U64) -> I64:
        return np.array([self._place[key] for key in keys.tolist()], np.int64)

    def _admitted(self, keys: U64) -> I64:
        """Places of distinct items, new ones behind the others."""
        new = [key for key in keys.tolist() if key not in self._place]
        if new and self.size + len(new) > self._settings.max_items:
            kept = max(self._settings.max_items - self._settings.max_items // FREED - len(new), 0)
            self._forget(kept, set(keys.tolist()))
        while len(self.key) < self.size + len(new):
            for name in GROWING:
                own = getattr(self, name)
                setattr(self, name, np.concatenate([own, np.zeros_like(own)]))
        for key in new:
            place = self._place[key] = len(self._place)
            self.key[place], self.acted[place] = key, 0
            self._text.append("")
        return self._places(keys)

    def _forget(self, most: int, wanted: set[int]) -> None:
        """Keep the `most` items seen last, and all of `wanted`."""
        n = self.size
        newest = np.argsort(-self.ts[:n], kind="stable")[:most]
        stays = np.zeros(n, np.bool_)
        stays[newest] = True
        stays |= np.isin(self.key[:n], np.array(list(wanted), np.uint64))
        left, moved = np.flatnonzero(stays), np.cumsum(stays) - 1
        for name in GROWING:
            getattr(self, name)[: len(left)] = getattr(self, name)[left]
        self._text = [self._text[place] for place in left.tolist()]
        self._place = {key: place for place, key in enumerate(self.key[: len(left)].tolist())}
        queued = stays[self.queue]
        self.queue, self._users = moved[self.queue[queued]], self._users[queued]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state by name, as views, for a snapshot."""
        n = self.size
        text, ends = items.packed(self._text)
        return {
            **{f"items.{name}": getattr(self, name)[:n] for name in GROWING}, "items.text": text, "items.ends": ends,
            "items.queue": self.queue, "items.users": self._users, "items.actions": self.actions,
        }  # fmt: skip

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned; with a shorter queue than it was saved with, the newest actions stay."""
        found = items.known(self._side, arrays)
        n, size = len(found.key), max(FIRST, 1 << max(len(found.key) - 1, 0).bit_length())
        for name in GROWING:
            whole = np.zeros((size, *getattr(self, name).shape[1:]), getattr(self, name).dtype)
            whole[:n] = arrays[f"items.{name}"]
            setattr(self, name, whole)
        self._text, self._place = found.text, {key: place for place, key in enumerate(found.key.tolist())}
        newest = slice(-self._settings.queue, None)
        self.queue, self._users = np.array(arrays["items.queue"][newest]), np.array(arrays["items.users"][newest])
        self.actions[:] = arrays["items.actions"]


def of(settings: config.Config) -> Catalogue | None:
    """The catalogue that a configuration needs, None where nothing is retrieved."""
    side = items.side(settings)
    return None if side is None else Catalogue(settings, side)


def acted_on(batch: base.Batch) -> I64:
    """Rows of a minibatch whose first objective is positive; of a revision only those that have become so."""
    return np.flatnonzero((batch.label[:, 0] > 0) & (batch.weight[:, 0] > 0))


def _with_list(batch: base.Batch, rows: U64, x: npt.NDArray[np.float32]) -> base.Batch:
    """A minibatch with one more list without labels, weights and support."""
    if not len(rows):
        return batch
    nothing = np.zeros((len(rows), batch.label.shape[1]), np.float32)
    more = {"ids": rows, "x": x, "label": nothing, "weight": nothing, "scenario": np.zeros(1, np.uint64)}
    more |= {"n_items": np.array([len(rows)]), "n_support": np.zeros(1, np.int64)}
    return batch._replace(**{name: np.concatenate([getattr(batch, name), part]) for name, part in more.items()})

"""Sequence retrieval: the two-tower model learned to find a user's next item, with the user's tower adapted to what came before.

A user's behaviour gives the positives: the last K items that were acted on, each with the user's columns as of then. A queue of
the stream's recent items gives the negatives. Both together are the support set, on which the user's tower takes its inner steps,
in closed form, under the pairwise loss of `models.losses`: it asks of a logit only that it is above those of the negatives, where
a softmax leaves the level of logits open and the logistic loss would adapt to the level. The outer loss is a softmax over the
batch's own items and those of the queue, each logit less the log of how often that item is met there (logQ: Bengio and Senecal
2008; Yi et al. 2019, section 3), so that frequent items are not pushed down for being frequent. Loss = plain + `meta.weight` x
adapted, first order.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learner import optimizers, passes, sampled_softmax
from models import adaptation, base, embedding, losses, two_tower
from state import config

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
PAIRS = losses.plan((config.Objective(name="acted", action="acted", kind="ranking"),))


class Rows(NamedTuple):
    """n samples: ids (n, F) and raw numbers (n, D). A row has the columns of a user at a time and of an item."""

    ids: U64
    x: F32


class Support(NamedTuple):
    """For each of B queries up to K samples: users' columns and items' are taken from rows of their own, so that a positive's
    user can be asked about another item.
    """

    user: I64
    """(B, K) rows of the log whose user's columns are meant, -1 where there are fewer."""
    item: I64
    """(B, K) rows of the log whose item's columns are meant."""
    label: F32
    """(B, K) 1: was acted on, 0: from the queue."""


class Queue:
    """The last `size` rows of the log that were acted on, and how often each item was among all of them."""

    def __init__(self, size: int) -> None:
        self._rows = np.zeros(size, np.int64)
        self.seen = 0
        self._counts: dict[int, int] = {}

    def rows(self) -> I64:
        """(n,) rows, oldest first."""
        size = len(self._rows)
        return self._rows[: self.seen] if self.seen < size else np.roll(self._rows, -(self.seen % size))

    def put(self, rows: I64, items: U64) -> None:
        """Rows that were acted on, in order, and their items."""
        at = (self.seen + np.arange(len(rows))) % len(self._rows)
        self._rows[at] = rows
        self.seen += len(rows)
        for item in items.tolist():
            self._counts[item] = self._counts.get(item, 0) + 1

    def log_share(self, items: U64) -> F32:
        """(n,) logarithm of an item's share of all that was put; an item that never was counts as once."""
        counts = np.array([self._counts.get(item, 1) for item in items.tolist()], np.float64)
        return np.log(counts / max(self.seen, 1)).astype(np.float32)


def supports(known: list[I64], most: int, negatives: int, queue: I64, random: np.random.Generator) -> Support:
    """What each of B users did before (rows, oldest first), the newest `most`, and `negatives` rows of the queue for each."""
    each = 1 + negatives if len(queue) else 1
    shape = (len(known), most * each)
    user, item, label = np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for i, rows in enumerate(known):
        newest = rows[-most:]
        n = len(newest) * each
        user[i, :n] = np.repeat(newest, each)
        item[i, :n] = user[i, :n]
        label[i, :n:each] = 1
        if each > 1 and n:
            drawn = item[i, :n].reshape(-1, each)
            drawn[:, 1:] = queue[random.integers(0, len(queue), (len(newest), negatives))]
    return Support(user, item, label)


class Retriever:
    """The training state of a two-tower model for retrieval, and what it says of users and items."""

    def __init__(self, settings: config.Config, log: Rows) -> None:
        """`log` is what rows of supports and queues refer to. Everything starts from `learner.seed`.

        Raises:
            config.ConfigError: the model cannot be built.
        """
        torch.set_num_threads(settings.learner.threads)
        self.settings, self.log, self.model = settings, log, two_tower.TwoTower(settings)
        self.table = embedding.Table(settings)
        flat = self.model.initial(settings.learner.seed)
        self.dense, self.gradient = flat.numpy(), base.Gradient(self.model.shapes)
        self.adam = optimizers.Dense(len(self.dense), settings.optimizer, optimizers.spans(self.model.shapes))
        self.parameters = passes.leaves(flat, self.model.shapes, self.gradient.flat)

    def step(self, rows: I64, queue: I64, clash: Bools, log_share: F32, support: Support, now_ms: int) -> float:
        """Learn from rows (B,) that were acted on, against each other's items and those of the queue (M,); returns the loss.

        `clash` (B, B + M) marks candidates that are no negatives of a row; `log_share` (B + M,) says how often each item is met.
        """
        every = np.concatenate([rows, queue])
        admitted = self.table.admit(np.array(self.log.ids[every]), now_ms)
        x = self._gather(admitted, every).requires_grad_()
        self.gradient.flat.zero_()
        hidden = self.model.user(self.parameters, x[: len(rows)])
        vector, bias = self.model.item(self.parameters, x)
        same = torch.from_numpy(clash & (np.arange(clash.shape[1]) != np.arange(len(clash))[:, None]))
        base_logit = bias[:, 0] - torch.from_numpy(log_share)

        def loss(user: torch.Tensor) -> torch.Tensor:
            return sampled_softmax.loss(user, vector, base_logit, same).mean()

        total = loss(two_tower.vectors(self.parameters, hidden))
        if self.settings.meta.weight > 0:
            change = self._adapt(support)
            total = total + self.settings.meta.weight * loss(two_tower.adapted_vectors(self.parameters, change, hidden))
        torch.autograd.backward(total)
        if x.grad is not None:
            self.table.descend(admitted, x.grad.numpy())
        flat = self.gradient.flat.numpy()
        self.adam.descend(self.dense, flat, optimizers.norm(flat))
        self.table.observe(np.array(self.log.x[rows]), np.zeros(len(rows), np.int64), np.ones(len(rows)))
        return float(total.detach())

    def users(self, rows: I64, support: Support) -> tuple[F32, F32]:
        """Vectors (B, H2) of the users of rows of the log, plain and adapted to their supports. Nothing is changed."""
        with torch.no_grad():
            hidden = self.model.user(self.parameters, self._found(rows))
            plain = two_tower.vectors(self.parameters, hidden)
            return plain.numpy(), two_tower.adapted_vectors(self.parameters, self._adapt(support), hidden).numpy()

    def items(self, rows: I64) -> tuple[F32, F32]:
        """Vectors (n, H2) and biases (n,) of the items of rows of the log."""
        with torch.no_grad():
            vector, bias = self.model.item(self.parameters, self._found(rows))
            return vector.numpy(), bias[:, 0].numpy()

    def _adapt(self, support: Support) -> adaptation.Adapted:
        there = support.user >= 0
        count = there.sum(1, keepdims=True)
        # A user's support may repeat rows, as those of neighbouring queries do: each is computed once.
        distinct, place = np.unique(np.concatenate([support.user[there], support.item[there]]), return_inverse=True)
        half = int(there.sum())
        with torch.no_grad():
            x = self._found(distinct)
            hidden, (vector, bias) = self.model.user(self.parameters, x), self.model.item(self.parameters, x)
        at = np.zeros((2, *there.shape), np.int64)
        at[0][there], at[1][there] = place[:half], place[half:]
        if not len(distinct):
            hidden, vector, bias = (part.new_zeros(1, part.shape[1]) for part in (hidden, vector, bias))
        user, item = (torch.from_numpy(part) for part in at)
        meta = base.MetaInput(
            hidden[user].unsqueeze(2), vector[item].unsqueeze(2), bias[item][..., :1], hidden.new_zeros(*user.shape, 1, 1)
        )
        weight = torch.from_numpy((there / np.maximum(count, 1)).astype(np.float32))
        fast = {name: view.detach() for name, view in self.parameters.items() if name in base.FAST}
        meta_settings = self.settings.meta
        label = torch.from_numpy(support.label).unsqueeze(-1)
        return adaptation.adapt(fast, meta, label, weight, meta_settings.inner_rate, meta_settings.inner_steps, PAIRS)

    def _found(self, rows: I64) -> torch.Tensor:
        return self._gather(self.table.map.find(np.array(self.log.ids[rows])), rows)

    def _gather(self, found: npt.NDArray[np.int32], rows: I64) -> torch.Tensor:
        out = np.empty((len(rows), self.table.row), np.float32)
        self.table.gather(found, np.array(self.log.x[rows]), np.zeros(len(rows), np.int64), out)
        return torch.from_numpy(out)

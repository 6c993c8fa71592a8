"""DUPN (Ni et al. 2018): a network that reads the user's last actions in order, weighs them for this candidate, and feeds towers.

Section 3 of the paper. A property-gated LSTM reads the actions from the oldest to the newest: what an action was done to is its
input, of several values (tags) their mean; how it was done (kind, age, scenario) enters the forget, input and output gates only,
which have no peepholes here. The states are pooled by attention that reads the candidate's and the user's own embeddings, so what
counts is what matters here.

What depends on the user alone (the LSTM, its part of the attention and of the first layer) is computed once for all neighbouring
rows of the same user at the same moment, as a list's candidates are; the rest once per candidate. Places are newest first, as in
the feature spec; a place without an action changes no state and weighs nothing.
"""

from typing import NamedTuple

import torch

from models import base, parts
from state import config, spec

PROPERTIES = frozenset({"kind", "age", "scenario"})
FORGET_BIAS = 1.0
"""A state that is kept at first (Jozefowicz et al. 2015)."""


class Side(NamedTuple):
    """What m users are at one moment, for any candidate; P places are as many as the longest history has."""

    states: torch.Tensor
    """(m, P, H) of the LSTM."""
    keys: torch.Tensor
    """(m, P, A) the states' part of the attention, and the user's."""
    present: torch.Tensor
    """(m, P) whether there is an action."""
    layer: torch.Tensor
    """(m, H1) the user's part of the first layer, with its bias; without hidden layers the user's columns themselves."""


class DUPN(parts.Network):
    """The network as pure functions of its parameters. `model.own_towers` decides whether scenarios have towers of their own."""

    def __init__(self, settings: config.Config) -> None:
        """Plan the columns.

        Raises:
            config.ConfigError: no category of last actions is declared, or they are of different lengths, or none says on what.
        """
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        declared = spec.sequences(settings.features)
        self.length = _length(declared)
        told = list(dict.fromkeys(map(spec.behaviour, declared)))
        self.items = [i for i, what in enumerate(told) if what not in PROPERTIES]
        self.properties = [i for i, what in enumerate(told) if what in PROPERTIES]
        of = torch.tensor([told.index(spec.behaviour(c)) for c in declared], dtype=torch.int64)
        self.pool = torch.nn.functional.one_hot(of, len(told)).T.float() if len(told) < len(declared) else None
        if not self.items:
            raise config.ConfigError('features.categories: dupn needs what was acted on: declare one with source "recent.item"')
        self.width, self.attention = settings.model.sequence_hidden, settings.model.attention_hidden
        of_user, of_item = _columns(settings, self.geometry)
        self.of_user, self.of_item, self.shares = torch.tensor(of_user), torch.tensor(of_item), settings.embedding.init_scale > 0
        embedded = [c for c in of_item if c < self.geometry.embedded]
        self.query = torch.tensor(embedded, dtype=torch.int64)
        self.layers = (self.width + len(of_item) + len(of_user), *settings.model.hidden[:-1])
        self.head = parts.Head(settings, self.layers[-1], own=settings.model.own_towers)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        e, h, a = self.geometry.width, self.width, self.attention
        item, own = len(self.items) * e, len(self.properties) * e
        shapes: base.Shapes = parts.layer("lstm.gates", item + own, 3 * h) | parts.layer("lstm.candidate", item, h)
        shapes |= {"lstm.state.weight": (h, 4 * h), "attention.state.weight": (h, a)}
        shapes |= parts.layer("attention.user", len(self.of_user), a)
        shapes |= {"attention.query.weight": (len(self.query), a), "attention.out.weight": (a, 1)}
        return shapes | parts.layers("hidden", self.layers) | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases but for the forget gate's, own parameters that change nothing."""
        flat = base.fan_in_normal(self.shapes, seed)
        views = base.views(flat, self.shapes)
        views["lstm.gates.bias"][: self.width] = FORGET_BIAS
        self.head.start(views)
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`attention`: what each of the last actions weighs (n, length), newest first; sums to one unless there are none."""
        first, of = self._users(inputs.x)
        side = self.user_side(parameters, inputs.x[first])
        weights = self._attention(parameters, side, of, inputs.x)
        out = weights.new_zeros(len(weights), self.length)
        out[:, : weights.shape[1]] = weights
        return {"attention": out}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower: the user's side once per user and moment, the candidate's for every row."""
        first, of = self._users(inputs.x)
        return self.item_side(parameters, self.user_side(parameters, inputs.x[first]), of, inputs)

    def unsplit(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """The same with every row by itself: what `trunk` is measured against."""
        return self.item_side(parameters, self.user_side(parameters, inputs.x), torch.arange(len(inputs.x)), inputs)

    def user_side(self, parameters: base.Parameters, x: torch.Tensor) -> Side:
        """All that any candidate of these users needs, from one gathered row (m, row) of each."""
        states, present = self._states(parameters, x)
        user = x[:, self.of_user]
        keys = states @ parameters["attention.state.weight"] + parts.linear(parameters, "attention.user", user).unsqueeze(1)
        if len(self.layers) == 1:
            return Side(states, keys, present, user)
        weight = parameters["hidden0.weight"][self.layers[0] - user.shape[1] :]
        return Side(states, keys, present, torch.addmm(parameters["hidden0.bias"], user, weight))

    def item_side(self, parameters: base.Parameters, side: Side, of: torch.Tensor, inputs: base.Inputs) -> base.MetaInput:
        """Meta inputs of n rows; row i is a candidate of user `of[i]` of `side`."""
        weights = self._attention(parameters, side, of, inputs.x)
        pooled = torch.bmm(weights.unsqueeze(1), parts.looked_up(side.states, of)).squeeze(1)
        entry = torch.cat([pooled, inputs.x[:, self.of_item]], 1)
        if len(self.layers) == 1:
            hidden = torch.cat([entry, parts.looked_up(side.layer, of)], 1)
        else:
            hidden = torch.relu(
                torch.addmm(parts.looked_up(side.layer, of), entry, parameters["hidden0.weight"][: entry.shape[1]])
            )
            for i in range(1, len(self.layers) - 1):
                hidden = torch.relu(parts.linear(parameters, f"hidden{i}", hidden))
        return self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)

    def _users(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first row (m,) of each run of rows with the same user side, and the run (n,) of every row.

        Equal embeddings mean the same ids, whose gradients are summed anyway, as long as new ids start from random values.
        """
        rows = torch.arange(len(x))
        if len(x) < 2 or not self.shares:
            return rows, rows
        with torch.no_grad():
            places = x[:, self.geometry.dense : x.shape[1] - len(self.geometry.categories)]
            own = x[:, self.of_user]
            other = (places[1:] != places[:-1]).any(1) | (own[1:] != own[:-1]).any(1)
            starts = torch.cat([other.new_ones(1), other])
        return rows[starts], starts.cumsum(0) - 1

    def _states(self, parameters: base.Parameters, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The LSTM's states (m, P, H) and whether there is an action (m, P)."""
        g, rows = self.geometry, len(x)
        at = g.dense + g.places * g.width
        marks = x[:, at : at + g.places].reshape(rows, -1, self.length)
        present = (marks > 0).any(1)
        done = present.any(0).nonzero()
        places = int(done[-1]) + 1 if len(done) else 0
        present = present[:, :places]
        each = x[:, g.dense : at].reshape(rows, -1, self.length, g.width)[:, :, :places]
        if self.pool is not None:
            pool, values = self.pool.to(x.dtype), (marks[:, :, :places] > 0).to(x.dtype)
            total = torch.einsum("ts,nspw->ntpw", pool, each * values.unsqueeze(3))
            each = total / torch.einsum("ts,nsp->ntp", pool, values).clamp(min=1).unsqueeze(3)
        item = each[:, self.items].transpose(1, 2).flatten(2)
        both = torch.cat([item, each[:, self.properties].transpose(1, 2).flatten(2)], 2)
        gates = both @ parameters["lstm.gates.weight"] + parameters["lstm.gates.bias"]
        candidate = item @ parameters["lstm.candidate.weight"] + parameters["lstm.candidate.bias"]
        entry, weight = torch.cat([gates, candidate], 2), parameters["lstm.state.weight"]
        state = cell = x.new_zeros(rows, self.width)
        states: list[torch.Tensor] = []
        for entering, there in zip(reversed(entry.unbind(1)), reversed(present.unsqueeze(2).unbind(1)), strict=True):
            moved = torch.addmm(entering, state, weight)
            keep, take, show = torch.sigmoid(moved[:, : 3 * self.width]).chunk(3, 1)
            cell = torch.where(there, keep * cell + take * torch.tanh(moved[:, 3 * self.width :]), cell)
            state = torch.where(there, show * torch.tanh(cell), state)
            states.append(state)
        return torch.stack(states[::-1], 1) if states else x.new_zeros(rows, 0, self.width), present

    def _attention(self, parameters: base.Parameters, side: Side, of: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What each place weighs (n, P)."""
        query = x[:, self.query] @ parameters["attention.query.weight"]
        energy = (torch.tanh(parts.looked_up(side.keys, of) + query.unsqueeze(1)) @ parameters["attention.out.weight"]).squeeze(2)
        present = side.present[of]
        # The least float, not minus infinity: the softmax of a row without actions stays a number, and is then nothing.
        energy = energy.masked_fill(~present, torch.finfo(energy.dtype).min)
        return torch.softmax(energy, 1) * present


def _length(declared: tuple[spec.Category, ...]) -> int:
    lengths = {c.max_values for c in declared}
    if len(lengths) != 1:
        found = ", ".join(f"{c.name} {c.max_values}" for c in declared) or "none"
        raise config.ConfigError(
            'features.categories: dupn reads categories of the user\'s last actions (source "recent.item", "recent.kind", ...), '
            f"all with the same max_values; declared: {found}"
        )
    return lengths.pop()


def _columns(settings: config.Config, geometry: base.Geometry) -> tuple[list[int], list[int]]:
    """Columns of a gathered row that are the user's and the moment's, and the candidate's; pooled actions are in neither.

    Statistics, and what depends on a list's items, count as the candidate's.
    """
    of_user: list[int] = []
    of_item: list[int] = []
    for category in settings.features.categories:
        if not spec.behaviour(category):
            span = geometry.span(category.name)
            side = of_item if category.source.startswith(("item", "position")) else of_user
            side += range(span.start, span.stop)
    of_list = {n.name for n in settings.features.numbers if n.source.startswith(("user", "context"))}
    for column, name in enumerate(geometry.numbers, geometry.embedded):
        (of_user if name in of_list else of_item).append(column)
    return of_user, of_item

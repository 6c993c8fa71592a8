"""Two towers for retrieval (Huang et al. 2013; Covington et al. 2016): a vector of the user and one of the item, never mixed.

```
user's columns ─► hidden ─► [tower: relu(h W + b)] ─┐
                                                    ├─ sum over u · v · output weight, + the item's bias ─► logit
item's columns ─► hidden ─► v ──────────────────────┘
```

A logit is an inner product, so the items' vectors are computed once and searched by a library. In the terms of `base.MetaInput`
the user's hidden row enters the tower and the item's vector is the gate: what adapts to a task (a user) is the last layer of the
*user's* tower, and no item's vector moves.

A column belongs to the item where its source or its key says so, else to the user's side; what needs both at once (a statistic
of user and item, a match with recent actions, a place in the list) cannot be known before items are found and is not read.
"""

import torch

from models import adaptation, base, parts
from state import config

ITEM, USER = "item", "user"


class TwoTower(parts.Network):
    """The towers as pure functions of their parameters."""

    def __init__(self, settings: config.Config) -> None:
        """Raises ConfigError: one of the sides has no column."""
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        told = sides(settings)
        self.columns = {
            side: parts.columns(self.geometry, tuple(n for n, s in told.items() if s == side)) for side in (USER, ITEM)
        }
        for side, found in self.columns.items():
            if not len(found):
                raise config.ConfigError(f"features: two_tower needs a column of the {side}'s side; declare its id as a category")
        widths = settings.model.hidden
        self.width, self.depth = widths[-1], len(widths) - 1
        self.shapes: base.Shapes = {}
        for side in (USER, ITEM):
            self.shapes |= parts.layers(side, (len(self.columns[side]), *widths[:-1]))
        entry = {side: widths[-2] if self.depth else len(self.columns[side]) for side in (USER, ITEM)}
        self.shapes |= parts.layer("tower", entry[USER], self.width)
        self.shapes |= parts.layer("item.vector", entry[ITEM], self.width) | {"item.bias": (entry[ITEM], self.objectives)}
        self.shapes |= {"output.weight": (self.objectives, self.width), "output.bias": (self.objectives,)}

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases; the inner product starts as a mean."""
        flat = base.fan_in_normal(self.shapes, seed)
        base.views(flat, self.shapes)["output.weight"].fill_(self.width**-0.5)
        return flat

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """The user's hidden rows, and the items' vectors in the place of gates."""
        hidden = self.user(parameters, inputs.x)
        vector, bias = self.item(parameters, inputs.x)
        spread = (-1, self.objectives, -1)
        nothing = hidden.new_zeros(len(hidden), self.objectives, 1)
        return base.MetaInput(hidden.unsqueeze(1).expand(*spread), vector.unsqueeze(1).expand(*spread), bias, nothing)

    def user(self, parameters: base.Parameters, x: torch.Tensor) -> torch.Tensor:
        """What enters the user's tower, (n, H1), of gathered input rows; columns of items are not looked at."""
        return parts.rectified(parameters, USER, x[:, self.columns[USER]], self.depth)

    def item(self, parameters: base.Parameters, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (n, H2) and biases (n, O) of items; columns of users are not looked at."""
        hidden = parts.rectified(parameters, ITEM, x[:, self.columns[ITEM]], self.depth)
        return parts.linear(parameters, "item.vector", hidden), hidden @ parameters["item.bias"]


def vectors(fast: base.Parameters, hidden: torch.Tensor, objective: int = 0) -> torch.Tensor:
    """Users' vectors (n, H2) of what enters their tower (n, H1); the inner product with an item's is the logit but for biases."""
    return torch.relu(hidden @ fast["tower.weight"] + fast["tower.bias"]) * fast["output.weight"][objective]


def adapted_vectors(fast: base.Parameters, change: adaptation.Adapted, hidden: torch.Tensor, objective: int = 0) -> torch.Tensor:
    """The same for T users (T, H1) after each user's tower was changed by that user's support; the changes are constants."""
    near = (change.hidden @ hidden.unsqueeze(-1)).transpose(1, 2) + 1
    active = hidden @ fast["tower.weight"] + fast["tower.bias"] + (near @ change.error).squeeze(1)
    return torch.relu(active) * (fast["output.weight"][objective] + change.output[:, objective])


def sides(settings: config.Config) -> dict[str, str]:
    """For every column that a two-tower model reads, whose it is."""
    features = settings.features
    found = {c.name: _side(c.source) for c in features.categories} | {n.name: _side(n.source) for n in features.numbers}
    for s in features.statistics:
        owners = {found.get(part, part) for part in s.key}
        found[s.name] = owners.pop() if len(owners) == 1 else "" if owners else USER
    found |= {r.name: USER if r.match == "any" else "" for r in features.recent}
    return {name: side for name, side in found.items() if side in {USER, ITEM}}


def _side(source: str) -> str:
    holder = source.partition(".")[0]
    return ITEM if holder in {"item", "item_id"} else "" if holder == "position" else USER

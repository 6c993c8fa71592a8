"""What the models are put together from: layers, layers with weights per scenario, and the head that ends in the tower.

Weights of several networks stand side by side in one tensor, so that a layer is one product whatever the number of scenarios,
experts or objectives. A scenario's own weights are a change of the shared ones that starts at zero and counts as far as the
scenario's rows have earned it (`models.scenario_slots`); slot 0, nobody's, stays at zero.
"""

import torch
from torch.nn.functional import embedding

from models import base, objective_layers, slot_layers, wide
from models import side_by_side as native
from state import config

NARROW = 64
"""Outputs of all slots together up to which each row is multiplied with the weights of every slot."""


def layer(name: str, inputs: int, outputs: int) -> base.Shapes:
    """A weight (inputs, outputs) and a bias."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def layers(name: str, widths: tuple[int, ...]) -> base.Shapes:
    """`name0`, `name1`, ... from each width to the next."""
    found: base.Shapes = {}
    for i in range(len(widths) - 1):
        found |= layer(f"{name}{i}", widths[i], widths[i + 1])
    return found


def stacked(name: str, networks: int, widths: tuple[int, ...]) -> base.Shapes:
    """The same for `networks` networks side by side: weights (networks, inputs, outputs), biases (networks x outputs)."""
    found: base.Shapes = {}
    for i in range(len(widths) - 1):
        found[f"{name}{i}.weight"] = (networks, widths[i], widths[i + 1])
        found[f"{name}{i}.bias"] = (networks * widths[i + 1],)
    return found


def own_layer(parameters: base.Parameters, name: str, x: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor) -> torch.Tensor:
    """What the changes `name` of slots, stacked weights and biases, add to a layer of rows (n, inputs); `earned` (n, 1)."""
    weight = parameters[f"{name}.weight"]
    return slot_layer(x, weight, parameters[f"{name}.bias"].view(len(weight), -1), slot, earned.reshape(-1))


def columns(geometry: base.Geometry, features: tuple[str, ...]) -> torch.Tensor:
    """Columns (int64) of gathered input rows that hold these features: a category's embedding, a number."""
    found: list[int] = []
    for name in features:
        if name in geometry.categories:
            span = geometry.span(name)
            found += range(span.start, span.stop)
        else:
            found.append(geometry.embedded + geometry.numbers.index(name))
    return torch.tensor(found, dtype=torch.long)


def linear(parameters: base.Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    """Rows (n, inputs) times the weight, plus the bias."""
    return torch.addmm(parameters[f"{name}.bias"], x, parameters[f"{name}.weight"])


def rectified(parameters: base.Parameters, name: str, x: torch.Tensor, depth: int) -> torch.Tensor:
    """`depth` rectified layers, one after the other."""
    for i in range(depth):
        x = torch.relu(linear(parameters, f"{name}{i}", x))
    return x


def side_by_side(parameters: base.Parameters, name: str, x: torch.Tensor, depth: int) -> torch.Tensor:
    """`depth` rectified layers of several networks (networks, n, outputs); x (n, inputs) is read by all of them."""
    for i in range(depth):
        weight, bias = parameters[f"{name}{i}.weight"], parameters[f"{name}{i}.bias"]
        if native.usable(x, weight):
            x = native.rectified(x, weight, bias)
            continue
        every = x if x.dim() == 3 else x.expand(len(weight), -1, -1)
        x = torch.relu(torch.baddbmm(bias.view(len(weight), 1, -1), every, weight))
    return x


def slot_layer(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Rows (n, inputs) to `earned` (x W + b), by their slots' weights (slots, inputs, outputs) and biases (slots, outputs)."""
    if native.usable(x, weight):
        return slot_layers.layer(x, weight, bias, slot, earned)
    return earned.unsqueeze(1) * (by_slot(x, weight, slot) + looked_up(bias, slot))


def looked_up(whole: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows (n, ...) of what several of them may share (m, ...), such as parameters of slots.

    As a lookup, whose gradient adds rows in one order: that of `whole[at]` adds them as its threads come.
    """
    return embedding(at, whole.flatten(1)).view(len(at), *whole.shape[1:])


def by_slot(x: torch.Tensor, weight: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """Each row (n, inputs) times the weight (slots, inputs, outputs) of its slot, as one product.

    Narrow weights meet all rows, which is less work than sorting the rows by slot.
    """
    present, group = torch.unique(slot, return_inverse=True)
    if len(present) == 1:
        return x @ weight[present[0]]
    if len(present) * weight.shape[2] <= NARROW:
        every = x @ weight[present].transpose(0, 1).reshape(x.shape[1], -1)
        return every.view(len(x), len(present), -1)[torch.arange(len(x)), group]
    order = torch.argsort(group, stable=True)
    counts = torch.bincount(group, minlength=len(present))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[group[order]]
    padded = x.new_zeros(len(present), int(counts.max()), x.shape[1]).index_put((group, rank), x)
    return torch.bmm(padded, weight[present])[group, rank]


class Network:
    """What networks without a hand-written form have in common."""

    def fast_parameters(self) -> tuple[str, ...]:
        """The shared tower."""
        return base.FAST

    def tower(self, fast: base.Parameters, meta: base.MetaInput) -> torch.Tensor:
        """Logits (n, O)."""
        return base.tower(fast, meta)

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:  # noqa: ARG002 - no gates
        """Nothing."""
        return {}

    def written(self, parameters: base.Parameters, gradient: base.Parameters) -> base.Written | None:  # noqa: ARG002 - has none
        """None: autograd does the work."""
        return None

    def native(self, flat: torch.Tensor) -> base.NativeTrunk | None:  # noqa: ARG002 - has no hand-written form
        """None: torch does the work."""
        return None


class Head:
    """The end that every network shares: the tower, what each scenario owns of it, and the wide part.

    It reads hidden rows (n, O, H1). The tower's own layer, H1 to H2, and the outputs per objective are adapted per task. With
    `own`, every scenario has its own hidden layer and output per objective, as a change of the shared ones: added to its
    weights, or with `star` multiplied with them, W * (1 + own) (STAR, Sheng et al. 2021, its star topology). With `scaled` it
    also weighs the wide part's sums by itself, as a change of the shared scales.
    """

    def __init__(self, settings: config.Config, hidden: int, own: bool, star: bool = False, scaled: bool = False) -> None:
        """`hidden` is H1."""
        self.geometry = base.geometry(settings)
        self.wide = wide.plan(settings)
        self.own, self.star, self.width, self.hidden = own, star, settings.model.hidden[-1], hidden
        self.slots = settings.scenarios.slots + 1
        self.apart = objective_layers.Own(settings, {"tower": (hidden, self.width)})
        self.deeper = objective_layers.Deeper(settings, hidden)
        self.scaled = scaled and self.wide.kind != wide.OFF

    @property
    def plain(self) -> bool:
        """Whether objectives share all layers of the tower."""
        return not (self.apart or self.deeper)

    def shapes(self) -> base.Shapes:
        """Shared, then own, then wide parameters."""
        objectives = self.geometry.objectives
        found = layer("tower", self.hidden, self.width)
        found |= {"output.weight": (objectives, self.width), "output.bias": (objectives,)}
        if self.own:
            found |= {
                "own.tower.weight": (self.slots * objectives, self.hidden, self.width),
                "own.tower.bias": (self.slots, objectives, self.width),
                "own.output.weight": (self.slots, objectives, self.width),
                "own.output.bias": (self.slots, objectives),
            }
        found |= self.deeper.shapes() | self.apart.shapes() | wide.shapes(self.wide)
        return found | {"own.wide.scale": (self.slots, 2 * objectives)} if self.scaled else found

    def start(self, views: dict[str, torch.Tensor]) -> None:
        """Set drawn parameters to what they start from: own ones change nothing."""
        views["output.weight"].mul_((self.geometry.objectives / self.width) ** 0.5)
        for name, view in views.items():
            if name.startswith("own."):
                view.zero_()
        self.apart.start(views)
        wide.start(views)

    def meta(self, parameters: base.Parameters, hidden: torch.Tensor, inputs: base.Inputs) -> base.MetaInput:
        """Meta inputs of hidden rows (n, O, H1)."""
        rows, objectives, _ = hidden.shape
        hidden = self.deeper.through(parameters, hidden)
        offset = self._beside(parameters, inputs)
        if not self.own:
            nothing = hidden.new_zeros(rows, objectives, 1)
            shift = self.apart.change(parameters, "tower", hidden) if self.apart else nothing
            return base.MetaInput(hidden, nothing + 1, offset, shift)
        earned, slot = inputs.earned.view(-1, 1, 1), inputs.slot
        each = (slot.unsqueeze(1) * objectives + torch.arange(objectives)).view(-1)
        weight = parameters["own.tower.weight"]
        weight = weight * parameters["tower.weight"] if self.star else weight
        bias = parameters["own.tower.bias"].view(-1, self.width)
        share = inputs.earned.unsqueeze(1).expand(-1, objectives).reshape(-1)
        change = slot_layer(hidden.reshape(rows * objectives, -1), weight, bias, each, share).view(rows, objectives, -1)
        if self.apart:
            change = change + self.apart.change(parameters, "tower", hidden)
        gain = embedding(slot, parameters["own.output.weight"].view(self.slots, -1)).view(rows, objectives, -1)
        return base.MetaInput(
            hidden,
            1 + earned * gain,
            offset + earned.squeeze(-1) * embedding(slot, parameters["own.output.bias"]),
            change,
        )

    def _beside(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        """The wide part (n, O), by each row's scenario's scales."""
        if not self.scaled:
            return wide.logits(parameters, inputs.x, self.wide)
        apart = {**parameters, "wide.scale": inputs.x.new_tensor([1.0, 0.0, 0.0, 1.0])}
        sums = wide.logits(apart, inputs.x, self.wide._replace(objectives=2)).unsqueeze(1)
        change = inputs.earned.unsqueeze(1) * embedding(inputs.slot, parameters["own.wide.scale"])
        return (sums * (parameters["wide.scale"] + change).view(len(change), -1, 2)).sum(-1)

"""A network for every scenario: the single-domain baseline of the multi-scenario papers, in one pass over a mixed stream.

No paper has equations for it: it is what STAR (Sheng et al. 2021) and SAR-Net (Shen et al. 2021) compare with, one model for each
domain; that the hand-over from a common network is smooth is this library's own.

Each slot has all the layers of a network; those of several scenarios run side by side. Ids keep one embedding space and the
wide part its scales (two numbers an objective); to compare with nothing shared at all, run the model on one scenario's rows.
A scenario that owns nothing yet needs somebody to speak for it: a common network, which every scenario trains until its own
takes over. Their outputs are mixed by what the scenario has earned, e = n / (n + `scenarios.prior_rows`), before the tower and
in it, as (1 - e) common + e own, and all networks start from the same values, so that the hand-over is smooth. A scenario's
output weights are the common ones times factors of its own, and what adaptation adds to the common tower it adds to the own one.
"""

import torch

from models import base, experts, parts
from state import config


class Single(parts.Network):
    """The networks as pure functions of their parameters."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        widths = (self.geometry.dense, *settings.model.hidden[:-1])
        self.depth = len(widths) - 1
        self.head = parts.Head(settings, widths[-1], own=True)
        self.shapes = parts.layers("bottom", widths)
        self.shapes |= experts.own_shapes("bottom.own", self.head.slots, 1, widths)
        self.shapes |= self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases; every scenario's network starts as the common one."""
        flat = base.fan_in_normal(self.shapes, seed)
        views = base.views(flat, self.shapes)
        self.head.start(views)
        for i in range(self.depth):
            views[f"bottom.own.{i}.weight"][1:] = views[f"bottom{i}.weight"]
        views["own.tower.weight"][self.objectives :] = views["tower.weight"]
        for name, view in views.items():
            if "own." in name:
                view[: len(view) // self.head.slots] = 0
        return flat

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Both networks' hidden rows mixed, and the own tower in place of the common one, as a shift."""
        x, earned = inputs.x[:, : self.geometry.dense], inputs.earned.unsqueeze(1)
        hidden = parts.rectified(parameters, "bottom", x, self.depth)
        if self.depth:
            own = experts.own(parameters, "bottom.own", x, inputs.slot, 1, self.depth).squeeze(1)
            hidden = (1 - earned) * hidden + earned * own
        meta = self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)
        common = parts.linear(parameters, "tower", hidden).unsqueeze(1)
        return meta._replace(shift=meta.shift - earned.unsqueeze(1) * common)

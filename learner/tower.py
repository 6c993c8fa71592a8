"""The end of a pass without autograd: towers, adaptation and losses by `models.towers`, under any trunk that torch runs."""

import numpy as np
import numpy.typing as npt
import torch

from models import base, pages, towers
from models.matrices import workspace
from state import config

F32 = npt.NDArray[np.float32]


class Compiled:
    """`models.towers` over the tower of one flat parameter vector, for any model whose tower is `base.tower`."""

    def __init__(self, settings: config.MetaLearning, fast: base.Parameters, gradient: base.Gradient) -> None:
        self.settings = towers.Settings(settings.inner_rate, settings.inner_steps, settings.weight, settings.prior_rows)
        self.fast, self.gradient = fast, gradient
        self._tower = towers.Tower(*(fast[name].detach().numpy() for name in ("output.weight", "output.bias")))
        self._space, self._arena = workspace(0), pages.Arena()

    def run(self, lists: towers.Lists, query: base.MetaInput, support: base.MetaInput, train: bool) -> base.Pass:
        """Score both; when training, fill the output layer's gradient and add to all others by autograd from `query`."""
        asked = self._enter(query)
        with torch.no_grad():
            known = self._enter(support)
        every = towers.Meta(*(torch.cat([a.detach(), k]).numpy() for a, k in zip(asked, known, strict=True)))
        done, slopes = self._learn(lists, every, train)
        if train:
            ends = [(end, slope) for end, slope in zip(asked, slopes[: len(asked)], strict=True) if end.requires_grad]
            torch.autograd.backward([end for end, _ in ends], [torch.from_numpy(slope) for _, slope in ends])
        return done

    def apart(self, lists: towers.Lists, meta: towers.Meta, train: bool) -> tuple[base.Pass, towers.Meta | None]:
        """Score query rows and, behind them, support rows, outside autograd.

        When training, fill the output layer's gradient and return that of the query rows' meta inputs, valid until the next
        call; that of hidden inputs lacks what goes through the hidden layer.
        """
        self._arena.begin()
        done, slopes = self._learn(lists, meta, train)
        return done, towers.Meta(slopes.hidden, slopes.z, slopes.gate, slopes.offset) if train else None

    def _learn(self, lists: towers.Lists, every: towers.Meta, train: bool) -> tuple[base.Pass, towers.Slopes]:
        """Score; when training, fill the output layer's gradient and the returned ones, of the query's virtual rows."""
        (rows, objectives), width = lists.label.shape, self._tower.output.shape[1]
        virtual, entry = rows * objectives if train else 0, every.hidden.shape[1]
        hidden, z, gate, offset = (self._arena.take(virtual, columns) for columns in (entry, width, width, 1))
        arrays = self.gradient.arrays
        slopes = towers.Slopes(hidden, z, gate, offset, arrays["output.weight"], arrays["output.bias"])
        most = int(lists.n_items.max(initial=0))
        needed = towers.room_needed(rows, most, len(lists.s_label), objectives, entry, width)
        if len(self._space.numbers) < needed:
            self._space = workspace(needed + needed // 4)
        unadapted, fitted = np.empty_like(lists.label), np.empty_like(lists.label)
        loss = towers.learn(every, self._tower, lists, self.settings, unadapted, fitted, slopes, train, self._space)
        self._space.used[0] = 0
        return base.Pass(unadapted, fitted, loss, None), slopes

    def _enter(self, meta: base.MetaInput) -> tuple[torch.Tensor, ...]:
        """Hidden inputs, pre-activations, gates and offsets of virtual rows, see `towers.Meta`."""
        rows, objectives, inputs = meta.hidden.shape
        hidden = meta.hidden.reshape(rows * objectives, inputs)
        z = torch.addmm(self.fast["tower.bias"], hidden, self.fast["tower.weight"])
        width = z.shape[1]
        z = (z.view(rows, objectives, width) + meta.shift).view(rows * objectives, width)
        return hidden, z, meta.gate.expand(-1, -1, width).reshape(rows * objectives, width), meta.offset.reshape(-1, 1)

"""The end of a pass without autograd: towers, adaptation and losses by `models.towers`, under any trunk that torch runs."""

import numpy as np
import numpy.typing as npt
import torch

from models import base, pages, side_by_side, towers
from models.matrices import Workspace, column_sums, product, turned, workspace
from models.native_tower import enter
from models.side_by_side import BLOCK
from state import config
from state.kernels import kernel

F32 = npt.NDArray[np.float32]


@kernel
def _tower_back(hidden: F32, weight: F32, dz: F32, dweight: F32, dbias: F32, dhidden: F32) -> None:
    """Fill the gradients of weight and bias, add that of `hidden`, a block of rows at a time."""
    space = Workspace(np.empty(weight.size + 64, np.float32), np.zeros(1, np.int64))
    back = turned(weight, space)
    column_sums(dz, dbias)
    for start in range(0, len(dz), BLOCK):
        rows = slice(start, min(start + BLOCK, len(dz)))
        product(hidden[rows].T, dz[rows], dweight, start > 0)
        product(dz[rows], back, dhidden[rows], True)


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

    def apart(self, lists: towers.Lists, meta: base.MetaInput, train: bool) -> tuple[base.Pass, base.MetaInput | None]:
        """Score query rows and, behind them, support rows, outside autograd.

        When training, fill the tower's gradient and return that of the query rows' meta inputs, shaped as they are, which are
        valid until the next call.
        """
        self._arena.begin()
        native = side_by_side.usable(meta.hidden)
        entered = self._shifted(meta) if native else self._enter(meta)
        done, slopes = self._learn(lists, towers.Meta(*(part.contiguous().numpy() for part in entered)), train)
        if not train:
            return done, None
        dhidden, dz, dgate, doffset = (torch.from_numpy(part) for part in slopes[: len(entered)])
        weight, dweight, dbias = self.fast["tower.weight"], *(self.gradient.views[f"tower.{name}"] for name in ("weight", "bias"))
        if native:
            own = (entered[0][: len(dz)], weight.detach(), dz, dweight, dbias, dhidden)
            _tower_back(*(part.numpy() for part in own))
        else:
            torch.mm(entered[0][: len(dz)].t(), dz, out=dweight)
            torch.sum(dz, 0, out=dbias)
            dhidden.addmm_(dz, weight.t())
        rows, objectives = lists.label.shape
        ends = (part.view(rows, objectives, part.shape[1]) for part in (dhidden, dgate, dz))
        hidden, gate, shift = ends
        return done, base.MetaInput(hidden, gate, doffset.view(rows, objectives), shift)

    def _shifted(self, meta: base.MetaInput) -> tuple[torch.Tensor, ...]:
        """`_enter` by native kernels."""
        rows, objectives, inputs = meta.hidden.shape
        hidden, weight = meta.hidden.reshape(rows * objectives, inputs), self.fast["tower.weight"].detach()
        width = weight.shape[1]
        z = torch.from_numpy(self._arena.take(rows * objectives, width))
        shift = meta.shift.reshape(rows * objectives, -1)
        enter(*(part.numpy() for part in (hidden, weight, self.fast["tower.bias"].detach(), shift, z)))
        return hidden, z, meta.gate.expand(-1, -1, width).reshape(rows * objectives, width), meta.offset.reshape(-1, 1)

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

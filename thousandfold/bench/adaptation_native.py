"""Meta-gradients of `adaptation_peers`' network by the learner's own first order: `models.towers` under a trunk of its kernels.

Tasks are worked on in blocks, as the learner meets them in its minibatches: what is kept of their rows stays in the processor's
cache, and memory does not grow with the number of tasks.
"""

import numpy as np
import numpy.typing as npt
import torch

from models import matrices, modes, towers
from state.kernels import Plain, kernel
from thousandfold.bench import adaptation_peers as peers

F32 = npt.NDArray[np.float32]
BLOCK = 32
ON, ENTRY, WIDTH, QUERY = modes.ON, peers.ENTRY, peers.WIDTH, peers.QUERY


def first_order(given: peers.Tasks, start: peers.Parameters, steps: int) -> peers.Gradients:
    """Gradients by one native call, which reads the tasks where they are."""
    own = tuple(p.numpy() for p in start.values())
    found = tuple(np.empty_like(p) for p in own)
    queries, support = BLOCK * QUERY, BLOCK * peers.SUPPORT
    tower = towers.room_needed(queries, QUERY, support, 1, ENTRY, WIDTH)
    space = matrices.workspace(tower + (2 * queries + support) * (ENTRY + 2 * WIDTH + 16) + ENTRY * (WIDTH + 16))
    arrays, settings = tuple(part.numpy() for part in given), (peers.RATE, steps, 1.0, 0.0)

    def run() -> list[torch.Tensor]:
        _pass(arrays, own, found, settings, tuple(space))
        return [torch.from_numpy(g) for g in found]

    return run


@kernel
def _pass(given: Plain, own: Plain, found: Plain, settings: Plain, space: Plain) -> None:
    """Fill the gradients `found` of parameters `own`, both in the order of `peers.SHAPES`."""
    trunk, trunk_bias, weight, bias, output, output_bias = matrices.borrowed(found)
    for matrix in (trunk, weight, output):
        matrix[:] = 0
    for vector in (trunk_bias, bias, output_bias):
        vector[:] = 0
    (count, each, _), room, settled = given[0].shape, matrices.Workspace(*space), towers.Settings(*settings)
    room.used[0] = 0
    gate, offset = matrices.room(room, BLOCK * (QUERY + each), WIDTH), matrices.room(room, BLOCK * (QUERY + each), 1)
    gate[:] = 1
    offset[:] = 0
    mark = room.used[0]
    for first in range(0, count, BLOCK):
        room.used[0] = mark
        _block(given, first, min(BLOCK, count - first), own, found, settled, gate, offset, room)


@kernel
def _block(
    given: Plain, first: int, tasks: int, own: Plain, found: Plain, settings: towers.Settings, gate: F32, offset: F32,
    space: matrices.Workspace,
) -> None:  # fmt: skip
    """Add the gradients of some tasks' queries."""
    support, known, query, asked = matrices.borrowed(given)
    trunk, trunk_bias, weight, bias, output, output_bias = matrices.borrowed(own)
    dtrunk, dtrunk_bias, dweight, dbias, doutput, doutput_bias = matrices.borrowed(found)
    count, each, inputs = support.shape
    rows, more = tasks * QUERY, tasks * each
    hidden, z = matrices.room(space, rows + more, ENTRY), matrices.room(space, rows + more, WIDTH)
    x = matrices.part(query, first * QUERY * inputs, rows, inputs)
    _enter(x, trunk, trunk_bias, weight, bias, hidden[:rows], z[:rows])
    others = matrices.part(support, first * each * inputs, more, inputs)
    _enter(others, trunk, trunk_bias, weight, bias, hidden[rows:], z[rows:])
    share = matrices.room(space, rows, 1)
    share[:] = np.float32(rows / (count * QUERY))
    lists = towers.Lists(
        matrices.part(asked, first * QUERY, rows, 1), share, np.full(tasks, QUERY), np.full(tasks, ON), np.full(tasks, each),
        np.arange(more).astype(np.int32).reshape(tasks, each), matrices.part(known, first * each, more, 1),
        np.arange(rows, rows + more),
    )  # fmt: skip
    slopes = towers.Slopes(
        matrices.room(space, rows, ENTRY), matrices.room(space, rows, WIDTH), matrices.room(space, rows, WIDTH),
        matrices.room(space, rows, 1), matrices.room(space, 1, WIDTH), matrices.room(space, 1, 1)[0],
    )  # fmt: skip
    unadapted, fitted = matrices.room(space, rows, 1), matrices.room(space, rows, 1)
    meta, tower = towers.Meta(hidden, z, gate[: len(z)], offset[: len(z)]), towers.Tower(output, output_bias)
    towers.joint(meta, tower, lists, settings, unadapted, fitted, slopes, True, space)
    matrices.product(hidden[:rows].T, slopes.z, dweight, True)
    matrices.product(slopes.z, matrices.turned(weight, space), slopes.hidden, True)
    _rectify_back(slopes.hidden, hidden)
    matrices.product(x.T, slopes.hidden, dtrunk, True)
    ones = matrices.room(space, 1, rows)
    ones[:] = 1
    matrices.product(ones, slopes.hidden, matrices.part(dtrunk_bias, 0, 1, ENTRY), True)
    matrices.product(ones, slopes.z, matrices.part(dbias, 0, 1, WIDTH), True)
    matrices.product(ones[:, :1], slopes.output, doutput, True)
    doutput_bias[0] += slopes.bias[0]


@kernel
def _enter(x: F32, trunk: F32, trunk_bias: F32, weight: F32, bias: F32, hidden: F32, z: F32) -> None:
    """Fill the rectified trunk layer of rows (n, 64) and what it makes of the tower's."""
    matrices.affine(x, trunk, trunk_bias, hidden)
    values = matrices.flat(hidden)
    for i in range(len(values)):
        value = values[i]
        values[i] = np.float32(0) if value < 0 else value
    matrices.affine(hidden, weight, bias, z)


@kernel
def _rectify_back(slope: F32, active: F32) -> None:
    """No gradient for what was rectified away; `active` has at least as many rows."""
    values, before = matrices.flat(slope), matrices.flat(active)
    for i in range(len(values)):
        values[i] = values[i] if before[i] > 0 else np.float32(0)

"""The tower and its adaptation in native code: plain and adapted scores, the joint loss and its gradients.

The same mathematics as `models.adaptation` without padding or autograd.
"""

import numpy as np
import numpy.typing as npt

from models.cross_entropy import cross_entropy
from models.matrices import Workspace, borrowed, room
from models.tower_rows import (
    ON,
    Lists,
    Meta,
    Settings,
    Slopes,
    Tower,
    activate,
    both_back,
    logits,
    output_back,
    spread,
)  # fmt: skip
from models.tower_tasks import adapted, numbers_needed
from state.kernels import Plain, kernel

F32 = npt.NDArray[np.float32]
__all__ = ["Lists", "Meta", "Settings", "Slopes", "Tower", "joint", "learn", "room_needed"]


@kernel
def _plain(
    meta: Meta, tower: Tower, lists: Lists, settings: Settings, unadapted: F32, fitted: F32, slopes: Slopes, train: bool,
    space: Workspace,
) -> float:  # fmt: skip
    """Score all rows under the tower as it is; returns the original loss, with the meta loss of lists without support."""
    objectives, width = tower.output.shape
    count, end, loss = lists.label.size, 0, 0.0
    z, gate = meta.z[:count], meta.gate[:count]
    active, by, entropy = room(space, count, width), room(space, count, 1), room(space, 1, count)[0]
    activate(z, gate, active)
    logits(active, tower, meta.offset, by)
    cross_entropy(by, lists.label, unadapted, entropy)
    for t in range(len(lists.n_items)):
        start, end = end, end + lists.n_items[t]
        factor = 1.0 + (settings.weight if lists.codes[t] == ON and lists.taken[t] == 0 else 0.0)
        for i in range(start, end):
            for o in range(objectives):
                share, p = lists.weight[i, o] * factor / len(lists.label), unadapted[i, o]
                fitted[i, o] = p
                loss += share * entropy[i * objectives + o]
                by[i * objectives + o, 0] = share * (p - lists.label[i, o])
    if not train:
        return loss
    slopes.hidden[:] = 0
    slopes.output[:] = 0
    slopes.bias[:] = 0
    slopes.offset[:] = by
    up = room(space, count, width)
    spread(by, tower.output, up)
    both_back(up, z, gate, slopes.z, slopes.gate)
    output_back(by, active, slopes)
    return loss


@kernel
def joint(
    meta: Meta, tower: Tower, lists: Lists, settings: Settings, unadapted: F32, fitted: F32, slopes: Slopes, train: bool,
    space: Workspace,
) -> float:  # fmt: skip
    """`learn` inside kernels."""
    meta, tower, lists, slopes = borrowed(meta), borrowed(tower), borrowed(lists), borrowed(slopes)
    unadapted, fitted = borrowed(unadapted), borrowed(fitted)
    loss = _plain(meta, tower, lists, settings, unadapted, fitted, slopes, train, space)
    if not lists.taken.any():
        return loss
    return loss + adapted(meta, tower, lists, settings, fitted, slopes, train, space)


@kernel
def _enter(
    meta: Plain, tower: Plain, lists: Plain, settings: Plain, unadapted: F32, fitted: F32, slopes: Plain, train: bool,
    space: Plain,
) -> float:  # fmt: skip
    return joint(
        Meta(*meta), Tower(*tower), Lists(*lists), Settings(*settings), unadapted, fitted, Slopes(*slopes), train,
        Workspace(*space),
    )  # fmt: skip


def learn(
    meta: Meta, tower: Tower, lists: Lists, settings: Settings, unadapted: F32, fitted: F32, slopes: Slopes, train: bool,
    space: Workspace,
) -> float:  # fmt: skip
    """Score R rows under both towers, (R, O) each, and return the joint loss; when training, `slopes` receives its gradients."""
    named = tuple(meta), tuple(tower), tuple(lists), tuple(settings)
    return _enter(*named, unadapted, fitted, tuple(slopes), train, tuple(space))


def room_needed(rows: int, most_items: int, support: int, objectives: int, entry: int, width: int) -> int:
    """Numbers that `learn` takes from the workspace, at most."""
    q = rows * objectives
    return numbers_needed(rows, most_items, support, objectives, entry, width) + q * (3 * width + 4) + 16 * 16

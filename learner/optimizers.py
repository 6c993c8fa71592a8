"""Adam over the flat vector of dense parameters, behind a guard on its gradient; embeddings have a rule of their own."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from models import kernels
from state import config

F32 = npt.NDArray[np.float32]


class Adam:
    """State of Adam for one flat float32 vector, updated in place."""

    def __init__(self, size: int, settings: config.Optimizer) -> None:
        self.settings = settings
        self.mean, self.square = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self.step = np.zeros(1, np.int64)

    def descend(self, values: F32, gradient: F32, norm: float) -> None:
        """One step; a gradient of a norm above `max_gradient_norm` is scaled down to it."""
        s = self.settings
        self.step += 1
        scale = min(1.0, s.max_gradient_norm / norm) if norm > 0 else 1.0
        kernels.adam(
            values, self.mean, self.square, gradient, scale, int(self.step[0]), s.dense_rate, s.beta1, s.beta2, s.weight_decay
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Moments and step as views."""
        return {"adam.mean": self.mean, "adam.square": self.square, "adam.step": self.step}


def norm(gradient: F32) -> float:
    """Euclidean norm; not finite if any number is not."""
    return math.sqrt(total) if math.isfinite(total := kernels.squares(gradient)) else math.nan

"""A loss that users bring: a function of labels and logits, tried when it is read, and differentiated by autograd."""

from collections.abc import Callable

import torch

from models import plugins
from state import config

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Labels (n,) and logits (n, outputs) to a loss (n,) per row. Rows without the objective come with label 0 and do not count."""
ROWS = 3


def named(key: str, path: str, outputs: int) -> RowLoss:
    """The loss that `path` names, after asking it about a few rows; `key` is the setting that holds it.

    Raises:
        config.ConfigError: there is none, it cannot be called so, it does not give a finite number for each row, or it has no
            finite gradient.
    """
    found: RowLoss = plugins.named(key, path)

    def refuse(problem: str) -> config.ConfigError:
        return config.ConfigError(f'{key}: "{path}" {problem}')

    logit = torch.linspace(-2.0, 2.0, ROWS * outputs).view(ROWS, outputs).requires_grad_()
    try:
        with torch.enable_grad():
            given = found(torch.tensor([0.0, 1.0, 0.0]), logit)
            (slope,) = torch.autograd.grad(given.sum(), logit)
    except Exception as error:
        raise refuse(f"cannot be asked about {ROWS} rows with {outputs} logits each: {type(error).__name__}: {error}") from error
    if given.shape != (ROWS,):
        raise refuse(f"gives {tuple(given.shape)} for {ROWS} rows; it must give a number for each, neither summed nor averaged")
    if not (torch.isfinite(given).all() and torch.isfinite(slope).all()):
        raise refuse("gives numbers that are not finite for labels 0 and 1 and logits from -2 to 2")
    return found


def slope(loss: RowLoss, label: torch.Tensor, weight: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    """Derivative (n, outputs) of the weighted losses; weights (n, 1). Inner steps may run where autograd is off.

    Where it is on and follows the logits, it follows the derivative too: second order needs that.
    """
    follow = torch.is_grad_enabled() and logit.requires_grad
    with torch.inference_mode(mode=False), torch.enable_grad():
        label, weight = label.clone(), weight.clone()
        at = logit if follow else logit.clone().detach().requires_grad_()
        (found,) = torch.autograd.grad((loss(label, at) * weight.squeeze(1)).sum(), at, create_graph=follow)
    return found

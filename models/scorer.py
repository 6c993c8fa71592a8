"""Inference from a snapshot's arrays: immutable, free of side effects, safe to share between threads."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import adaptation, base, embedding, kernels, modes, moments, registry
from state import config

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


class Scored(NamedTuple):
    """Probabilities (n, O) of the plain and of the adapted tower, and how many support rows were adapted on."""

    plain: F32
    adapted: F32
    adapted_on: int


class Scorer:
    """A published model. A row's score does not depend on the rows beside it."""

    def __init__(self, settings: config.Config, arrays: Arrays) -> None:
        """`arrays` are those that `Trainer.serving_names` names; they are used in place and must not change.

        Raises:
            ValueError: an array is missing or does not fit the configuration.
            config.ConfigError: the configuration names an unknown model.
        """
        self.settings, self.model = settings, registry.build(settings)
        self._columns = embedding.columns(settings.features)
        self._salts = kernels.salts(len(self._columns.starts))[self._columns.field_of]
        self._geometry = base.geometry(settings)
        names = ("dense", *embedding.SERVING)
        missing = [n for n in names if n not in arrays]
        if missing:
            raise ValueError(f"snapshot lacks {', '.join(missing)}; it was written by another version or is not whole")
        dense = np.array(arrays["dense"], np.float32)
        if dense.shape != (base.size(self.model.shapes),) or arrays["table"].shape[1] != self._geometry.width + 1:
            raise ValueError("snapshot does not fit the configuration's model; use the configuration it was trained with")
        self._table, self._keys, self._values = (np.array(arrays[n]) for n in ("table", "map.keys", "map.values"))
        self._mean, self._scale = moments.standard(np.array(arrays["moments"]))
        self._parameters = base.views(torch.from_numpy(dense), self.model.shapes)
        self._fast = {name: self._parameters[name] for name in self.model.fast_parameters()}
        self.modes = modes.Modes(settings.meta)
        if "meta.default" in arrays:
            self.modes.load(arrays)

    def score(self, ids: U64, x: F32, scenario: int, support: base.Support | None) -> Scored:
        """Score candidates: ids (n, F), raw numbers (n, D) of one user in one scenario, adapted to `support` if given.

        Adaptation is left out where the scenario's mode is off or the support has fewer than `meta.min_support` rows.
        """
        meta = self.settings.meta
        used = 0
        if support is not None and len(support.ids) >= meta.min_support and self.modes.code(scenario) != modes.OFF:
            used = min(len(support.ids), meta.support_rows)
        inputs = np.empty((len(ids) + used, self._geometry.row), np.float32)
        self._gather(ids, x, inputs[: len(ids)])
        if used and support is not None:
            self._gather(support.ids[-used:], support.x[-used:], inputs[len(ids) :])
        with torch.inference_mode():
            known = self.model.trunk(self._parameters, torch.from_numpy(inputs))
            query = base.MetaInput(*(part[: len(ids)] for part in known))
            plain = torch.sigmoid(self.model.tower(self._fast, query)).numpy()
            if not used or support is None:
                return Scored(plain, plain, 0)
            own = base.MetaInput(*(part[len(ids) :].unsqueeze(0) for part in known))
            label = torch.from_numpy(np.array(support.label[-used:], np.float32)).unsqueeze(0)
            weight = torch.full((1, used), 1.0 / used)
            change = adaptation.adapt(self._fast, own, label, weight, meta.inner_rate, meta.inner_steps)
            logit = adaptation.logits(self._fast, change, base.MetaInput(*(part.unsqueeze(0) for part in query)))
            return Scored(plain, torch.sigmoid(logit[0]).numpy(), used)

    def _gather(self, ids: U64, x: F32, out: F32) -> None:
        rows, columns = np.empty(ids.shape, np.int32), self._columns
        kernels.find(np.array(ids, np.uint64), columns.field_of, self._salts, self._keys, self._values, rows)
        kernels.gather(
            self._table, rows, columns.starts, columns.widths, np.array(x, np.float32), self._mean, self._scale, out
        )  # fmt: skip

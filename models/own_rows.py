"""Ids with a row of their own in every scenario: categories of `model.own_rows` are read as (id, scenario).

Models that were trained apart have different embeddings for the same id, and a table has one row for each id. Where they are
merged (`models.migration`), every scenario keeps the rows that it brought: an id is turned by a word of its scenario before it is
looked up, and what comes after (admission, eviction, first values) sees two ids. Turning does not depend on the category, so that
the keys of a table without own rows become those of one with them (`turned`). The scenario's own id is read as it is.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, kernels
from state import config, spec
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
SALT = np.uint64(0x6F776E5F726F7773)
_BACK1, _BACK2 = np.uint64(0x96DE1B173F119089), np.uint64(0x319642B2D24D8EC3)
"""Inverses of splitmix64's multipliers modulo 2**64."""
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


class OwnRows(NamedTuple):
    """Which of the id columns (F,) have own rows, if any, and the column that holds the scenario, or -1."""

    any: bool
    columns: Mask
    scenario: int

    def apply(self, found: U64) -> U64:
        """Ids (n, F) as the table knows them; `found` itself where no category has own rows."""
        return _turn(found, self.columns, self.scenario) if self.any else found


def plan(settings: config.Config) -> OwnRows:
    """The columns that a configuration declares; a category that shares another's embeddings goes with it."""
    wanted, features = settings.model.own_rows, settings.features
    declared = [(c.share or c.name) in wanted for c in features.categories for _ in range(c.max_values)]
    position = base.geometry(settings).scenario
    at = spec.id_columns(features)[position].start if position >= 0 else -1
    return OwnRows(any(declared) and at >= 0, np.array(declared, np.bool_), at)


def turned(keys: U64, scenario: int) -> U64:
    """Keys of an id map (n,) as they are once the ids belong to a scenario (its hash)."""
    return _turned(keys, np.uint64(scenario))


@kernel
def _word(scenario: np.uint64) -> np.uint64:
    return kernels.mix(scenario ^ SALT)


@kernel
def _turn(found: U64, columns: Mask, scenario: int) -> U64:
    """Ids (n, F), those of the columns turned by the word of the row's scenario."""
    out = found.copy()
    for i in range(len(out)):
        word = _word(found[i, scenario])
        for f in range(out.shape[1]):
            if columns[f] and out[i, f] != kernels.PAD:
                turned = out[i, f] ^ word
                # No id is PAD, which says that there is none.
                out[i, f] = turned if turned != kernels.PAD else kernels.PAD - np.uint64(1)
    return out


@kernel
def _turned(keys: U64, scenario: np.uint64) -> U64:
    """Undo the mixing of each key, turn what was mixed, mix again (Steele et al. 2014, the finaliser of splitmix64)."""
    out, word = np.empty_like(keys), _word(scenario)
    for i in range(len(keys)):
        z = keys[i] ^ (keys[i] >> _S31) ^ (keys[i] >> (_S31 + _S31))
        z = z * _BACK2
        z = z ^ (z >> _S27) ^ (z >> (_S27 + _S27))
        z = z * _BACK1
        z = z ^ (z >> _S30) ^ (z >> (_S30 + _S30))
        out[i] = kernels.mix(z ^ word)
    return out

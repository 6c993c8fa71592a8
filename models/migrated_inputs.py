"""What enters the network of a model that takes others over: rows of ids, gains, and how numbers are standardised."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models import base, donors, embedding, id_map, kernels, moments, own_gains, own_rows, scenario_slots
from state import config, ids

F64 = npt.NDArray[np.float64]
Made = dict[str, npt.NDArray[Any]]
IN_FULL = 2**30
"""A scenario with so many times `scenarios.prior_rows` rows has earned a share of 1 to the last bit of a float32."""
LEAST_OWN = 0.5
"""An own scale of numbers below this share of the one that it has to make up with the shared one is not asked for."""


def slots(settings: config.Scenarios, scenarios: Sequence[str]) -> Made:
    """Slots 1, 2, ... for the scenarios, in order, which count in full."""
    made = scenario_slots.Slots(settings)
    for name in scenarios:
        made.admit(np.array([ids.of(name)], np.uint64))
    made.rows[1 : len(scenarios) + 1] = math.ceil(settings.prior_rows * IN_FULL)
    return made.arrays()


def gains(given: Sequence[donors.Donor], new: config.Config) -> Made:
    """What each scenario makes of the embeddings, with its sums of gradients: without those it would be lost at once."""
    out, after = own_gains.Gains(new).arrays(), base.geometry(new).embedded
    for slot, donor in enumerate(given, 1):
        before = base.geometry(donor.settings).embedded
        for name, own in out.items():
            mine = donor.arrays[name][donor.slot]
            own[slot, :before], own[slot, after : after + len(mine) - before] = mine[:before], mine[before:]
    return out


def table(given: Sequence[donors.Donor], new: config.Config) -> Made:
    """Embeddings and the map of ids, those of one model after the other; rows that nobody owns are left out.

    Raises:
        config.ConfigError: there are too many rows, or ids without a row mean different things to the models.
    """
    fields = _fields(new)
    rows, squares = _unknown(given, new, fields)
    entries, above, shared, sums = [], fields, [rows], [squares]
    for donor in given:
        found = donor.arrays["map.values"]
        keys, values, seen = (donor.arrays[f"map.{name}"][found != 0] for name in ("keys", "values", "seen"))
        if new.model.own_rows:
            keys = _turned(donor, keys)
        owned = np.sort(values[values > 0])
        placed = np.where(values > 0, np.searchsorted(owned, values) + above + 1, values).astype(np.int32)
        entries.append((keys, placed, seen))
        shared.append(donor.arrays["table"][owned - 1])
        sums.append(donor.arrays["accumulator"][owned - 1])
        above += len(owned)
    if above - fields > new.embedding.capacity:
        raise config.ConfigError(f"embedding.capacity: must be at least {above - fields}, the rows of the old models")
    columns = [np.concatenate(part) for part in zip(*entries, strict=True)]
    counts = [donor.arrays["map.counts"] for donor in given]
    return {"table": np.concatenate(shared), "accumulator": np.concatenate(sums), **_map(columns, counts, above, fields)}


def _turned(donor: donors.Donor, keys: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Keys with own rows; that of the scenario's own id is as it was."""
    known = embedding.columns(donor.settings)
    column, scenario = known.of(base.geometry(donor.settings).scenario), np.uint64(ids.of(donor.scenario))
    out = own_rows.turned(np.array(keys), int(scenario))
    if column >= 0:
        stays = keys == kernels.mix(scenario ^ kernels.salts(_fields(donor.settings))[known.field_of[column]])
        out[stays] = keys[stays]
    return out


def _fields(settings: config.Config) -> int:
    return int(embedding.columns(settings).field_of.max()) + 1


def _unknown(given: Sequence[donors.Donor], new: config.Config, fields: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The rows that speak for ids without one, and their accumulators: all models must agree on them."""
    rows = np.zeros((len(given), fields, new.model.embedding_width + 1), np.float32)
    squares = np.full((fields, 2), new.optimizer.embedding_accumulator, np.float32)
    for i, donor in enumerate(given):
        known = _fields(donor.settings)
        rows[i, :known], squares[:known] = donor.arrays["table"][:known], donor.arrays["accumulator"][:known]
    differ = np.flatnonzero((rows != rows[0]).any((0, 2)))
    if len(differ):
        raise config.ConfigError(
            f'embedding.admit_after: the old models have learned different values for ids of "{_named(new, int(differ[0]))}" '
            "without a row, and one model has one for all scenarios; take models that were trained with admit_after = 1"
        )
    return rows[0], squares


def _named(settings: config.Config, field: int) -> str:
    column = int(np.flatnonzero(embedding.columns(settings).field_of == field)[0])
    return settings.features.categories[int(embedding.columns(settings).category[column])].name


def _map(columns: Sequence[npt.NDArray[Any]], counts: Sequence[npt.NDArray[Any]], above: int, fields: int) -> Made:
    size, used = id_map.FIRST_SLOTS, len(columns[0])
    while used > id_map.MAX_LOAD * size:
        size *= 2
    keys, values, seen = np.zeros(size, np.uint64), np.zeros(size, np.int32), np.zeros(size, np.int64)
    kernels.insert(columns[0], columns[1], columns[2], keys, values, seen)
    total = np.sum(counts, 0)
    for place in (id_map.CLOCK, id_map.SWEPT):
        total[place] = max(int(count[place]) for count in counts)
    total[id_map.HIGH], total[id_map.USED], total[id_map.ADMITTED], total[id_map.FREE] = above, used, above - fields, 0
    return {"map.keys": keys, "map.values": values, "map.seen": seen, "map.counts": total, "map.free": np.zeros(0, np.int32)}


def standard(given: Sequence[donors.Donor], new: config.Config) -> Made:
    """Moments of numbers with which every scenario's are standardised as its model standardised them.

    With `model.moments = "scenario"` a scenario's own value counts n / (n + prior) for its n rows with the number, and the rest
    is the shared one's, by the moments of all models' rows: the own ones are what it takes to get the old value of the two. So
    nothing jumps, and all of it is forgotten as ever.
    """
    names = base.geometry(new).numbers
    shared, observed = np.zeros((3, len(names))), np.zeros((new.scenarios.slots + 1, moments.KEPT, len(names)))
    places = [[names.index(name) for name in base.geometry(donor.settings).numbers] for donor in given]
    for donor, at in zip(given, places, strict=True):
        shared[:, at] = _pooled(shared[:, at], donor.arrays["moments"])
    for slot, (donor, at) in enumerate(zip(given, places, strict=True), 1):
        own = np.array(donor.arrays["moments.observed"][donor.slot], np.float64)
        if new.model.moments == "scenario":
            own = _solved(own, _standard_of(donor), shared[:, at], new.scenarios.prior_rows)
        observed[slot][:, at] = own
    return {"moments": shared, "moments.observed": observed}


def _standard_of(donor: donors.Donor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and 1 / standard deviation (D,) by which a model standardises its scenario's numbers."""
    shared, observed = (np.array(donor.arrays[name], np.float64) for name in ("moments", "moments.observed"))
    if donor.settings.model.moments == "shared":
        return moments.standard(shared)
    mean, scale = moments.standards(shared, observed, donor.settings.scenarios.prior_rows)
    return mean[donor.slot], scale[donor.slot]


def _pooled(one: F64, other: npt.NDArray[Any]) -> F64:
    """Moments (3, D) of the rows of both (Chan et al. 1979)."""
    weight = one[0] + other[0]
    share = np.divide(other[0], weight, out=np.zeros_like(weight), where=weight > 0)
    apart = other[1] - one[1]
    return np.array([weight, one[1] + apart * share, one[2] + other[2] + apart * apart * one[0] * share])


def _solved(own: F64, wanted: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], shared: F64, prior: float) -> F64:
    """Own moments (KEPT, D) that together with the shared ones (3, D) standardise by the mean and scale that are wanted.

    Where the own scale could not make up for the shared one, the scenario's rows count for as many as it takes to be alone.
    """
    out = own.copy()
    for j, (middle, scale) in enumerate(zip(*(part.astype(np.float64).tolist() for part in wanted), strict=True)):
        variance = shared[2, j] / shared[0, j] if shared[0, j] > 0 else 1.0
        by, most = 1.0 / math.sqrt(max(variance, moments.LEAST_VARIANCE)), 1.0 / math.sqrt(moments.LEAST_VARIANCE)
        n = float(own[moments.PRESENT, j])
        for rows in (n, IN_FULL * prior):
            mine = (scale * (rows + prior) - prior * by) / rows if rows > 0 else 0.0
            if LEAST_OWN * scale <= mine <= min(most, rows * by):
                break
        out[:, j] *= rows / n if n > 0 else 0.0
        out[moments.PRESENT, j], out[moments.SQUARES, j] = rows, rows / (mine * mine)
        out[moments.MEAN, j] = (middle * scale * (rows + prior) - prior * by * shared[1, j]) / (rows * mine)
    return out

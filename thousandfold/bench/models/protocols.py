"""The three protocols: what is trained on, in which order, and which rows count.

P (prequential): one pass in order of time, predicted before trained on; the protocol that counts. C (chronological): one pass
up to a cut, then scored as it stands. R (random 8:1:1 of the rows): what the public benchmark does; it trains on the future, so
its figures are for comparison with others' figures only. C and R read ids and raw attributes: no counters, no behaviour.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import step
from models import base, losses
from state import config as configuration
from state import ids, spec
from thousandfold.bench import logs, protocol

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
PROTOCOLS = ("P", "C", "R")
TRAIN, VALID = 0.8, 0.1
ML1M_CUTS_MS = (975_768_738_000, 978_133_376_000)
"""Last millisecond of training and of validation, on MovieLens-1M."""
SCORE_ROWS = 8_192


class Plan(NamedTuple):
    """Inputs in the order in which they are read, lists `until` which labels are learned, and the rows (R,) that count.

    With `epochs` above 0 lists are single rows without support: they are trained on in so many passes over [0, until), each
    in another order, and the one that validates best, on [until, valid), is kept.
    """

    name: str
    inputs: protocol.Inputs
    counted: npt.NDArray[np.bool_]
    until: int
    valid: int
    epochs: int = 0


def identities(config: configuration.Config) -> configuration.Config:
    """The configuration with ids and raw attributes only: no counters, recent behaviour or places in the list."""
    still = tuple(c for c in config.features.categories if not spec.behaviour(c))
    features = spec.Features(categories=still, numbers=config.features.numbers)
    kept = {c.name for c in features.categories} | set(spec.number_names(features))
    read = tuple(name for name in config.model.scenario_features if name in kept)
    model = msgspec.structs.replace(config.model, scenario_features=read)
    return msgspec.structs.replace(config, features=features, model=model)


def settings_of(config: configuration.Config, name: str) -> configuration.Config:
    """The configuration under which a protocol runs; R has no order of time and so neither support nor adaptation.

    Raises:
        LogError: there is no such protocol, or R is asked of a ranking objective.
    """
    if name not in PROTOCOLS:
        raise logs.LogError(f"--protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    for objective in config.objectives:
        if objective.kind == "ranking" and name == "R":
            raise logs.LogError(
                f'objective "{objective.name}" ranks the rows of a list, and R reads single rows; use P or C, or leave it out'
            )
    if name == "P":
        return config
    config = identities(config)
    if name == "C":
        return config
    return msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, mode="off", scenarios={}))


def masked(config: configuration.Config, inputs: protocol.Inputs) -> protocol.Inputs:
    """The inputs with NaN for labels of objectives that do not exist in a row's scenario (`objectives.scenarios`)."""
    label, of_row = inputs.label.copy(), np.repeat(inputs.scenario, np.diff(inputs.start))
    for o, objective in enumerate(config.objectives):
        if objective.scenarios:
            there = np.isin(of_row, [np.uint64(ids.of(name)) for name in objective.scenarios])
            label[~there, o] = np.nan
    return inputs._replace(label=label)


def plan(
    name: str, inputs: protocol.Inputs, burn_in: float, epochs: int = 1, cuts_ms: tuple[int, int] | None = None, seed: int = 0
) -> Plan:
    """A protocol over prepared inputs; without `cuts_ms`, C cuts by share of the rows.

    Raises:
        LogError: a part has no rows.
    """
    lists, rows = len(inputs.ts), np.arange(inputs.rows)
    if name == "P":
        return Plan(name, inputs, rows >= round(burn_in * inputs.rows), lists, lists)
    if name == "R":
        order = np.random.default_rng(seed).permutation(inputs.rows)
        until, valid = round(TRAIN * inputs.rows), round((TRAIN + VALID) * inputs.rows)
        planned = Plan(name, _single_rows(inputs, order), rows >= valid, until, valid, epochs)
    else:
        until, valid = _cuts(inputs, cuts_ms)
        planned = Plan(name, inputs, rows >= inputs.start[valid], until, valid)
    if not 0 < until < valid < len(planned.inputs.ts):
        raise logs.LogError(f"protocol {name}: training, validation or test has no rows; use more of the log")
    return planned


def _cuts(inputs: protocol.Inputs, cuts_ms: tuple[int, int] | None) -> tuple[int, int]:
    if cuts_ms is not None:
        return int(np.searchsorted(inputs.ts, cuts_ms[0], "right")), int(np.searchsorted(inputs.ts, cuts_ms[1], "right"))
    shares = [TRAIN * inputs.rows, (TRAIN + VALID) * inputs.rows]
    # Lists of one time stay on one side.
    at = [inputs.ts[min(int(np.searchsorted(inputs.start, share)), len(inputs.ts) - 1)] for share in shares]
    first, second = (int(np.searchsorted(inputs.ts, t, "left")) for t in at)
    return first, second


def _single_rows(inputs: protocol.Inputs, order: I64) -> protocol.Inputs:
    """Every row as a list of its own, in this order; labels of all earlier ones are known."""
    of = np.repeat(np.arange(len(inputs.ts)), np.diff(inputs.start))[order]
    n = np.arange(len(order) + 1)
    return inputs._replace(
        request=inputs.request[of], user=inputs.user[of], scenario=inputs.scenario[of], task=inputs.task[of], ts=inputs.ts[of],
        start=n, known=n[:-1], item=inputs.item[order], group=inputs.group[order], ids=inputs.ids[order], x=inputs.x[order],
        label=inputs.label[order], lag=protocol.Lag(),
    )  # fmt: skip


def of_scenario(whole: Plan, scenario: int) -> tuple[Plan, npt.NDArray[np.bool_]]:
    """The plan of one scenario alone, and which rows (R,) of the whole it has."""
    return of_lists(whole, whole.inputs.scenario == scenario)


def reordered(d: protocol.Inputs, lists: I64) -> protocol.Inputs:
    """The inputs with these lists, in this order; `known` still counts lists of the old one."""
    n = np.diff(d.start)[lists]
    start = np.r_[0, np.cumsum(n)]
    rows = np.repeat(d.start[lists] - start[:-1], n) + np.arange(start[-1])
    return d._replace(
        request=d.request[lists], user=d.user[lists], scenario=d.scenario[lists], task=d.task[lists], ts=d.ts[lists],
        start=start, known=d.known[lists], item=d.item[rows], group=d.group[rows], ids=d.ids[rows], x=d.x[rows],
        label=d.label[rows],
    )  # fmt: skip


def of_lists(whole: Plan, chosen: npt.NDArray[np.bool_]) -> tuple[Plan, npt.NDArray[np.bool_]]:
    """The plan of the lists (L,) `chosen`, and which rows (R,) of the whole it has. Labels are known as late as in the whole."""
    d = whole.inputs
    lists = np.flatnonzero(chosen)
    rows = np.repeat(chosen, np.diff(d.start))
    until, valid = (int(np.searchsorted(lists, n)) for n in (whole.until, whole.valid))
    inputs = reordered(d, lists)
    inputs = inputs._replace(known=np.searchsorted(lists, inputs.known))
    return whole._replace(inputs=inputs, counted=whole.counted[rows], until=until, valid=valid), rows


def run(config: configuration.Config, planned: Plan, trainer: step.Trainer, tell: protocol.Tell | None = None) -> F32:
    """Predictions (R, outputs) of every row that counts, as served (`losses.predictions`); other rows may be NaN.

    Raises:
        FloatingPointError: a step was skipped, or a prediction of a row that counts is not finite.
    """
    if planned.epochs:
        found = _epochs(config, planned, trainer, tell)
    else:
        since = planned.valid if planned.until < len(planned.inputs.ts) else 0
        found = protocol.run(config, planned.inputs, tell, trainer, planned.until, since=since).adapted
    bad = ~np.isfinite(found[planned.counted])
    if bad.any():
        raise FloatingPointError(f"{int(bad.sum())} predictions are not finite; lower the rates in [optimizer]")
    return found


def _epochs(config: configuration.Config, planned: Plan, trainer: step.Trainer, tell: protocol.Tell | None) -> F32:
    d, best, goal = planned.inputs, -np.inf, losses.plan(config.objectives)
    out = np.full((d.rows, goal.outputs), np.nan, np.float32)
    random = np.random.default_rng(config.learner.seed)
    held = slice(planned.until, planned.valid)
    now = int(d.ts.max())
    for epoch in range(planned.epochs):
        order = random.permutation(planned.until)
        for at in range(0, planned.until, config.learner.rows_per_step):
            chosen = order[at : at + config.learner.rows_per_step]
            done = trainer.step(_rows(d, chosen), now)
            if done.skipped:
                raise FloatingPointError(f"epoch {epoch + 1}, row {at}: {done.skipped}; lower the rates in [optimizer]")
            if tell is not None:
                tell(epoch * planned.until + at + len(chosen), planned.epochs * planned.until)
        judged = _score(trainer, d, held)
        worth = -_loss(goal, d.label[held], judged)
        if not worth > best:
            break
        best = worth
        out[planned.valid :] = _score(trainer, d, slice(planned.valid, len(d.ts)))
    return out


def _loss(goal: losses.Plan, label: F32, score: F32) -> float:
    """Of predictions (n, outputs), the mean over the labels (n, O) that exist: nats, of a regression half the squared error."""
    found = []
    for o, part in enumerate(goal.parts):
        there = np.isfinite(label[:, o])
        y, p = label[there, o], score[there, part.at : part.at + part.width].astype(np.float64)
        if part.kind == "multiclass":
            found.append(-np.log(np.clip(p[np.arange(len(y)), y.astype(np.int64)], 1e-7, 1)))
        elif part.kind == "regression":
            found.append(0.5 * (losses.seen(part, p[:, 0]) - losses.seen(part, y)) ** 2)
        else:
            p = np.clip(p[:, 0], 1e-7, 1 - 1e-7)
            found.append(-np.where(y > 0, np.log(p), np.log1p(-p)))
    return float(np.mean(np.concatenate(found)))


def _score(trainer: step.Trainer, d: protocol.Inputs, part: slice) -> F32:
    rows = np.arange(part.start, part.stop)
    return np.concatenate([trainer.score(_rows(d, rows[at : at + SCORE_ROWS])).adapted for at in range(0, len(rows), SCORE_ROWS)])


def _rows(d: protocol.Inputs, chosen: I64) -> base.Batch:
    """Rows as lists of one without support."""
    label, ones, none = d.label[chosen], np.ones(len(chosen), np.int64), np.zeros(len(chosen), np.int64)
    return base.Batch(
        d.ids[chosen], d.x[chosen], label, np.ones_like(label), d.scenario[chosen], ones, none,
        d.ids[:0], d.x[:0], d.label[:0],
    )  # fmt: skip

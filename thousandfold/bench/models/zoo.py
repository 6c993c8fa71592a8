"""Who takes part, and what each made of the log: models of the table, variants of one, their single models, the baselines."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import step
from models import losses, plugins, registry
from state import config as configuration
from thousandfold.bench import baselines, kept, logs, protocol, quality
from thousandfold.bench.models import gates, protocols

F32 = npt.NDArray[np.float32]
ALONE, SOLO, GATE = "alone", "solo", "gate "
AT_ONCE = "_at_once"
"""Ends the names of models whose scenarios' own parameters count in full from their first row."""
AT_ONCE_ROWS = 1e-3
REFERENCES = (ALONE, SOLO)
BASELINES = ("fm32", "bias")
FLOORS = ("fm", "lr")
"""Models of the table that are there to be beaten: never the best."""
NO_GATES: dict[str, object] = {"use_epnet": False, "use_ppnet": False}


class Entrant(NamedTuple):
    """A name in the tables, and the configuration that it stands for."""

    name: str
    config: configuration.Config


class Result(NamedTuple):
    """Of one entrant: predictions (R, outputs) by seed, seconds a pass, numbers learned, megabytes of them and the optimiser.

    `problem` says why there are no predictions, or is empty. `gates` are those of the first seed (`gates.values`).
    """

    predictions: list[F32]
    seconds: float
    parameters: int
    memory_mb: float
    gates: dict[str, F32]
    problem: str = ""


def chosen(config: configuration.Config, names: Sequence[str]) -> list[Entrant]:
    """Models by name, a user's own by its path ("package.module:Model"), all of the table without names, under one configuration.

    Raises:
        LogError: there is no such model in the table.
        ConfigError: the user's own cannot be imported or breaks the contract.
    """
    found = [Entrant(name, quality.override(config, "model.name", name)) for name in names or registry.MODELS]
    for name, own in found:
        if plugins.is_path(name):
            registry.build(own)
        elif name not in registry.MODELS:
            there = f'the table has {", ".join(registry.MODELS)}; your own is "package.module:Model"'
            raise logs.LogError(f'--models: "{name}" is unknown; {there}')
    return found


def at_once(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The same models where scenarios need not earn what they own: what starves a small one."""
    return [Entrant(e.name + AT_ONCE, quality.override(e.config, "scenarios.prior_rows", AT_ONCE_ROWS)) for e in entrants]


def ablations(config: configuration.Config) -> list[Entrant]:
    """P5: PEPNet without its parts, with other gates, depths and widths; the configuration's own values are not repeated."""
    model = msgspec.structs.replace(config.model, name="pepnet")
    config = msgspec.structs.replace(config, model=model)
    variants: dict[str, dict[str, object]] = {
        "pepnet": {},
        "no_epnet": {"use_epnet": False},
        "no_ppnet": {"use_ppnet": False},
        "no_gates": NO_GATES,
        "gradient_through_gates" if model.stop_gradient else "stop_gradient": {"stop_gradient": not model.stop_gradient},
        **{f"gamma_{g:g}": {"gamma": g} for g in (1.0, 1.5, 2.0, 3.0, 4.0)},
        **{f"depth_{d}": {"hidden": (64,) * (d - 1) + (32,)} for d in range(1, 6)},
        **{f"width_{w}": {"embedding_width": w} for w in (4, 8, 16, 32)},
        **{f"wide_{w}": {"wide": w} for w in ("off", "product", "fm")},
    }
    return [
        Entrant(name, msgspec.structs.replace(config, model=msgspec.structs.replace(model, **changed)))
        for name, changed in variants.items()
        if name == "pepnet" or any(getattr(model, key) != value for key, value in changed.items())
    ]


def single(config: configuration.Config) -> configuration.Config:
    """The network that each scenario has for itself: the shared bottom, or PEPNet without gates where the table lacks it."""
    changes: dict[str, object] = (
        {"name": "shared_bottom"} if "shared_bottom" in registry.MODELS else {"name": "pepnet", **NO_GATES}
    )
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, **changes))


class Bench:
    """One protocol on one log: passes of entrants, kept in a folder so that an interrupted benchmark goes on where it was."""

    def __init__(
        self, planned: protocols.Plan, seeds: Sequence[int], folder: pathlib.Path | None = None, resume: bool = False,
        progress: quality.Progress | None = None,
    ) -> None:  # fmt: skip
        """`folder` is one for finished passes; they are read again with `resume` if configuration and inputs are the same."""
        self.plan, self.seeds, self._kept, self._resume = planned, seeds, folder, resume
        self._progress = progress or quality.Progress()
        self._digest = kept.digest(planned.inputs, planned.name, planned.until, planned.valid, planned.epochs)

    def model(self, entrant: Entrant) -> Result:
        """Every seed of a model."""
        return self._seeds(entrant, lambda config, name: self._pass(config, name, self.plan))

    def alone(self, entrant: Entrant) -> Result:
        """The network trained on each scenario's rows only, its blocks as long in time as the others'; nothing is shared."""
        return self._seeds(entrant, lambda config, name: self._scenarios(config, name, self.plan))

    def solo(self, entrant: Entrant) -> Result:
        """The network trained on each scenario's rows and one objective's labels only: objectives share nothing either."""
        return self._seeds(entrant, self._objectives)

    def _seeds(self, entrant: Entrant, one: Callable[[configuration.Config, str], Result]) -> Result:
        found = []
        for seed in self.seeds:
            config = quality.override(entrant.config, "learner.seed", seed)
            try:
                found.append(self._stored(config, f"{entrant.name}, seed {seed}", one))
            except (FloatingPointError, configuration.ConfigError) as error:
                return Result([], np.nan, 0, np.nan, {}, f"{entrant.name}, seed {seed}: {error}")
        seconds = float(np.mean([r.seconds for r in found]))
        return Result([r.predictions[0] for r in found], seconds, found[0].parameters, found[0].memory_mb, found[0].gates)

    def _stored(self, config: configuration.Config, name: str, one: Callable[[configuration.Config, str], Result]) -> Result:
        def make() -> kept.Arrays:
            result = one(config, name)
            own = {f"{GATE}{gate}": values for gate, values in result.gates.items()}
            figures = np.array([result.seconds, result.parameters, result.memory_mb])
            return {"prediction": result.predictions[0], "figures": figures, **own}

        arrays = kept.arrays(self._kept, self._resume, self._digest, name, config, make)
        seconds, parameters, memory = arrays["figures"].tolist()
        gated = {name.removeprefix(GATE): values for name, values in arrays.items() if name.startswith(GATE)}
        return Result([arrays["prediction"]], seconds, int(parameters), memory, gated)

    def _pass(self, config: configuration.Config, name: str, planned: protocols.Plan) -> Result:
        began = time.perf_counter()
        trainer = step.Trainer(config)
        prediction = protocols.run(config, planned, trainer, self._progress.stage(f"{planned.name}: {name}"))
        seconds = time.perf_counter() - began
        arrays = trainer.arrays()
        numbers = trainer.dense.size + arrays["table"].size
        memory = sum(a.nbytes for a in arrays.values()) / 1e6
        return Result([prediction], seconds, int(numbers), memory, gates.values(gates.of_trainer(trainer), planned.inputs))

    def _objectives(self, config: configuration.Config, name: str) -> Result:
        d = self.plan.inputs
        results = []
        for o, objective in enumerate(config.objectives):
            # Alone it is weighed against nobody.
            own = msgspec.structs.replace(config, objectives=(msgspec.structs.replace(objective, loss_weight=1.0),))
            planned = self.plan._replace(inputs=d._replace(label=np.ascontiguousarray(d.label[:, o : o + 1])))
            results.append(self._scenarios(own, f"{name}, {objective.name}", planned))
        return _together(np.concatenate([r.predictions[0] for r in results], 1), results)

    def _scenarios(self, config: configuration.Config, name: str, of: protocols.Plan) -> Result:
        whole = of.inputs
        out = np.full((whole.rows, losses.plan(config.objectives).outputs), np.nan, np.float32)
        results = []
        for scenario in np.unique(whole.scenario).tolist():
            planned, rows = protocols.of_scenario(of, scenario)
            if np.isnan(planned.inputs.label).all():
                continue
            block = max(1, round(config.quality.block_rows * rows.mean()))
            own = quality.override(config, "quality.block_rows", block)
            results.append(self._pass(own, f"{name}, {whole.scenarios[scenario]}", planned))
            out[rows] = results[-1].predictions[0]
        return _together(out, results)

    def baselines(self, config: configuration.Config) -> Iterator[tuple[str, Result]]:
        """The factorisation machine at batch 32, as late as the models, and the bias per event; one pass in every protocol."""
        q, inputs = config.quality, self.plan.inputs
        distinct = sum(len(np.unique(column)) for column in inputs.ids.T) + inputs.x.shape[1]
        people = len(np.unique(inputs.user)) + len(np.unique(inputs.item))

        def fm(d: protocol.Inputs, linear: bool, seed: int) -> F32:
            if self.plan.epochs:
                return baselines.fm32(d, 0, q.fm_live_rate, q.fm_width, seed, linear=linear)
            return baselines.fm32(protocol.blocked(d, q.block_rows), 0, q.fm_rate, q.fm_width, seed, linear=linear)

        def bias(d: protocol.Inputs, linear: bool) -> F32:
            return baselines.bias(d, 0, q.bias_rate, linear=linear)

        def machine(own: configuration.Config, _: str) -> Result:
            return self._baseline(own, functools.partial(fm, seed=own.learner.seed), distinct * (q.fm_width + 1) + 1)

        yield "fm32", self._seeds(Entrant("fm32", config), machine)
        yield "bias", self._stored(config, "bias", lambda own, _: self._baseline(own, bias, people + 1))

    def _baseline(self, config: configuration.Config, model: Callable[[protocol.Inputs, bool], F32], size: int) -> Result:
        """One pass of a baseline that learns `size` numbers for each output."""
        began = time.perf_counter()
        found = self._all(config, model)
        size *= found.shape[1]
        return Result([found], time.perf_counter() - began, size, 8 * size / 1e6, {})

    def _all(self, config: configuration.Config, model: Callable[[protocol.Inputs, bool], F32]) -> F32:
        """(R, outputs) of a baseline of one output, by kind: of several classes one for each against the others, of a ranking
        whether a row was acted on, of a regression (`linear`) the value as its loss sees it.
        """
        columns = []
        for o, part in enumerate(losses.plan(config.objectives).parts):
            label = self.plan.inputs.label[:, o]
            if part.kind == "multiclass":
                told = [self._where_there(_same(label, c), lambda d: model(d, False)) for c in range(part.width)]
                columns += list(np.stack(told) / np.sum(told, axis=0))
            elif part.kind == "regression":
                columns.append(losses.value(part, self._where_there(losses.seen(part, label), lambda d: model(d, True))))
            else:
                own = np.sign(label) if part.kind == "ranking" else label
                columns.append(self._where_there(own, lambda d: model(d, False)))
        return np.stack(columns, 1)

    def _where_there(self, label: F32, model: Callable[[protocol.Inputs], F32]) -> F32:
        """A baseline that learns labels (R,) on the lists that have one; NaN elsewhere."""
        d = self.plan.inputs
        out = np.full(d.rows, np.nan, np.float32)
        planned, rows = protocols.of_lists(self.plan, np.logical_or.reduceat(np.isfinite(label), d.start[:-1]))
        told = planned.inputs._replace(label=np.ascontiguousarray(label[rows, None]))
        out[rows] = model(protocol.frozen(told, planned.until))
        return out


def _same(label: F32, value: int) -> F32:
    """1 where labels (R,) are `value`, else 0; NaN stays."""
    return np.where(np.isnan(label), label, label == value).astype(np.float32)


def _together(prediction: F32, results: Sequence[Result]) -> Result:
    """Several networks as one entrant."""
    seconds, memory = sum(r.seconds for r in results), sum(r.memory_mb for r in results)
    return Result([prediction], seconds, sum(r.parameters for r in results), memory, {})

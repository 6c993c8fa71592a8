"""Simulated worlds in which adaptation must gain, and must not: what belongs to a user is planted there, or is not."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import areas, grids, logs, pages, protocol, quality, report
from thousandfold.bench.meta import decisions, gains, study
from thousandfold.bench.meta.parts import Parts, parts
from thousandfold.data import simulator, worlds

PLANTED = "planted"
WORLDS = {PLANTED: worlds.PLANTED, "unplanted": worlds.UNPLANTED}
ROWS = 100_000
ORACLE = "oracle"
SHARE_TARGET, NOISE = 0.5, 2.0
"""Of the way to the oracle that the largest supports must have gone; errors that a gain must exceed to be one."""


class World(NamedTuple):
    """What was measured in one world; among the runs is `oracle`, the true probability of every click.

    `auto` is what the policy decides, one a seed, `stopped` what it decides where adaptation was on before.
    """

    name: str
    found: study.Study
    auto: list[decisions.Decision]
    stopped: list[decisions.Decision]

    def over_none(self, variant: str, part: str) -> areas.Difference:
        """AUC over no adaptation."""
        return self.found.table[variant, part].over_none("auc")

    def share(self, variant: str, part: str) -> float:
        """How far from no adaptation to the oracle, in AUC."""
        return self.over_none(variant, part).value / self.over_none(ORACLE, part).value


def log_of(config: configuration.Config, settings: simulator.Settings, rows: int, seed: int) -> tuple[logs.Log, gains.F32]:
    """A log of so many rows, and the true probability of each."""
    made, found, held = simulator.Simulator(settings, seed), [], 0
    for block in made.events():
        found.append(block)
        held += len(block.item)
        if held >= rows:
            break
    log = logs.head(logs.from_blocks(config, made.world, found), rows)
    return log, np.concatenate([block.truth for block in found])[: log.rows]


def measure(name: str, rows: int, seeds: int, progress: quality.Progress, store: gains.Store = gains.NOWHERE) -> World:
    """Run the configured algorithm and the baselines in one world."""
    config = configuration.load(specs.path(PLANTED))
    log, truth = log_of(config, WORLDS[name], rows, seed=0)
    inputs = protocol.prepare(config, log, protocol.Lag(), progress.stage(f"{name}: features"))
    variants = [gains.FINE_TUNE, config.meta.algorithm]
    seeds_of = dict.fromkeys(gains.VARIANTS, seeds)
    runs = gains.measure(config, inputs, variants, _settings(config), seeds_of, progress, store)
    runs[decisions.AUTO], auto = decisions.run(config, inputs, seeds, progress, store)
    _, stopped = decisions.run(config, inputs, seeds, progress, store, begins_on=True)
    runs[ORACLE] = gains.Run([truth] * seeds, [truth] * seeds, 0.0)
    where = parts(config, inputs)._replace(decile={}, scenario={})
    table = study.tell(inputs, runs, where)
    return World(name, study.Study(name, runs, where, table, config.meta.algorithm), auto, stopped)


def _settings(config: configuration.Config) -> dict[str, gains.Settings]:
    own = {key: getattr(config.meta, key) for key in ("inner_rate", "prior_rows", "support_rows")}
    return {gains.FINE_TUNE: own, config.meta.algorithm: own}


def rows_of(made: list[World], command: str) -> list[report.Row]:
    """Every figure, and the bars: the gain grows with the support and goes towards the oracle; nothing planted, no gain."""
    out: list[report.Row] = []
    for world in made:
        judged = world.found.judged
        if world.name == PLANTED:
            steps = [world.share(judged, part) for part in _filled(world.found.where)]
            least = min(b - a for a, b in itertools.pairwise(steps))
            out.append(report.row("bar/planted/least_growth", least, "share of the way", target=0.0, command=command))
            out.append(
                report.row("bar/planted/share_of_oracle", steps[-1], "share of the way", target=SHARE_TARGET, command=command)
            )  # fmt: skip
        else:
            gain = world.found.table[judged, ""].gain("auc")
            value = gain.value / gain.stderr
            out.append(
                report.row("bar/unplanted/gain", value, "standard errors", better="lower", target=NOISE, command=command)
            )  # fmt: skip
        out += [*_decided(world, command), *study.rows_of(world.found, command)]
    return out


def _decided(world: World, command: str) -> Iterator[report.Row]:
    """What `auto` decided: it ends on where something is planted, and never comes on where nothing is."""
    name, change = f"auto/{world.name}", "lists until its first change"
    on = [float(d.on) for d in world.auto]
    adapted = [d.adapted / d.lists for d in world.auto]
    if world.name == PLANTED:
        yield report.row(f"bar/{name}/ends_on", on, "share of the seeds", target=1.0, command=command)
        yield report.row(f"{name}/adapted", adapted, "share of the lists", command=command)
        yield report.row(f"{name}/off_until", [d.first_change for d in world.auto], change, better="lower", command=command)
    else:
        yield report.row(
            f"bar/{name}/adapted", adapted, "share of the lists", better="lower", target=0.0, command=command
        )  # fmt: skip
        yield report.row(f"{name}/ends_on_after_on", [float(d.on) for d in world.stopped], "share of the seeds", command=command)
        yield report.row(
            f"{name}/on_until", [d.first_change for d in world.stopped], f"{change}, from on", better="lower", command=command
        )  # fmt: skip


def _filled(where: Parts) -> list[str]:
    return [part for part, rows in where.support.items() if rows.any()]


def table(world: World) -> grids.Grid:
    """AUC over no adaptation by support rows, and how far towards the oracle."""
    filled = _filled(world.found.where)
    heads = [
        "variant",
        "all",
        *(f"{part.rpartition('/')[2]} ({int(world.found.where.support[part].sum()):,})" for part in filled),
    ]
    rows = []
    for variant in world.found.runs:
        if variant != gains.OFF:
            cells = [(world.over_none(variant, part), world.share(variant, part)) for part in ("", *filled)]
            told = world.name == PLANTED
            rows.append([variant, *(f"{d.value:+.4f} ± {d.stderr:.4f}" + (f" ({s:.0%})" if told else "") for d, s in cells)])
    return grids.Grid(f"{world.name}: AUC over none, by support rows (share of the way to the oracle)", heads, rows)


def picture(world: World) -> bytes:
    """AUC over no adaptation by support rows, with the oracle's."""
    plt = pages.pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2))
    filled = _filled(world.found.where)
    for variant in world.found.runs:
        if variant != gains.OFF:
            points = [world.over_none(variant, part) for part in filled]
            style = "--" if variant == ORACLE else "-"
            values, errors = [p.value for p in points], [p.stderr for p in points]
            axis.errorbar(range(len(filled)), values, errors, linestyle=style, capsize=2, label=variant)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(filled)), [part.rpartition("/")[2] for part in filled])
    axis.set_xlabel("support rows")
    axis.set_title(f"{world.name}: AUC over no adaptation", fontsize=10)
    axis.legend(fontsize=8)
    return pages.png(figure)

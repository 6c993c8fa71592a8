"""What the learner tells about itself: counts while it runs, and a report about once a second that anyone may read."""

import copy
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable

from learner.catalogue import Catalogue
from learner.explored import Explored, Figures
from learner.policy import Judged
from learner.prequential import Gain, Prequential, Quality
from models import modes
from models.engines import Choice
from models.scenario_slots import Room
from state import control, ids

EVERY_S = 1.0
LONGEST_S = 30.0
COST_SHARE = 0.02
NO_ROOM = Room()


@dataclasses.dataclass
class Counts:
    """Since this process started."""

    duplicates: int = 0
    dead_letters: Counter[str] = dataclasses.field(default_factory=Counter)
    skipped_steps: Counter[str] = dataclasses.field(default_factory=Counter)
    drift: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    """Time spent, by stage of the loop."""
    propensities: Counter[str] = dataclasses.field(default_factory=Counter)
    """Rows of which the propensity is known: those `weighted` by it, and of these the `clipped`; else `unused`."""
    diverged: int = 0
    """Lists whose adaptation diverged; they kept the shared tower."""
    support_rows: int = 0
    """Rows whose meta inputs were written for serving."""
    support_failures: int = 0
    """Reads and writes of them that the store did not answer."""
    foreign_supports: int = 0
    """Sets of them that another feature spec, objective or model had left; they started empty."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that metrics show, complete and never changed: a new one replaces it."""

    qualities: tuple[Quality, ...] = ()
    gains: tuple[Gain, ...] = ()
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: Counts = dataclasses.field(default_factory=Counts)
    step: int = 0
    trained_rows: int = 0
    snapshot: tuple[int, float] = (0, 0.0)
    """Step of the newest snapshot, and its creation in seconds since 1970."""
    snapshot_failures: int = 0
    lag: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    embedding_rows: int = 0
    meta: dict[str, modes.Mode] = dataclasses.field(default_factory=dict)
    """Where towers are adapted, as `in_force`."""
    auto: dict[str, Judged] = dataclasses.field(default_factory=dict)
    """What the policy makes of the scenarios that are `auto`."""
    room: Room = NO_ROOM
    """Slots of scenarios with parameters of their own."""
    engine: Choice | None = None
    """What runs the steps."""
    explored: tuple[Explored, ...] = ()
    """By inverse propensities, of scenarios that explore."""
    items: dict[str, int] = dataclasses.field(default_factory=dict)
    """Items that a snapshot tells of, by whether their id as it was sent is known; empty where nothing is retrieved."""


def items(known: Catalogue | None) -> dict[str, int]:
    """How many items a catalogue holds: `named` can be found, `unnamed` cannot."""
    return {} if known is None else {"named": known.size - known.unnamed, "unnamed": known.unnamed}


def in_force(found: modes.Modes, scenarios: Iterable[str]) -> dict[str, modes.Mode]:
    """The mode of each of `scenarios`, of `*` (all that have none of their own), and of every other that has one, by its hash."""
    names = {ids.of(name): name for name in scenarios}
    names |= {scenario: str(scenario) for scenario in found.own if scenario not in names}
    own = {name: modes.NAMES[found.asked(scenario)] for scenario, name in names.items()}
    return {control.EVERY: modes.NAMES[found.default]} | own


class Reporter:
    """Makes reports, as often as they may cost: at most 2 % of the time, so GAUC over a million rows comes every 12 s or so."""

    def __init__(self, figures: Prequential, explored: Figures) -> None:
        self._figures, self._explored = figures, explored
        self._next_s = self._next_gauc_s = float("-inf")
        self._qualities: tuple[Quality, ...] = ()
        self._weighted: tuple[Explored, ...] = ()
        self._groups: dict[tuple[str, str, str], float] = {}
        self._rows_then = self._gauc_rows_then = -1
        self._with_gauc = False

    def due(self, now_s: float) -> bool:
        """Whether a report should be made now."""
        self._with_gauc = now_s >= self._next_gauc_s
        return now_s >= self._next_s

    def report(
        self, counts: Counts, *, step: int, trained_rows: int, snapshot: tuple[int, float], snapshot_failures: int,
        lag: dict[tuple[str, int], int], embedding_rows: int, meta: modes.Modes, auto: dict[str, Judged], room: Room,
        engine: Choice, items: dict[str, int],
    ) -> Report:  # fmt: skip
        """The report of now; the figures are computed again only if rows came in since the last one."""
        total = self._figures.total
        self._with_gauc &= total != self._gauc_rows_then
        if total != self._rows_then or self._with_gauc:
            self._rows_then = total
            whole = self._figures.report("cumulative", gauc=self._with_gauc)
            if self._with_gauc:
                self._gauc_rows_then = total
                self._groups = {q[:3]: q.gauc for q in whole}
            else:
                whole = [q._replace(gauc=self._groups.get(q[:3], q.gauc)) for q in whole]
            self._qualities = (*whole, *self._figures.report("recent"))
            self._weighted = tuple(self._explored.report())
        rows = self._figures.rows_by_scenario()
        return Report(
            self._qualities, tuple(self._figures.gains()), rows, copy.deepcopy(counts), step,
            trained_rows, snapshot, snapshot_failures, lag, embedding_rows, in_force(meta, rows), auto, room, engine,
            self._weighted, items,
        )  # fmt: skip

    def took(self, start_s: float, end_s: float) -> None:
        """Plan the next report after one that took this long."""
        pause_s = min(max(EVERY_S, (end_s - start_s) / COST_SHARE), LONGEST_S)
        if self._with_gauc:
            self._next_gauc_s = end_s + pause_s
            self._next_s = end_s + EVERY_S
        else:
            self._next_s = end_s + pause_s

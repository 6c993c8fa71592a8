import dataclasses
from typing import cast

from serving.live import REMEMBERED, Live, Model, Scores
from serving.watching import Entry, Refused, Watcher

SCORER = cast("Scores", object())


@dataclasses.dataclass
class Shelf:
    """Snapshots named by their step; `damaged` are refused and `vanishing` are gone once read."""

    steps: list[int] = dataclasses.field(default_factory=list)
    damaged: set[str] = dataclasses.field(default_factory=set)
    vanishing: set[str] = dataclasses.field(default_factory=set)
    loads: list[str] = dataclasses.field(default_factory=list)

    def entries(self) -> list[Entry]:
        return [Entry(f"v{s}", s, s * 10) for s in sorted(self.steps, reverse=True)]

    def load(self, entry: Entry) -> Model:
        self.loads.append(entry.version)
        if entry.version in self.damaged:
            raise Refused("sha256 differs")
        if entry.version in self.vanishing:
            raise FileNotFoundError(entry.version)
        return Model(entry.version, entry.step, entry.created_ms, SCORER)


def watching(*steps: int, damaged: set[str] | None = None) -> tuple[Watcher, Shelf, Live]:
    shelf, live = Shelf(list(steps), damaged or set()), Live()
    return Watcher(shelf, live, lambda: 1000), shelf, live


def version(live: Live) -> str | None:
    return live.current.version if live.current else None


def test_an_empty_shelf_leaves_no_model() -> None:
    watcher, _, live = watching()
    assert watcher.look() is None
    assert live.current is None


def test_the_newest_is_taken_once() -> None:
    watcher, shelf, live = watching(1, 2, 3)
    watcher.look()
    assert watcher.look() is None
    assert (version(live), shelf.loads) == ("v3", ["v3"])


def test_a_damaged_one_is_refused_once_and_the_one_before_it_answers() -> None:
    watcher, shelf, live = watching(1, 2, damaged={"v2"})
    watcher.look()
    watcher.look()
    assert version(live) == "v1"
    assert shelf.loads == ["v2", "v1"]
    assert watcher.refused == {"v2": "sha256 differs"}


def test_it_never_goes_back_because_the_newer_ones_are_damaged() -> None:
    watcher, shelf, live = watching(5)
    watcher.look()
    shelf.steps = [3, 4, 6]
    shelf.damaged = {"v6"}
    assert watcher.look() is None
    assert version(live) == "v5"


def test_one_that_vanished_is_tried_again() -> None:
    watcher, shelf, live = watching(1)
    shelf.vanishing = {"v1"}
    assert watcher.look() is None
    shelf.vanishing = set()
    assert watcher.look() is not None
    assert (version(live), watcher.refused) == ("v1", {})


def test_a_rollback_holds_the_intact_one_before_the_current_until_follow() -> None:
    watcher, shelf, live = watching(1, 2, 3, damaged={"v2"})
    watcher.look()
    watcher.rollback(None)
    assert (version(live), watcher.pinned) == ("v1", "v1")
    shelf.steps.append(4)
    assert watcher.look() is None
    watcher.follow()
    watcher.look()
    assert (version(live), watcher.pinned) == ("v4", None)


def test_a_rollback_to_a_named_version_takes_that_one() -> None:
    watcher, _, live = watching(1, 2, 3)
    watcher.look()
    watcher.rollback("v1")
    assert version(live) == "v1"


def test_a_rollback_to_the_current_version_pins_it_without_reading_it_again() -> None:
    watcher, shelf, _ = watching(1, 2)
    watcher.look()
    watcher.rollback("v2")
    assert (watcher.pinned, shelf.loads) == ("v2", ["v2"])


def test_a_rollback_to_nothing_changes_nothing() -> None:
    watcher, _, live = watching(2)
    watcher.look()
    assert watcher.rollback("v9") is None
    assert watcher.rollback(None) is None
    assert (version(live), watcher.pinned) == ("v2", None)


def test_refusals_of_removed_snapshots_are_forgotten() -> None:
    watcher, shelf, _ = watching(1, 2, damaged={"v2"})
    watcher.look()
    shelf.steps = [3]
    watcher.look()
    assert watcher.refused == {}


def test_only_the_first_score_of_a_version_is_noted_and_only_the_last_versions_are_remembered() -> None:
    live = Live()
    for step in range(REMEMBERED + 5):
        live.swap(Model(f"v{step}", step, step, SCORER), now_ms=step)
        assert live.scored(f"v{step}", 100 + step)
        assert not live.scored(f"v{step}", 999)
    assert len(live.seen()) == REMEMBERED
    assert live.seen()[0].first_scored_ms == 100 + REMEMBERED + 4
    assert not live.scored("v0", 1)
